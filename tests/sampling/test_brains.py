"""Whole brains: slices at their places in space, drawn one after another or by shared numbers, and the command."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import TINY, TINY_PRIOR, TINY_VQVAE, files_in
from tiny_prior import prior

from vqvae2 import load_prior, load_vqvae, sample_volumes
from vqvae2.commands import sample, train_prior, train_vqvae
from vqvae2.common.errors import UserError
from vqvae2.models.code_maps import CodeMaps
from vqvae2.priors.conditions import Column
from vqvae2.sampling import sampler
from vqvae2.sampling.settings import SampleSettings
from vqvae2.sampling.volumes import Stack, VolumeSampler, read_nifti, stack_of, three_planes, write_nifti
from vqvae2.scans.brain import Brain
from vqvae2.scans.volumes import Volume
from vqvae2.slices.planes import draw_plane

POSITION, PREVIOUS = Column("position_mm", (), 0.0, 10.0, -20.0, 20.0), Column("previous_mm", (), 0.0, 2.0, -4.0, 4.0)


def stack(plane="axial", count=5):
    return Stack(plane, tuple(float(3 * number - 6) for number in range(count)), 3.0, 2.0)


def settings_of(**more):
    return SampleSettings(**({"vqvae": "v", "top": "t", "bottom": "b", "out": Path("out"), "nifti": True} | more))


def models(columns=(POSITION, PREVIOUS), planes=("axial",)):
    """A VQ-VAE that decodes nothing, and a top prior on 4 x 6 maps that tells its own codes' sums from its facts."""
    condition = ("previous-slice",) if PREVIOUS in columns else ()
    model = SimpleNamespace(levels=("top",), texture=None,
                            decode=lambda maps, **_: maps["top"][:, None].double() / 11)
    config = {"image_shape": [1, 4, 6], "data": {"extraction": {"planes": list(planes), "field_of_view": 12.0}}}
    return SimpleNamespace(model=model, config=config), {"top": prior("top", condition=condition, columns=columns)}


class TestPlacesInSpace:
    @pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
    def test_a_voxel_written_is_where_extraction_would_have_read_it(self, plane, tmp_path):
        """A volume of noise is cut into slices as by extraction; stacked again, it is the same."""
        rng = np.random.default_rng(0)
        sides = {"axial": (8, 8, 5), "coronal": (8, 5, 8), "sagittal": (5, 8, 8)}[plane]
        axis = sides.index(5)
        voxels = rng.integers(60, 255, sides).astype(np.uint8)
        sizes = tuple(3.0 if each == axis else 2.0 for each in range(3))
        brain = Brain((0, 0, 0), sides, 0.0, 255.0)
        slices = np.stack([np.rint(draw_plane(Volume(voxels, sizes), brain, axis, index, 8, 16.0) * 255)
                           for index in range(5)]).astype(np.uint8)
        write_nifti(tmp_path / "brain.nii.gz", stack(plane), slices)
        image = nib.load(tmp_path / "brain.nii.gz")
        np.testing.assert_array_equal(read_nifti(tmp_path / "brain.nii.gz"), voxels)
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        assert image.header.get_zooms() == sizes
        assert image.header.get_xyzt_units()[0] == "mm"
        assert (image.header["sform_code"], image.header["qform_code"]) == (2, 2)
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-5)
        centre = image.affine @ [*((np.array(sides) - 1) / 2), 1]  # positions -6 to 6 mm, and the picture's middle
        np.testing.assert_allclose(centre[:3], 0, atol=1e-6)

    def test_equal_slices_are_equal_bytes(self, tmp_path):
        slices = np.arange(5 * 64).reshape(5, 8, 8).astype(np.uint8)
        for name in ("a", "b"):
            write_nifti(tmp_path / name / "brain.nii.gz", stack(), slices)
        assert (tmp_path / "a/brain.nii.gz").read_bytes() == (tmp_path / "b/brain.nii.gz").read_bytes()

    def test_three_planes_are_shown_in_their_proportions_with_black_beyond_the_stack(self):
        """5 slices of 3 mm are 15 mm, 8 rows of 2 mm (7.5 rounded); the pictures have 8 pixels of 2 mm."""
        voxels = np.full((8, 8, 5), 200, np.uint8)
        voxels[:4] = 100  # the subject's left, at the right of a picture
        axial, coronal, sagittal = three_planes(stack(), voxels)[:, 0]
        assert axial[:, :4].tolist() == [[200] * 4] * 8
        assert axial[:, 4:].tolist() == [[100] * 4] * 8
        assert coronal[:, 0].tolist() == [200] * 8
        assert sagittal.shape == (8, 8)
        thin = three_planes(Stack("axial", (0.0, 1.0), 1.0, 2.0), voxels[:, :, :2])[1, 0]
        assert (thin > 0).any(1).sum() == 1


class TestOrder:
    def test_told_the_previous_slice_it_goes_from_the_middle_outwards(self):
        assert list(stack(count=5).rounds(True, 9)) == [[(2, None)], [(1, 2), (3, 2)], [(0, 1), (4, 3)]]
        assert list(stack(count=4).rounds(True, 9)) == [[(2, None)], [(1, 2), (3, 2)], [(0, 1)]]

    def test_else_any_slices_are_drawn_together(self):
        assert list(stack(count=5).rounds(False, 2)) == [[(0, None), (1, None)], [(2, None), (3, None)], [(4, None)]]


class TestStack:
    def test_the_range_is_the_one_given_or_that_of_most_training_slices(self):
        vqvae, priors = models()
        given = stack_of(settings_of(condition=("position_mm=-4..5",), spacing=2), vqvae, priors)
        assert given.positions_mm == (-3.5, -1.5, 0.5, 2.5, 4.5)  # what is left over is left out at both ends
        assert (given.plane, given.spacing_mm, given.pixel_mm) == ("axial", 2, 2.0)
        whole = stack_of(settings_of(), vqvae, priors).positions_mm
        assert (len(whole), whole[0], whole[-1]) == (35, -17.0, 17.0)  # 10 mm times the root of 3 to either side

    @pytest.mark.parametrize(("more", "columns", "planes", "said"), [
        ({}, (PREVIOUS,), ("axial",), "--top t: .* told where a slice lies, .*found previous_mm. Train it"),
        ({"coherence": "previous"}, (POSITION,), ("axial",), "--condition previous-slice, .*found another. Give"),
        ({}, (POSITION,), ("axial", "coronal"), "--vqvae v: .*one plane .*found axial and coronal"),
        ({}, (POSITION,), (), "--vqvae v: .*found no record of a plane"),
        ({"condition": ("position_mm=4",)}, (POSITION,), ("axial",), "position_mm=4: .*A..B, found one position"),
        ({"spacing": 50}, (POSITION,), ("axial",), "--spacing 50: expected 2 to 2000 slices from -17.* found 1"),
        ({"spacing": 5}, (POSITION, PREVIOUS), ("axial",), "--spacing 5: expected at most 4 mm"),
        ({"condition": ("position_mm=a..b",)}, (POSITION,), ("axial",), "position_mm=a..b: .* found a..b")])
    def test_what_cannot_be_a_brain_is_refused(self, more, columns, planes, said):
        vqvae, priors = models(columns, planes)
        with pytest.raises(UserError, match=said):
            VolumeSampler(vqvae, priors, settings_of(**more))

    def test_slices_beyond_those_of_training_are_said(self):
        vqvae, priors = models()
        assert VolumeSampler(vqvae, priors, settings_of(condition=("position_mm=-20..20",))).beyond() == ""
        said = VolumeSampler(vqvae, priors, settings_of(condition=("position_mm=-20..28",))).beyond()
        assert "slices from -20 to 28 mm; the priors have learned -20 to 20 mm" in said

    @pytest.mark.parametrize(("more", "said"), [
        ({"nifti": False, "spacing": 2.0}, "--spacing: expected --nifti beside it"),
        ({"nifti": False, "coherence": "both"}, "--coherence: expected --nifti beside it"),
        ({"condition": ("previous_mm=1",)}, "--condition: expected facts of an image, found previous_mm=1"),
        ({"reject": 4}, "--reject: expected none beside --nifti"),
        ({"inpaint": Path("codes.npz")}, "--inpaint: expected none beside --nifti")])
    def test_flags_that_do_not_go_together_are_refused(self, more, said):
        with pytest.raises(UserError, match=said):
            settings_of(**more)


class TestDrawing:
    def draw(self, coherence, numbers=(0,), columns=(POSITION, PREVIOUS), **more):
        vqvae, priors = models(columns)
        settings = settings_of(coherence=coherence, condition=("position_mm=-4..4",), spacing=2, **more)
        return [volume.codes["top"] for volume in VolumeSampler(vqvae, priors, settings).draw(numbers)]

    def test_none_and_noise_differ_in_the_random_numbers_alone(self, monkeypatch):
        """A prior that is not told the place: with shared numbers all slices are one slice, else they are not."""
        monkeypatch.setattr(VolumeSampler, "_facts", lambda self, numbers, pairs: {
            "top": torch.full((len(numbers) * len(pairs), 2), torch.nan)})
        [apart], [alike] = self.draw("none"), self.draw("noise")
        assert (alike == alike[:1]).all()
        assert len({tuple(own.flatten().tolist()) for own in apart}) == 5

    def test_each_slice_is_told_its_place_and_the_codes_and_distance_of_the_one_before(self, monkeypatch):
        told = []
        draw_maps = sampler.draw_maps

        def spy(priors, numbers, seed, rules, facts, on_code, stay, candidates, previous):
            maps = draw_maps(priors, numbers, seed, rules, facts, on_code, stay, candidates, previous)
            told.append((numbers, facts["top"], candidates, previous and previous["top"], maps["top"]))
            return maps

        monkeypatch.setattr(sampler, "draw_maps", spy)
        self.draw("previous", numbers=(3, 8))
        numbers, facts, candidates, previous, first = told[0]
        assert (numbers, candidates, previous) == ([3, 8], [3, 3], None)
        assert facts[:, 0].tolist() == [0, 0]
        assert facts[:, 1].isnan().all()
        numbers, facts, candidates, previous, maps = told[1]
        assert (numbers, candidates) == ([3, 8, 3, 8], [2, 2, 4, 4])
        torch.testing.assert_close(facts, torch.tensor([[-0.2, 1], [-0.2, 1], [0.2, -1], [0.2, -1]]))
        assert torch.equal(previous, torch.cat([first, first]))
        assert torch.equal(told[2][3], maps)

    @pytest.mark.parametrize("coherence", ["none", "noise", "previous", "both"])
    def test_a_brain_depends_neither_on_the_batch_nor_on_other_brains(self, coherence):
        many = self.draw(coherence, (0, 1, 2), batch=16)
        few = self.draw(coherence, (0, 1, 2), batch=2)
        assert all(map(torch.equal, many, few))
        assert torch.equal(self.draw(coherence, (2,))[0], many[2])
        assert not torch.equal(many[0], many[1])

    def test_auto_is_previous_where_the_prior_can_and_noise_where_it_cannot(self):
        assert torch.equal(self.draw("auto")[0], self.draw("previous")[0])
        assert torch.equal(self.draw("auto", columns=(POSITION,))[0], self.draw("noise", columns=(POSITION,))[0])


@pytest.fixture(scope="module")
def chain(tiny_slices, tmp_path_factory):
    """A tiny chain whose priors are told where a slice lies and the one before."""
    folder = tmp_path_factory.mktemp("volumes")
    shutil.copytree(tiny_slices, folder / "slices")
    cutting = {"planes": ["axial"], "extent": [0, 1], "size": 32, "field_of_view": 64, "bits": 8}
    (folder / "slices/extraction.json").write_text(json.dumps({"settings": cutting}))
    common = ["--data", str(folder / "slices"), "--results", str(folder), *TINY]
    train_vqvae.main([*common, "--savename", "v", *TINY_VQVAE])
    for level in ("top", "bottom"):
        train_prior.main([*common, "--savename", level, "--level", level, "--vqvae", str(folder / "oasis/v"),
                          *TINY_PRIOR, "--condition", "position_mm", "previous-slice", "--copies", "1"])
    return [word for name, own in (("vqvae", "v"), ("top", "top"), ("bottom", "bottom"))
            for word in (f"--{name}", str(folder / "oasis" / own))]


class TestCommand:
    def test_it_writes_brains_their_codes_and_a_picture_and_goes_on(self, chain, apart, capfd):
        command = [*chain, "--nifti", "--out", "out", "--count", "2"]
        sample.main(command)
        whole = files_in(Path("out"))
        assert set(whole) == {"volumes/000000.nii.gz", "volumes/000001.nii.gz", "codes.npz", "grid.png", "sample.json"}
        image = nib.load("out/volumes/000001.nii.gz")
        assert image.shape == (32, 32, 3)
        np.testing.assert_allclose(image.affine[:3, 3], [-31, -31, 0])  # positions 0 to 2 mm, pixels of 2 mm
        maps = CodeMaps.load(Path("out/codes.npz"), json.loads(Path("out/sample.json").read_text())["settings"][
            "vqvae_hash"])
        assert maps.names[2:4] == ["volumes/000000/0002", "volumes/000001/0000"]
        assert maps.levels["bottom"].shape == (6, 8, 8)
        said = capfd.readouterr().out
        assert "brains: 2, each of 3 axial slices, 0 to 2 mm; each slice is told the one before" in said
        Path("out/volumes/000001.nii.gz").unlink()
        sample.main(command)
        assert "1 of 2 volumes are there already" in capfd.readouterr().out
        assert files_in(Path("out")) == whole

    def test_the_same_brains_come_out_in_python(self, chain, apart):
        sample.main([*chain, "--nifti", "--out", "out", "--count", "2", "--temperature", "0.9"])
        _, vqvae, _, top, _, bottom = chain
        vqvae = load_vqvae(vqvae, device="cpu")
        priors = [load_prior(own, level, vqvae, "cpu") for own, level in ((top, "top"), (bottom, "bottom"))]
        brains, affine = sample_volumes(vqvae, *priors, count=2, temperature=0.9)
        for number, brain in enumerate(brains):
            image = nib.load(f"out/volumes/{number:06d}.nii.gz")
            np.testing.assert_array_equal(np.asarray(image.dataobj), brain)
            np.testing.assert_array_equal(image.affine, affine)

    def test_a_folder_of_images_is_not_gone_on_with_as_one_of_brains(self, chain, apart, refusal):
        sample.main([*chain, "--out", "out", "--count", "1"])
        said = refusal(sample.main, *chain, "--nifti", "--out", "out", "--count", "1")
        assert "--nifti True (was False)" in said
