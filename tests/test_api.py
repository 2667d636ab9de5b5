"""Images, codes and embeddings in a user's own program: as the scripts have them, or one line of what is wrong."""

import contextlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_slices
from PIL import Image
from scan_files import block, save

import vqvae2
from vqvae2 import api
from vqvae2.commands import sample
from vqvae2.common.errors import UserError
from vqvae2.images.dataset import load_images, to_bytes
from vqvae2.images.settings import DataSettings
from vqvae2.models import encoding as code_maps
from vqvae2.models.autoencoder import TrainedVqvae, Vqvae
from vqvae2.models.code_maps import CodeMaps
from vqvae2.priors.pixel_cnn import PixelCNN
from vqvae2.sampling import critic
from vqvae2.sampling.inpainting import encode_visible
from vqvae2.settings.parsing import as_dict
from vqvae2.training.settings import TrainVqvae

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "in-python.md"


@pytest.fixture(scope="module")
def vqvae(tiny_run):
    return api.load_vqvae(tiny_run.vqvae, "cpu")


@pytest.fixture(scope="module")
def priors(vqvae, tiny_run):
    return [api.load_prior(getattr(tiny_run, level), level, vqvae, "cpu") for level in ("top", "bottom")]


@pytest.fixture(scope="module")
def split(tiny_run):
    """The nine test images, 32 x 32."""
    return load_images(DataSettings(data=tiny_run.data), ("test",)).splits["test"]


@pytest.fixture(scope="module")
def codes(vqvae, split):
    return api.encode(vqvae, split.pixels)


def untrained(channels=1, levels=1, **settings):
    """A model with random weights, large enough to tell noise from noise, and codebook; 8 x 8 pixels to a top code."""
    torch.manual_seed(0)
    given = TrainVqvae(savename="one", epochs=1, batch=8, levels=levels, channels=8, embedding_dim=4,
                          residual_channels=4, codebook_size=16, downsample=(8,) if levels == 1 else (4, 2), **settings)
    model = Vqvae(given, channels).eval()
    for weights in model.encoder.parameters():
        weights.data *= 3
    for quantizer in model.quantizers.values():
        quantizer.codebook.data.normal_()
        quantizer.started = True
    return TrainedVqvae(model, {"settings": as_dict(given)}, "", Path())


def equal(first, other):
    return list(first) == list(other) and all(torch.equal(first[level], other[level]) for level in first)


class TestLoading:
    def test_a_run_is_found_by_its_name_and_by_its_folder(self, apart, tiny_run):
        (apart / "results").symlink_to(tiny_run.results)
        for name in ("tiny", Path("results/oasis/tiny"), str(tiny_run.vqvae)):
            found = api.load_vqvae(name)
            assert found.hash == api.load_vqvae(tiny_run.vqvae, "cpu").hash
            assert not found.model.training
        elsewhere = api.load_vqvae("tiny", "cpu", results=tiny_run.results)
        assert next(elsewhere.model.parameters()).device == torch.device("cpu")

    def test_no_run_of_this_name_and_a_prior_are_one_line(self, apart, tiny_run):
        (apart / "results").symlink_to(tiny_run.results)
        with pytest.raises(UserError, match=r"load_vqvae tyni: expected a folder with model\.safetensors, or a name in "
                                            r".*, found only tiny, tiny-bottom, tiny-top\. Check the name"):
            api.load_vqvae("tyni")
        with pytest.raises(UserError, match=r"load_vqvae .*tiny-top: expected a VQ-VAE, found a top prior in"):
            api.load_vqvae("tiny-top")


class TestEncode:
    @pytest.mark.parametrize("batch", [1, 4, 9, 32])
    def test_they_are_those_that_the_scripts_extract(self, batch, vqvae, split):
        found = api.encode(vqvae, split.pixels, batch)
        assert equal(found, code_maps.extract(vqvae.model, split, batch).levels)
        assert {level: (codes.dtype, tuple(codes.shape)) for level, codes in found.items()} == {
            "top": (torch.int64, (9, 4, 4)), "bottom": (torch.int64, (9, 8, 8))}
        assert all(len(codes.unique()) > 4 for codes in found.values())

    def test_they_are_those_of_the_files_that_priors_are_trained_on(self, vqvae, tiny_run):
        stored = CodeMaps.load(tiny_run.vqvae / "codes" / "train.npz", vqvae.hash)
        files = [tiny_run.data / name for name in stored.names]
        assert len(files) == 18
        assert equal(api.encode(vqvae, files, 64), stored.levels)

    def test_one_by_one_they_are_those_that_inpainting_starts_from(self, vqvae, split):
        nothing = torch.zeros(32, 32, dtype=torch.bool)
        assert equal(api.encode(vqvae, split.pixels, 1),
                     encode_visible(split.bytes(), nothing, vqvae))

    @pytest.mark.parametrize("form", [
        lambda pixels: pixels[:, 0], lambda pixels: pixels.transpose(0, 2, 3, 1), torch.from_numpy,
        lambda pixels: torch.from_numpy(pixels)[:, 0], lambda pixels: pixels / np.float32(255),
        lambda pixels: pixels.astype(np.uint16) * 257, lambda pixels: (pixels / 255).astype(">f8"),
        lambda pixels: torch.from_numpy(pixels).to(memory_format=torch.channels_last),
        lambda pixels: np.repeat(pixels, 2, 3)[..., ::2],
        lambda pixels: torch.nn.Parameter(torch.from_numpy(pixels) / 255)])
    def test_they_are_the_same_whatever_form_the_same_images_come_in(self, form, vqvae, split, codes):
        assert equal(api.encode(vqvae, form(split.pixels.copy())), codes)

    def test_files_are_read_as_training_reads_them(self, vqvae, split, codes, tiny_run, recwarn):
        files = [tiny_run.data / name for name in split.names]
        assert equal(api.encode(vqvae, files), codes)
        assert equal(api.encode(vqvae, tuple(map(str, files))), codes)
        frozen = split.pixels.copy()
        frozen.flags.writeable = False
        assert equal(api.encode(vqvae, frozen), codes)
        assert not recwarn.list

    @pytest.mark.parametrize(("fit", "box"), [("stretch", None), ("crop", (10, 0, 70, 60))])
    def test_files_are_resized_cropped_and_made_grey_as_they_were_for_the_training(self, fit, box, tmp_path):
        noise = [Image.effect_noise((80, 60), 99) for _ in range(3)]
        Image.merge("RGB", noise).save(tmp_path / "noise.png")
        expected = Image.open(tmp_path / "noise.png").convert("L").resize((16, 16), Image.Resampling.BOX, box=box)
        shown = api.image_picture(untrained(size=16, fit=fit, colours="grey"), [tmp_path / "noise.png"])
        np.testing.assert_array_equal(np.asarray(shown)[::8, ::8], np.asarray(expected))

    @pytest.mark.parametrize("shape", [(1, 1, 8, 24), (3, 1, 16, 16)])
    def test_images_may_have_any_size_that_the_cells_divide(self, shape):
        (top,) = api.encode(untrained(), np.zeros(shape, np.uint8)).values()
        assert top.shape == (shape[0], shape[2] // 8, shape[3] // 8)

    def test_a_model_of_colours_takes_channels_first_or_last_and_grey_files(self, tmp_path):
        pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)
        model = untrained(channels=3)
        found = api.encode(model, pixels)
        assert list(found) == ["top"]
        assert len(found["top"].unique()) > 2
        assert equal(api.encode(model, pixels.transpose(0, 2, 3, 1)), found)
        Image.fromarray(pixels[0, 0]).save(tmp_path / "grey.png")
        Image.fromarray(pixels[0].transpose(1, 2, 0)).save(tmp_path / "colour.png")
        both = api.encode(model, [tmp_path / "grey.png", tmp_path / "colour.png"])
        assert equal(both, api.encode(model, np.stack([pixels[0, :1].repeat(3, 0), pixels[0]])))

    @pytest.mark.parametrize(("images", "said"), [
        (np.zeros((32, 32), np.uint8), r"images: expected the shape \[n, 1, height, width\] or \[n, height, width, 1\],"
                                       r" found \[32, 32\]\. Make a batch of one image with images\[None\]\."),
        (np.zeros((2, 3, 32, 32), np.uint8), r"images: .* found \[2, 3, 32, 32\]\. Convert them: .* grey images\."),
        (np.zeros((0, 1, 32, 32), np.uint8), r"images: expected at least 1, found 0\."),
        (np.zeros((2, 1, 36, 32), np.uint8), r"images: expected a height and a width that 8 divides, found 36 by 32\."),
        (np.zeros((32, 32, 3), np.uint8), r"a height and a width that 8 divides, found 32 by 3\."),
        (np.zeros((2, 32, 32), np.int64), r"images: expected uint8, uint16 or floats in 0…1, found int64\. Convert"),
        (np.zeros((2, 32, 32), bool), r"images: .* found bool\. Convert"),
        (np.full((2, 32, 32), 255.0), r"images: expected floats in 0…1, found 255 to 255\. Divide 8-bit values by 255"),
        (torch.linspace(-1.5, 2, 1024).view(1, 32, 32), r"images: expected floats in 0…1, found -1\.5 to 2\."),
        (np.full((2, 32, 32), np.nan), r"images: expected floats in 0…1, found nan to nan\."),
        ([], r"images: expected an array, a tensor or a list of image files, found an empty list\."),
        ("brain.png", r"images: expected an array, a tensor or a list of image files, found a str\. Give \[path\]"),
        (Path("brain.png"), r"images: .* found a PosixPath\. Give \[path\]"),
        ([np.zeros((32, 32))], r"images: .* found a list\. .*numpy\.stack"),
        (["no-such.png"], r"no-such\.png: expected an image, found nothing\.")])
    def test_what_is_no_batch_of_images_is_one_line(self, images, said, vqvae):
        with pytest.raises(UserError, match=said):
            api.encode(vqvae, images)

    def test_one_image_for_a_model_of_colours_is_one_line(self):
        with pytest.raises(UserError, match=r"the shape \[n, 3, height, width\] or \[n, height, width, 3\], found "
                                            r"\[32, 32, 3\]\. Make a batch of one"):
            api.encode(untrained(channels=3), np.zeros((32, 32, 3), np.uint8))
        with pytest.raises(UserError, match=r"found \[2, 1, 32, 32\]\. Convert them: .* on colour images"):
            api.encode(untrained(channels=3), np.zeros((2, 1, 32, 32), np.uint8))

    def test_files_that_do_not_fit_are_named(self, vqvae, tmp_path):
        for name, pixels in (("a", np.zeros((32, 32), np.uint8)), ("b", np.zeros((40, 32), np.uint8)),
                             ("c", np.zeros((32, 32), np.uint16)), ("d", np.full((32, 32, 3), [9, 5, 0], np.uint8))):
            Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        for name, said in (("b", r"b\.png: expected uint8 pixels of 32 by 32 as in .*a\.png, found uint8 of 40 by 32"),
                           ("c", r"c\.png: .* found uint16 of 32 by 32\."),
                           ("d", r"d\.png: expected a grey image, .* found colours\. Make it grey")):
            with pytest.raises(UserError, match=said):
                api.encode(vqvae, [tmp_path / "a.png", tmp_path / f"{name}.png"])

    def test_a_batch_of_none_is_one_line(self, vqvae, split, codes):
        with pytest.raises(UserError, match=r"batch: expected at least 1 image, found 0\. The default is 32"):
            api.encode(vqvae, split.pixels, 0)
        with pytest.raises(UserError, match=r"batch: expected at least 1 image, found -1\."):
            api.decode(vqvae, codes, -1)


class TestEmbeddingsAndDecode:
    def test_embeddings_are_the_rows_of_the_codebook(self, vqvae, codes):
        found = api.embeddings(vqvae, codes)
        for level, maps in codes.items():
            codebook = vqvae.model.quantizers[level].codebook.detach().numpy()
            np.testing.assert_array_equal(found[level].numpy(), codebook[maps.numpy()].transpose(0, 3, 1, 2))
            assert found[level].dtype == torch.float32
            assert not found[level].requires_grad
        assert found["top"].shape == (9, 8, 4, 4)
        assert found["bottom"].shape == (9, 8, 8, 8)

    @pytest.mark.parametrize("batch", [1, 4, 32])
    def test_images_of_images_are_the_reconstructions_that_evaluate_judges(self, batch, vqvae, split):
        found = api.decode(vqvae, api.encode(vqvae, split.pixels, batch), batch)
        assert torch.equal(to_bytes(found), code_maps.reconstruct(vqvae.model, split, batch)[1])
        assert (found.dtype, tuple(found.shape)) == (torch.float32, (9, 1, 32, 32))
        assert 0 <= found.min() < found.max() <= 1
        assert (found - torch.from_numpy(split.pixels / 255)).abs().mean() < 0.15

    def test_images_of_codes_that_sample_py_drew_are_its_images(self, vqvae, tiny_run, apart):
        sample.main(["--vqvae", str(tiny_run.vqvae), "--top", str(tiny_run.top), "--bottom", str(tiny_run.bottom),
                     "--count", "3", "--out", "new"])
        with np.load("new/codes.npz") as file:
            made = api.decode(vqvae, {level: file[level] for level in ("top", "bottom")}, batch=1)
            assert file["top"].dtype == np.int16
        for number, image in enumerate(to_bytes(made)):
            np.testing.assert_array_equal(image[0].numpy(), np.asarray(Image.open(f"new/images/{number:06d}.png")))

    def test_codes_of_ones_own_are_completed_by_sample_py(self, vqvae, codes, tiny_run, apart):
        gaps = {level: maps.clone() for level, maps in codes.items()}
        gaps["top"][:, 2:], gaps["bottom"][:, 4:] = -1, -1
        CodeMaps([f"brain-{number}" for number in range(9)], gaps).save(Path("gaps.npz"), vqvae.hash, "")
        sample.main(["--vqvae", str(tiny_run.vqvae), "--top", str(tiny_run.top), "--bottom", str(tiny_run.bottom),
                     "--inpaint", "gaps.npz", "--count", "1", "--out", "completed"])
        found = CodeMaps.load(Path("completed/codes.npz"), vqvae.hash).levels
        assert torch.equal(found["top"][:, :2], codes["top"][:, :2])
        assert torch.equal(found["bottom"][:, :4], codes["bottom"][:, :4])
        assert api.decode(vqvae, found).shape == (9, 1, 32, 32)

    def test_each_level_can_be_exchanged_between_images(self, vqvae, codes):
        plain = api.decode(vqvae, codes)
        for level in codes:
            changed = api.decode(vqvae, {**codes, level: codes[level].roll(1, 0)})
            assert not torch.equal(changed, plain)
            assert not torch.equal(changed, plain.roll(1, 0))

    def test_one_level_has_the_top_alone(self):
        model = untrained()
        codes = api.encode(model, np.random.default_rng(0).random((2, 16, 16)))
        assert list(codes) == list(api.embeddings(model, codes)) == ["top"]
        assert api.decode(model, codes).shape == (2, 1, 16, 16)
        with pytest.raises(UserError, match=r"codes: expected a dict with the level\(s\) top, found top and bottom\."):
            api.decode(model, {**codes, "bottom": codes["top"]})

    @pytest.mark.parametrize("function", [api.embeddings, api.decode,
                                          api.code_pictures])
    @pytest.mark.parametrize(("changed", "said"), [
        (lambda codes: codes["top"], r"codes: expected a dict with the level\(s\) top and bottom, found a Tensor\. "
                                     r"Give what encode returns"),
        (lambda codes: {"top": codes["top"]}, r"codes: expected a dict .* top and bottom, found top\."),
        (lambda codes: {}, r"codes: expected a dict .*, found none\."),
        (lambda codes: {**codes, "top": codes["top"].float()}, r'codes\["top"\]: expected integers, found float32\.'),
        (lambda codes: {**codes, "top": codes["top"] > 3}, r'codes\["top"\]: expected integers, found bool\.'),
        (lambda codes: {**codes, "bottom": codes["bottom"] * 0 + 16}, r'codes\["bottom"\]: expected codes of 0 to 15, '
                                                                     r"found 16 to 16\. Codes of another model"),
        (lambda codes: {**codes, "top": codes["top"] * 0 - 1}, r'codes\["top"\]: .* found -1 to -1\. .* vqvae2 sample'),
        (lambda codes: {**codes, "top": codes["top"][0]}, r'codes\["top"\]: expected the shape \[n, height, width\], n '
                                                          r"at least 1, found \[4, 4\]\. Make a batch of one map"),
        (lambda codes: {level: maps[:0] for level, maps in codes.items()}, r'codes\["top"\]: .* found \[0, 4, 4\]\.'),
        (lambda codes: {**codes, "bottom": codes["bottom"][:5]},
         r'codes\["bottom"\]: expected the shape \[9, 8, 8\] beside top codes of shape \[9, 4, 4\], found '
         r"\[5, 8, 8\]\. Give both levels of the same images"),
        (lambda codes: {**codes, "bottom": codes["bottom"][:, :, :6]}, r'codes\["bottom"\]: .* found \[9, 8, 6\]\.')])
    def test_what_this_model_cannot_have_made_is_one_line(self, function, changed, said, vqvae, codes):
        with pytest.raises(UserError, match=said):
            function(vqvae, changed(codes))


class TestPictures:
    def test_equal_codes_have_equal_colours_and_others_others(self, vqvae):
        """All 16 codes in a row: the bottom's cells are 16 pixels in a picture of 128, the top's 32."""
        codes = {"top": torch.arange(16).view(1, 4, 4), "bottom": torch.arange(64).view(1, 8, 8) % 16}
        pictures = api.code_pictures(vqvae, codes)
        assert list(pictures) == ["top", "bottom"]
        top, bottom = (np.asarray(pictures[level])[::cell, ::cell].reshape(-1, 3) for level, cell in
                       (("top", 32), ("bottom", 16)))
        assert len(np.unique(top, axis=0)) == 16
        np.testing.assert_array_equal(bottom, np.tile(top, (4, 1)))

    def test_greys_are_the_numbers_of_the_codes(self, vqvae):
        """The step from one to the next of 16 codes is 255 / 15 = 17."""
        codes = {"top": torch.arange(16).view(1, 4, 4), "bottom": np.full((1, 8, 8), 3)}
        pictures = api.code_pictures(vqvae, codes, grey=True)
        assert np.asarray(pictures["top"])[::32, ::32].tolist() == (17 * np.arange(16).reshape(4, 4)).tolist()
        assert np.unique(np.asarray(pictures["bottom"])).tolist() == [51]

    def test_images_and_codes_lie_beside_each_other(self, vqvae, split, codes, tmp_path):
        shown = api.image_picture(vqvae, split.pixels, columns=5)
        sizes = {picture.size for more in ({}, {"grey": True})
                 for picture in api.code_pictures(vqvae, codes, columns=5, **more).values()}
        assert sizes == {shown.size} == {(5 * 128 + 4 * 4, 2 * 128 + 4)}
        np.testing.assert_array_equal(np.asarray(shown)[:128:4, 132:260:4], split.pixels[1, 0])
        again = api.image_picture(vqvae, split.pixels[:, 0] / 255, columns=5)
        np.testing.assert_array_equal(np.asarray(again), np.asarray(shown))
        shown.save(tmp_path / "images.png")
        assert Image.open(tmp_path / "images.png").size == shown.size

    def test_images_in_colour_are_shown_in_colour(self):
        pixels = np.random.default_rng(0).integers(0, 256, (1, 128, 128, 3), dtype=np.uint8)
        np.testing.assert_array_equal(np.asarray(api.image_picture(untrained(channels=3), pixels)), pixels[0])


class TestWholeChain:
    @pytest.mark.parametrize("settings", [{"seed": 1, "batch": 2}, {"temperature": 0.5, "top_k": (2, 3), "reject": 2},
                                          {"reject": 2, "reject_by": "classifier"}])
    def test_samples_are_those_of_the_command(self, settings, vqvae, priors, tiny_run, apart, monkeypatch):
        for name, few in (("DRAWN", 8), ("STEPS", 2)):
            monkeypatch.setattr(critic, name, few)
        flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())
        sample.main(["--vqvae", str(tiny_run.vqvae), "--top", str(tiny_run.top), "--bottom", str(tiny_run.bottom),
                     "--count", "3", "--out", "new", *re.sub(r"[(,)]", "", flags).split()])
        images, codes = api.sample(vqvae, *priors, count=3, **settings)
        assert (images.dtype, tuple(images.shape)) == (torch.uint8, (3, 1, 32, 32))
        for number, image in enumerate(images):
            np.testing.assert_array_equal(image[0].numpy(), np.asarray(Image.open(f"new/images/{number:06d}.png")))
        assert equal(codes, CodeMaps.load(Path("new/codes.npz"), vqvae.hash).levels)

    @pytest.mark.parametrize("mask", ["left", np.arange(32)[None].repeat(32, 0) < 16])
    def test_completions_are_those_of_the_command_and_keep_what_is_visible(self, mask, vqvae, priors, split, tiny_run,
                                                                           apart):
        files = [tiny_run.data / name for name in split.names[:2]]
        images, codes = api.complete(vqvae, *priors, files, mask, count=2, blend=1, seed=3)
        assert images.shape == (4, 1, 32, 32)
        assert codes["bottom"].shape == (4, 8, 8)
        assert torch.equal(images[2:, :, :, 18:], torch.from_numpy(split.pixels[[1, 1]])[..., 18:])
        Path("two").mkdir()
        for number, file in enumerate(files):
            Path(f"two/{number}.png").symlink_to(file)
        sample.main(["--vqvae", str(tiny_run.vqvae), "--top", str(tiny_run.top), "--bottom", str(tiny_run.bottom),
                     "--inpaint", "two", "--mask", "left", "--count", "2", "--blend", "1", "--seed", "3",
                     "--out", "new"])
        for image, name in zip(images, ("0-000000", "0-000001", "1-000000", "1-000001")):
            np.testing.assert_array_equal(image[0].numpy(), np.asarray(Image.open(f"new/images/{name}.png")))

    @pytest.mark.parametrize(("mask", "said"), [
        (np.zeros((32, 32), bool), r"mask: expected booleans of shape \[32, 32\], at least one True, found bool of"),
        (np.ones((32, 32)), r"mask: .* found float64 of shape \[32, 32\]\. True is drawn anew"),
        (np.ones((16, 32), bool), r"mask: .* found bool of shape \[16, 32\]")])
    def test_a_mask_that_does_not_fit_is_one_line(self, mask, said, vqvae, priors, split):
        with pytest.raises(UserError, match=said):
            api.complete(vqvae, *priors, split.pixels, mask)

    def test_a_missing_prior_and_a_prior_of_another_level_are_one_line(self, vqvae, priors, tiny_run):
        with pytest.raises(UserError, match=r"priors: expected one of each level: top and bottom, found top\. Load"):
            api.sample(vqvae, priors[0], count=1)
        with pytest.raises(UserError, match=r"--bottom .*: expected a bottom prior, found a top prior"):
            api.load_prior(tiny_run.top, "bottom", vqvae)

    def test_compress_and_decompress_are_the_commands_own(self, tiny_run, split, apart):
        own = tiny_run.vqvae, tiny_run.top, tiny_run.bottom
        report = api.compress(*own, [tiny_run.data / split.names[0]], "small")
        assert report["files"] == report["slices"] == 1
        assert report["bytes"] == sum(path.stat().st_size for path in Path("small").glob("*.vqmri"))
        assert api.decompress(*own, ["small"], "again") == {"files": 1, "slices": 1, "lost": []}
        assert len(list(Path("again").glob("*.png"))) == 1

    def test_evaluate_predict_and_load_images_are_the_commands_own(self, tiny_run, split, apart):
        judged = api.evaluate(tiny_run.vqvae, "report", data=str(tiny_run.data), split="validate")
        assert judged.metrics == json.loads(Path("report/metrics.json").read_text())
        assert judged.metrics["split"] == "validate"
        predicted = api.predict(tiny_run.vqvae, [tiny_run.data / split.names[0]], "predicted")
        assert predicted["images"] == 1
        assert Path("predicted/metrics.csv").is_file()
        loaded = api.load_images(tiny_run.data, ["test"]).splits
        np.testing.assert_array_equal(loaded["test"].pixels, split.pixels)

    def test_a_preset_is_not_taken_and_ignored(self, apart):
        with pytest.raises(UserError, match=r"extract_slices: expected settings by their names, found preset\."):
            api.extract_slices(apart, apart / "out", preset="brain-128")

    def test_slices_are_extracted_with_the_settings_of_the_command(self, apart):
        for number in range(1, 7):
            save(Path(f"scans/sub-{number:02d}/anat/sub-{number:02d}_T1w.nii.gz"), block(seed=number))
        lines = api.extract_slices("scans", "slices", size=32, per_scan=2, workers=1)
        assert "used 6 scans" in lines[0]
        assert len(list(Path("slices").rglob("*.png"))) == 12


class TestPublicNames:
    def test_each_public_name_is_there_and_the_classes_are_the_project_s_own(self):
        for name in vqvae2.__all__:
            assert name in dir(vqvae2)
            assert getattr(vqvae2, name) is not None
        found = (vqvae2.encode, vqvae2.Vqvae, vqvae2.PixelCNN, vqvae2.UserError)
        assert found == (api.encode, Vqvae, PixelCNN, UserError)
        with pytest.raises(AttributeError, match=r"module 'vqvae2' has no attribute 'translate'"):
            vqvae2.translate  # noqa: B018

    def test_every_function_of_the_interface_is_public(self):
        own = {name for name, value in vars(api).items()
               if getattr(value, "__module__", "") == api.__name__ and not name.startswith("_")}
        assert own <= set(vqvae2.__all__)


def test_the_worked_example_runs_and_prints_what_the_page_says(apart):
    text = PAGE.read_text(encoding="utf-8")
    program = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    printed = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    printed = [line for line in printed if line not in [code[4:] for code in program.splitlines()]]
    write_slices(apart / "slices", size=128)
    (apart / "pretrained").symlink_to(ROOT / "pretrained")
    with contextlib.redirect_stdout(io.StringIO()) as screen:
        exec(compile(program, str(PAGE), "exec"), {})
    assert screen.getvalue().splitlines() == printed
    assert {path.name for path in apart.glob("*.png")} == {"images.png", "reconstructions.png", "top.png", "bottom.png",
                                                           "top-grey.png", "exchanged.png"}
    assert (apart / "lower-half.npz").is_file()


def test_every_function_stands_in_the_page():
    own = {name for name, value in vars(api).items()
           if getattr(value, "__module__", "") == api.__name__ and not name.startswith("_")}
    assert own == set(re.findall(r"^\| `(\w+)\([\w, ]+\)` \| ", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
