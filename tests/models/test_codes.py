"""Stored code maps belong to one VQ-VAE and one data set; what codes are worth is measured by exchanging them."""

import re
import struct
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import files_in
from skimage.metrics import structural_similarity
from torch import nn

from vqvae2.common.errors import UserError
from vqvae2.images.dataset import ImageSet
from vqvae2.images.listing import ImageFile
from vqvae2.models import encoding
from vqvae2.models.code_maps import CodeMaps

LEVELS = ("top", "bottom")


def maps_of(count, *, codebook_size=512, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return CodeMaps([f"train/{i}.png" for i in range(count)],
                    {"top": torch.randint(codebook_size, (count, 2, 3), generator=generator),
                     "bottom": torch.randint(codebook_size, (count, 4, 6), generator=generator)})


def image_set(pixels):
    """A split of images uint8 `[n, 1, height, width]`."""
    return ImageSet(tuple(ImageFile(f"{i}.png", "train", str(i), "") for i in range(len(pixels))), pixels)


class CodesOfPixels(nn.Module):
    """Bottom codes are an image's 16 x 16 pixels in 16 greys; top codes are its mean, and used only if asked."""

    levels = LEVELS

    def __init__(self, uses_top):
        super().__init__()
        self.settings = SimpleNamespace(codebook_size=16)
        self.uses_top = uses_top
        self.nothing = nn.Parameter(torch.zeros(()))

    def encode(self, images):
        bottom = (images[:, 0] * 15).round().long()
        return {"top": bottom.float().mean((1, 2), keepdim=True).long(), "bottom": bottom}

    def decode(self, maps, **_):
        image = maps["bottom"] / 15
        # Where the top is used, its codes turn the picture into its negative or not.
        return torch.where(maps["top"] % 2 == 1, 1 - image, image)[:, None] if self.uses_top else image[:, None]


@pytest.fixture
def noise():
    """Twelve images of 16 greys, half of them bright."""
    pixels = np.random.default_rng(0).integers(0, 12, (12, 1, 16, 16)) + np.tile([0, 3], 6)[:, None, None, None]
    return image_set((pixels * 17).astype(np.uint8))


class TestStored:
    def test_maps_come_back_as_they_were(self, tmp_path):
        maps = maps_of(5)
        maps.levels["top"][2, 1, 1] = -1  # to be drawn
        maps.save(tmp_path / "codes" / "train.npz", "abc", "data")
        for found in (CodeMaps.load(tmp_path / "codes" / "train.npz", "abc", "data"),
                      CodeMaps.load(tmp_path / "codes" / "train.npz", "abc")):
            assert found.names == maps.names
            assert list(found.levels) == ["top", "bottom"]
            for level in LEVELS:
                assert found.levels[level].dtype == torch.int64
                assert torch.equal(found.levels[level], maps.levels[level])

    def test_the_file_is_what_the_design_says(self, tmp_path):
        maps_of(5).save(tmp_path / "train.npz", "abc", "data")
        with np.load(tmp_path / "train.npz", allow_pickle=False) as file:
            assert set(file) == {"image", "top", "bottom", "vqvae_hash", "data_hash"}
            assert (file["top"].dtype, file["top"].shape, file["bottom"].shape) == (np.int16, (5, 2, 3), (5, 4, 6))
            assert file["image"][4] == "train/4.png"
            assert str(file["vqvae_hash"]) == "abc"

    def test_one_level_is_stored_as_one(self, tmp_path):
        CodeMaps(["a"], {"top": torch.zeros(1, 2, 2, dtype=torch.long)}).save(tmp_path / "a.npz", "abc", "")
        assert list(CodeMaps.load(tmp_path / "a.npz", "abc").levels) == ["top"]

    @pytest.mark.parametrize(("vqvae", "data"), [("abd", "data"), ("abc", "other")])
    def test_maps_of_another_vqvae_or_data_set_do_not_count(self, vqvae, data, tmp_path):
        maps_of(5).save(tmp_path / "train.npz", "abc", "data")
        assert CodeMaps.load(tmp_path / "train.npz", vqvae, data) is None

    def test_no_file_a_torn_one_or_a_damaged_one_do_not_count_and_damage_is_said(self, tmp_path, capsys):
        path = tmp_path / "train.npz"
        assert CodeMaps.load(path, "abc") is None
        assert capsys.readouterr().err == ""
        maps_of(5).save(path, "abc", "data")
        whole = path.read_bytes()
        at = whole.index(b"top.npy") + 60
        for content in (b"", b"PK", whole[:50], whole[:len(whole) // 2], whole[:-5], whole[:at] + b"\0\xff" * 20 +
                        whole[at + 40:], b"not a zip file"):
            path.write_bytes(content)
            assert CodeMaps.load(path, "abc", "data") is None
            said = capsys.readouterr().err
            assert re.fullmatch(r"warning: .*train\.npz: expected code maps that this project wrote, found .+\. "
                                r"They are made anew\.\n", said), said

    @pytest.mark.parametrize(("change", "said"), [
        ({"top": np.zeros((5, 2, 2), np.int16)}, r"top codes of shape \(5, 2, 2\), int16, for 5 images"),
        ({"top": np.zeros((5, 2, 3))}, r"top codes of shape \(5, 2, 3\), float64"),
        ({"top": np.full((5, 2, 3), 512)}, "top codes from 512 to 512"), ({"top": np.full((5, 2, 3), -1)}, "from -1"),
        ({"image": np.array(["a"] * 5)}, "two maps of one name"), ({"image": np.array(list("abcde"))}, "other images"),
        ({"image": np.array(list("abc"))}, "for 3 images"),
        ({"image": np.array([{}] * 5)}, r"image\.npy of shape \(5,\) in"),
        ({"score": np.full(5, np.inf)}, "score that is no number"),
        ({"top": np.zeros(2 * 10**8, np.int8)}, r"5 arrays of 200,\d{3},\d{3} bytes in \d+,")])
    def test_maps_that_do_not_fit_are_no_maps_of_this_project(self, change, said, tmp_path, capsys):
        maps = maps_of(5)
        arrays = {"image": np.array(maps.names), "vqvae_hash": "abc", "data_hash": "data",
                  **{level: codes.numpy() for level, codes in maps.levels.items()}}
        for content, fits in ((arrays, True), (arrays | change, False)):
            np.savez_compressed(tmp_path / "a.npz", **content)
            found = CodeMaps.load(tmp_path / "a.npz", "abc", "data", maps.names, {"top": (2, 3), "bottom": (4, 6)}, 512)
            assert (found is not None) is fits
        assert re.search(said, capsys.readouterr().err)

    def test_an_array_that_claims_more_than_there_is_takes_no_memory(self, tmp_path, capsys):
        with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for name in ("image", "vqvae_hash"):
                header = b"{'descr': '<i2', 'fortran_order': False, 'shape': (100000000000,), }\n"
                archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"0")
        assert CodeMaps.load(tmp_path / "a.npz", "abc") is None
        assert "image.npy of shape (100000000000,) in 1 bytes" in capsys.readouterr().err

    def test_maps_are_written_whole_or_not_at_all(self, tmp_path, monkeypatch):
        def fail(*_, **__):
            raise OSError("No space left on device")

        maps_of(5).save(tmp_path / "train.npz", "abc", "data")
        before = files_in(tmp_path)
        monkeypatch.setattr(np, "savez_compressed", fail)
        with pytest.raises(UserError, match=r"train\.npz: .* found No space left on device\. Free some space"):
            maps_of(6).save(tmp_path / "train.npz", "abc", "data")
        assert files_in(tmp_path) == before


class TestExtraction:
    @pytest.mark.parametrize("batch", [1, 5, 12, 100])
    def test_codes_are_those_of_each_image_whatever_the_batch(self, batch, noise):
        model, done = CodesOfPixels(uses_top=False), []
        maps = encoding.extract(model, noise, batch, done.append)
        assert maps.names == [f"{i}.png" for i in range(12)]
        np.testing.assert_array_equal(maps.levels["bottom"], noise.pixels[:, 0] // 17)
        np.testing.assert_array_equal(maps.levels["top"][:, 0, 0], (noise.pixels[:, 0] // 17).mean((1, 2)).astype(int))
        assert sum(done) == 12
        assert max(done) <= batch

    def test_a_change_is_given_each_image_with_its_number(self, noise):
        def darken_odd_ones(pixels, items):
            return pixels * torch.from_numpy(1 - items % 2)[:, None, None, None]

        bottom = encoding.extract(CodesOfPixels(uses_top=False), noise, 5, change=darken_odd_ones).levels["bottom"]
        np.testing.assert_array_equal(bottom[::2], noise.pixels[::2, 0] // 17)
        assert not bottom[1::2].any()

    def test_no_image_gives_no_map(self):
        assert encoding.extract(
            CodesOfPixels(uses_top=False), image_set(np.zeros((0, 1, 16, 16), np.uint8)), 4).names == []


class TestFigures:
    def figures(self, noise, uses_top):
        model = CodesOfPixels(uses_top)
        maps = encoding.extract(model, noise, 5)
        return encoding.code_figures(model, noise, maps, 5), maps

    def test_a_level_that_the_decoder_ignores_has_a_shuffle_drop_of_0(self, noise):
        figures, _ = self.figures(noise, uses_top=False)
        assert figures["top"]["used"] > 1
        assert figures["top"]["shuffle_drop"] == 0

    def test_a_level_that_is_all_of_the_image_loses_what_images_do_not_share(self, noise):
        """Its reconstructions are exact (SSIM 1); after the exchange, each is some other image or, rarely, itself."""
        figures, _ = self.figures(noise, uses_top=False)
        pictures = noise.pixels[:, 0]
        between = np.array([[structural_similarity(picture, other, data_range=255, gaussian_weights=True, sigma=1.5,
                                                   use_sample_covariance=False) for other in pictures]
                            for picture in pictures])
        off_diagonal = between[~np.eye(12, dtype=bool)]
        assert 9 / 12 * (1 - off_diagonal.max()) < figures["bottom"]["shuffle_drop"] < 1 - off_diagonal.min()

    def test_a_level_that_the_decoder_needs_has_a_drop(self, noise):
        even, odd = noise.pixels[0, 0] // 17, noise.pixels[1, 0] // 17
        model = CodesOfPixels(uses_top=True)
        maps = CodeMaps(noise.names, {"top": torch.tensor([0, 1] * 6)[:, None, None], "bottom": torch.from_numpy(
            np.stack([even if i % 2 == 0 else 15 - odd for i in range(12)]).astype(np.int64))})
        pictures = image_set(np.stack([even if i % 2 == 0 else odd for i in range(12)])[:, None] * 17)
        figures = encoding.code_figures(model, pictures, maps, 4)
        assert figures["top"]["shuffle_drop"] > 0.3

    def test_figures_are_the_same_whatever_the_batch(self, noise):
        model = CodesOfPixels(uses_top=True)
        maps = encoding.extract(model, noise, 12)
        assert encoding.code_figures(model, noise, maps, 12)["bottom"]["shuffle_drop"] == pytest.approx(
            encoding.code_figures(model, noise, maps, 1)["bottom"]["shuffle_drop"], abs=1e-9)

    def test_use_and_perplexity_are_those_of_the_whole_split(self, noise):
        figures, maps = self.figures(noise, uses_top=False)
        counts = np.bincount(maps.levels["bottom"].numpy().ravel(), minlength=16)
        shares = counts[counts > 0] / counts.sum()
        assert figures["bottom"]["size"] == 16
        assert figures["bottom"]["used"] == (counts > 0).sum()
        assert figures["bottom"]["perplexity"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))

    def test_the_drop_is_left_out_where_it_is_not_wanted(self, noise):
        model = CodesOfPixels(uses_top=False)
        figures = encoding.code_figures(model, noise, encoding.extract(model, noise, 5), 5, with_shuffle_drop=False)
        assert set(figures["top"]) == {"size", "used", "perplexity"}


class TestCollapse:
    """Refused below 8 codes or 2 % of the codebook, warned of below 10 %."""

    @pytest.mark.parametrize(("size", "used", "needed"), [
        (512, 1, 11), (512, 10, 11), (64, 7, 8), (16, 3, 8), (4, 3, 4)])
    def test_a_collapsed_codebook_is_refused_with_its_numbers(self, size, used, needed):
        figures = {"top": {"size": size, "used": size}, "bottom": {"size": size, "used": used}}
        with pytest.raises(UserError, match=rf"^--vqvae brain: expected at least {needed} of {size} bottom codes in "
                                            rf"use on the training images, found {used}: its codebook has collapsed\."):
            encoding.check_codebook_use(figures, "brain")

    @pytest.mark.parametrize(("size", "used"), [(512, 11), (512, 51), (128, 8)])
    def test_a_codebook_of_which_little_is_used_is_warned_of(self, size, used):
        warnings = encoding.check_codebook_use({"top": {"size": size, "used": used}}, "brain")
        assert len(warnings) == 1
        assert warnings[0].startswith(f"warning: only {used} of {size} top codes are in use on the training images. ")

    @pytest.mark.parametrize(("size", "used"), [(512, 52), (512, 512), (16, 8), (4, 4)])
    def test_a_codebook_that_is_used_is_passed_in_silence(self, size, used):
        assert encoding.check_codebook_use({"top": {"size": size, "used": used}}, "brain") == []


def test_codes_of_a_real_chain_are_stored_once_for_both_levels_and_tied_to_its_vqvae(tiny_run):
    prior = Path(tiny_run.bottom / "config.json").read_text()
    with np.load(tiny_run.vqvae / "codes" / "train.npz") as file:
        assert (file["top"].shape, file["bottom"].shape) == ((18, 4, 4), (18, 8, 8))
        assert str(file["vqvae_hash"]) in prior
    assert sorted(path.name for path in (tiny_run.vqvae / "codes").iterdir()) == ["train.npz", "validate.npz"]
