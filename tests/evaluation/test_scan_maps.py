"""scan_maps.py: planes through a model and back onto the scan's voxels, whatever way the scan is stored.

The model is one that gives back what it is given, so that the reconstruction is the undecoded slices put back; its top
codes are the numbers of their cells.
"""

import gzip
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from scan_files import STORAGES, ellipsoid, save, save_analyze, stored

from vqvae2.evaluation import scan_maps
from vqvae2.evaluation.scan_maps import Model, open_scan, other_maps, write_reconstruction
from vqvae2.models.code_maps import CodeMaps
from vqvae2.scans.finding import Scan
from vqvae2.scans.headers import UnusableScan
from vqvae2.slices.settings import ExtractSettings

SHAPE = 22, 26, 20
CELLS = 4
TURNED = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, -0.2, 0.3) @ np.diag([6.0, 6.0, 6.0]), (-80, 33, 12))
"""From RAS indices, oblique to the scanner: voxels of 6 mm."""


@pytest.fixture(autouse=True)
def a_model_that_gives_back_what_it_is_given(monkeypatch):
    def reconstruct(model, split, batch):
        assert batch >= len(split)
        codes = torch.arange(CELLS * CELLS).reshape(1, CELLS, CELLS).repeat(len(split), 1, 1)
        return CodeMaps(split.names, {"top": codes}), split.bytes()
    monkeypatch.setattr(scan_maps.encoding, "reconstruct", reconstruct)


def model(*planes, size=28, width=168.0, extent=(0.0, 1.0), trained=None):
    """A model whose pixels have 6 mm, so that they are the voxels of a scan of 6 mm."""
    config = {"training_images": [], "data": {"extraction": trained}, "image_shape": [1, 0, 0]}
    vqvae = SimpleNamespace(model=SimpleNamespace(levels=("top",)), config=config, folder=Path("nowhere"))
    cutting = ExtractSettings(planes=planes or ("axial",), size=size, field_of_view=width, extent=extent, bits=16)
    return Model(vqvae, {}, None, cutting, (1, size, size))


def brain(seed=0, shape=SHAPE, kind=np.int16):
    """Noise within an ellipsoid that has an even number of voxels each way, RAS."""
    values = np.random.default_rng(seed).integers(100, 255, shape).astype(kind)
    return values * ellipsoid(shape, (8.5, 10.5, 7.5)).astype(kind)


def save_turned(path, ras, storage="RAS", kind=nib.Nifti1Image, **options):
    array, affine = stored(ras, (1, 1, 1), storage)
    nib.save(kind(array, TURNED @ affine, **options), path)
    return path


def made_of(path, *models, batch=3, storage=None, cutting=None):
    opened = open_scan(Scan(path, path.name, "p1", storage=storage), cutting or models[0].cutting)
    return opened, scan_maps.reconstruct(opened, models, batch)


def maps_of(opened, made):
    """What is written beside the reconstruction: (numbers, the number elsewhere) by the names of the files."""
    return {label: more for label, *more in other_maps(opened, made.encoded, made.mean > 0)}


def bytes_of(path):
    content = path.read_bytes()
    return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content


def clipped(ras, opened):
    """What slices can hold of a scan: its brain from low to high, and background."""
    return np.where(ras != 0, np.clip(ras, opened.brain.low, opened.brain.high), 0)


class TestReconstruction:
    @pytest.mark.parametrize("storage", STORAGES)
    def test_from_every_storage_each_voxel_comes_back_and_the_header_byte_for_byte(self, tmp_path, storage):
        ras = brain()
        path = save_turned(tmp_path / "a.nii", ras, storage)
        opened, made = made_of(path, model())
        write_reconstruction(tmp_path / "b.nii.gz", opened, made)
        written = bytes_of(tmp_path / "b.nii.gz")
        assert written[:352] == path.read_bytes()[:352]
        expected = stored(clipped(ras, opened), (1, 1, 1), storage)[0]
        again = nib.load(tmp_path / "b.nii.gz")
        assert again.get_data_dtype() == np.int16
        assert np.abs(np.asarray(again.dataobj, float) - expected).max() <= 1  # 8 bits, and rounding
        assert np.array_equal(np.asarray(again.dataobj) == 0, expected == 0)

    @pytest.mark.parametrize("planes", [("coronal",), ("sagittal",), ("axial", "coronal", "sagittal")])
    def test_planes_of_any_direction_and_all_together_give_back_the_same(self, tmp_path, planes):
        ras = brain()
        opened, made = made_of(save_turned(tmp_path / "a.nii", ras, "PIL"), model(*planes))
        write_reconstruction(tmp_path / "b.nii.gz", opened, made)
        expected = stored(clipped(ras, opened), (1, 1, 1), "PIL")[0]
        assert np.abs(nib.load(tmp_path / "b.nii.gz").get_fdata() - expected).max() <= 1
        row = made.row()
        assert row["planes"] == sum({"sagittal": 16, "coronal": 20, "axial": 14}[plane] for plane in planes)
        assert row["volume_mae"] == pytest.approx(row["resampling_mae"], abs=1e-3)
        assert row["volume_mae"] < 1 / 255
        assert (row["beyond"], row["ssim"]) == (0, pytest.approx(1))

    @pytest.mark.parametrize("sizes", [(1, 1.5, 2), (3, 0.9, 1.2)])
    def test_voxels_that_are_no_cubes_get_what_the_slices_hold_of_them(self, tmp_path, sizes):
        smooth = np.add.outer(np.add.outer(np.arange(22), np.arange(26)), np.arange(20)) * 30.0 + 200
        ras = (smooth * ellipsoid(SHAPE, (8.5, 10.5, 7.5))).astype(np.float32)
        opened, made = made_of(save(tmp_path / "a.nii", ras, sizes, "ASL"), model("coronal", size=64, width=70.0))
        write_reconstruction(tmp_path / "b.nii.gz", opened, made)
        again = nib.load(tmp_path / "b.nii.gz")
        expected = stored(clipped(ras, opened), sizes, "ASL")[0]
        assert np.abs(again.get_fdata() - expected).mean(where=expected != 0) < 0.03 * np.ptp(ras[ras > 0])
        assert np.array_equal(again.get_fdata() == 0, expected == 0)
        assert np.array_equal(again.affine, nib.load(tmp_path / "a.nii").affine)

    @pytest.mark.parametrize(("kind", "slope", "inter"), [
        ("int16", 0.5, 0), ("int16", 0.25, -40), ("uint8", 1, 0), ("float32", 1, 0), ("uint16", 2, 0),
        ("float64", 3, 1)])
    @pytest.mark.parametrize("endianness", ["<", ">"])
    def test_units_types_scales_and_byte_orders_stay(self, tmp_path, kind, slope, inter, endianness):
        header = nib.Nifti1Header(endianness=endianness)
        header.set_data_dtype(kind)
        path = save_turned(tmp_path / "a.nii.gz", brain() if kind == "uint8" else brain() * 10 - 5 * (brain() > 0),
                           "LAS", header=header)
        content = bytearray(bytes_of(path))
        header = nib.Nifti1Header(bytes(content[:348]), check=False)
        background = round(-inter / slope)
        numbers = np.frombuffer(bytes(content[352:]), header.get_data_dtype())
        moved = np.where(numbers == 0, background, numbers).astype(numbers.dtype)
        header["scl_slope"], header["scl_inter"] = slope, inter
        path.write_bytes(header.binaryblock + bytes(4) + moved.tobytes())
        opened, made = made_of(path, model())
        write_reconstruction(tmp_path / "b.nii.gz", opened, made)
        written = bytes_of(tmp_path / "b.nii.gz")
        assert written[:352] == path.read_bytes()[:352]
        values = np.frombuffer(written[352:], header.get_data_dtype())
        low, high = ((limit - inter) / slope for limit in (opened.brain.low, opened.brain.high))
        expected = np.where(moved == background, moved, np.clip(moved.astype(float), low, high))
        step = (high - low) / 255
        assert np.abs(values.astype(float) - expected).max() <= step + 1
        assert np.array_equal(values == background, moved == background)

    def test_beyond_the_field_of_view_stands_the_background_and_it_is_counted(self, tmp_path):
        ras = brain().astype(np.float32)
        ras = np.where(ras > 0, ras, -7)  # z-scored scans have such a background
        opened, made = made_of(save_turned(tmp_path / "a.nii", ras), model(size=10, width=60.0, extent=(0.0, 0.5)))
        write_reconstruction(tmp_path / "b.nii.gz", opened, made)
        again = nib.load(tmp_path / "b.nii.gz").get_fdata()
        known = np.zeros(SHAPE, bool)
        known[6:16, 8:18, :10] = True  # 10 voxels around the middle of the brain, and the lower half of its planes
        assert np.array_equal(again != -7, known & (ras != -7))
        assert made.row()["beyond"] == pytest.approx(1 - ((ras != -7) & known).sum() / (ras != -7).sum())

    def test_what_was_not_finite_outside_of_the_brain_is_nan_again(self, tmp_path):
        ras = np.where(brain() > 0, brain(), np.nan).astype(np.float32)
        opened, made = made_of(save_turned(tmp_path / "a.nii", ras, "SPL"), model())
        write_reconstruction(tmp_path / "b.nii.gz", opened, made)
        again = nib.load(tmp_path / "b.nii.gz").get_fdata()
        assert np.array_equal(np.isnan(again), np.isnan(nib.load(tmp_path / "a.nii").get_fdata()))

    def test_a_head_with_its_skull_is_background_outside_of_the_head(self, tmp_path):
        noise = np.random.default_rng(1).integers(1, 12, SHAPE)
        head = ellipsoid(SHAPE, (8.5, 10.5, 7.5))
        ras = np.where(head, brain() * 4, noise).astype(np.int16)
        opened, made = made_of(save_turned(tmp_path / "a.nii", ras), model("axial", "sagittal"))
        assert opened.brain.head is not None
        write_reconstruction(tmp_path / "b.nii.gz", opened, made)
        again = nib.load(tmp_path / "b.nii.gz").get_fdata()
        assert np.array_equal(again != 0, head)
        assert np.abs(again - np.clip(ras, opened.brain.low, opened.brain.high))[head].max() <= 4

    def test_analyze_by_its_layout_gets_a_header_that_says_how_it_was_read(self, tmp_path):
        ras = brain()
        opened, made = made_of(save_analyze(tmp_path / "a.hdr", ras, (6, 6, 6), "LAS"), model(), storage="LAS")
        write_reconstruction(tmp_path / "b.nii.gz", opened, made)
        again = nib.load(tmp_path / "b.nii.gz")
        assert nib.aff2axcodes(again.affine) == ("L", "A", "S")
        assert np.abs(nib.as_closest_canonical(again).get_fdata() - clipped(ras, opened)).max() <= 1

    def test_only_what_lies_within_the_brain_mask_is_reconstructed(self, tmp_path):
        path = save_turned(tmp_path / "p1_T1.nii", brain())
        inner = ellipsoid(SHAPE, (4, 5, 4))
        mask = save_turned(tmp_path / "p1_brain_mask.nii", inner.astype(np.uint8))
        opened = open_scan(Scan(path, path.name, "p1", mask=mask), model().cutting)
        write_reconstruction(tmp_path / "b.nii.gz", opened, scan_maps.reconstruct(opened, [model()], 4))
        assert np.array_equal(nib.load(tmp_path / "b.nii.gz").get_fdata() != 0, inner)
        assert len(opened.mask_sha256) == 64

    def test_batches_and_their_order_change_nothing(self, tmp_path):
        path = save_turned(tmp_path / "a.nii", brain())
        [first, second] = [made_of(path, model("axial", "coronal"), batch=batch)[1].mean for batch in (2, 50)]
        assert np.array_equal(first, second)

    def test_without_brain_in_its_planes_a_scan_cannot_be_used(self, tmp_path):
        ras = brain()
        ras[:, :, 8:11] = 0
        opened = open_scan(Scan(save_turned(tmp_path / "a.nii", ras), "a.nii", "p1"), model().cutting)
        with pytest.raises(UnusableScan, match=r"expected brain in the planes that are reconstructed, found none. Leave"
                                               r" the scan out, or choose another --extent"):
            scan_maps.reconstruct(opened, [model(extent=(0.45, 0.5))], 4)


class TestCodesAndMaps:
    @pytest.mark.parametrize("storage", ["RAS", "PIL", "SRA"])
    def test_codes_lie_where_their_cells_lie_and_minus_one_elsewhere(self, tmp_path, storage):
        ras = brain()
        opened, made = made_of(save_turned(tmp_path / "a.nii", ras, storage), model("sagittal", "axial"))
        found = maps_of(opened, made)
        assert list(found) == ["sagittaltopcodes", "axialtopcodes"] == scan_maps.labels_of([model("sagittal", "axial")])
        placed, elsewhere = found["axialtopcodes"]
        opened.grid.write(tmp_path / "b.nii.gz", opened.box, placed, elsewhere)
        again = nib.as_closest_canonical(nib.load(tmp_path / "b.nii.gz"))
        codes = np.asarray(again.dataobj)
        assert codes.dtype == np.int16
        assert np.array_equal(codes >= 0, ras != 0)
        for place in np.argwhere(ras != 0):
            # 4 cells of 7 pixels of 6 mm; rows from anterior, columns from right; the middle of the brain is at 11, 13
            column, row = (int((14 - (at + 0.5 - middle)) / 28 * CELLS) for at, middle in zip(place, (11, 13)))
            assert codes[tuple(place)] == row * CELLS + column

    def test_a_map_is_the_mean_of_all_planes_and_0_elsewhere(self, tmp_path, monkeypatch):
        values = {"axial": 0.25, "coronal": 0.75}
        monkeypatch.setattr(scan_maps.surprise, "code_bits", lambda priors, levels, facts, *_, **__: {
            "top": torch.full((len(facts), CELLS, CELLS), values[facts[0]["plane"]] * (28 / CELLS)**2)})
        ras = brain()
        opened, made = made_of(save_turned(tmp_path / "a.nii", ras), *(
            replace(model(plane), priors={"top": None}) for plane in values))
        numbers, elsewhere = maps_of(opened, made)["bitsperpixel"]
        assert elsewhere == 0
        assert np.array_equal(numbers > 0, ras[opened.box] > 0)
        assert np.allclose(numbers[numbers > 0], 0.5)


class TestFigures:
    def test_planes_unlike_those_of_the_training_are_counted(self, tmp_path):
        path = save_turned(tmp_path / "a.nii", brain())
        trained = {"planes": ["axial"], "extent": [0.25, 0.75]}
        counts = [made_of(path, model(plane, trained=said))[1].row()["planes_unlike_training"]
                  for plane, said in (("axial", trained), ("coronal", trained), ("axial", None))]
        assert counts == [6, 20, 0]  # of 14 axial planes 8 lie in the middle half

    def test_the_middle_planes_of_scan_and_reconstruction_match(self, tmp_path):
        opened, made = made_of(save_turned(tmp_path / "a.nii", brain(), "RSP"), model())
        scan, back = (scan_maps.middle_planes(opened, numbers, 28, 168.0) for numbers in (None, made.mean))
        assert scan.shape == back.shape == (3, 1, 28, 28)
        assert (scan - back).abs().max() <= 1 / 255
        assert scan.mean() > 20 / 255
