"""What a mask hides gets into no completion, what it shows stays, and what does not fit is refused before any work."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import files_in
from PIL import Image

from vqvae2.commands import sample
from vqvae2.images.dataset import unique_names
from vqvae2.models.autoencoder import TrainedVqvae, Vqvae, load_vqvae
from vqvae2.models.code_maps import CodeMaps
from vqvae2.plots import pictures as plots
from vqvae2.sampling import inpainting, writing
from vqvae2.sampling.inpainting import IncompleteImages, encode_visible
from vqvae2.training.settings import TrainVqvae

SIDE = 32


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def save(pixels: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def hidden_by(mask: str) -> np.ndarray:
    """Bool [32, 32], as a person would say it of a picture on the wall."""
    places = np.zeros((SIDE, SIDE), bool)
    half = SIDE // 2
    views = {"left": places[:, :half], "right": places[:, half:], "upper": places[:half], "lower": places[half:]}
    views[mask][:] = True
    return places


@pytest.fixture(scope="module")
def models(tiny_run):
    return ["--vqvae", tiny_run.vqvae, "--top", tiny_run.top, "--bottom", tiny_run.bottom]


@pytest.fixture
def complete(models, apart):
    """Run sample.py --inpaint; return its folder."""
    def run(given, *more, out="out"):
        sample.main([str(argument) for argument in [*models, "--inpaint", given, "--out", out, *more]])
        return Path(out)
    return run


@pytest.fixture
def pictures(tiny_slices, apart):
    """Two of the test images in a folder."""
    for path in sorted((tiny_slices / "test").glob("*.png"))[:4:3]:
        (apart / "in").mkdir(exist_ok=True)
        shutil.copy(path, apart / "in")
    return apart / "in"


@pytest.fixture(scope="module")
def vqvae(tiny_run):
    return load_vqvae(str(tiny_run.vqvae), torch.device("cpu"))


class TestWhatIsDrawn:
    @pytest.mark.parametrize("mask", ["left", "right", "upper", "lower"])
    def test_a_half_is_drawn_and_the_other_is_the_originals_own(self, mask, complete, pictures):
        out, hidden = complete(pictures, "--mask", mask, "--count", 1), hidden_by(mask)
        for path in pictures.glob("*.png"):
            original, made = picture(path), picture(out / "images" / f"{path.stem}-000000.png")
            assert np.array_equal(made[~hidden], original[~hidden])
            assert not np.array_equal(made[hidden], original[hidden])

    def test_two_images_that_differ_under_the_mask_alone_have_the_same_completions(self, complete, pictures, apart):
        """Other pixels under the mask, another name, and another place in the folder."""
        first = sorted(pictures.glob("*.png"))[0]
        other = picture(first)
        other[hidden_by("left")] = np.random.default_rng(0).integers(0, 256, SIDE * SIDE // 2)
        shutil.copytree(pictures, apart / "others")
        (apart / "others" / first.name).unlink()
        save(other, apart / "others" / "zzz.png")
        out = [complete(pictures, "--mask", "left", out="a"), complete(apart / "others", "--mask", "left", out="b")]
        for number in range(4):
            made, again = (picture(folder / "images" / f"{name}-{number:06d}.png")
                           for folder, name in zip(out, (first.stem, "zzz")))
            assert np.array_equal(made, again)
        assert len({picture(path).tobytes() for path in (out[1] / "images").glob("zzz-*")}) == 4

    def test_a_mask_over_everything_leaves_new_images(self, complete, pictures, models, apart):
        """Completion k has the random numbers of image k."""
        mask = save(np.full((SIDE, SIDE), 255, np.uint8), apart / "all.png")
        out = complete(pictures, "--mask", mask, "--count", 2)
        sample.main([str(argument) for argument in [*models, "--count", 2, "--out", "new"]])
        for path in pictures.glob("*.png"):
            for number in range(2):
                assert np.array_equal(picture(out / "images" / f"{path.stem}-{number:06d}.png"),
                                      picture(Path(f"new/images/{number:06d}.png")))

    def test_codes_that_stay_are_those_of_the_image_with_0_where_it_is_hidden(self, complete, pictures, vqvae):
        out = complete(pictures, "--mask", "upper", "--count", 1)
        codes = CodeMaps.load(out / "codes.npz", vqvae.hash)
        for item, path in enumerate(sorted(pictures.glob("*.png"))):
            pixels = picture(path) * ~hidden_by("upper")
            expected = vqvae.model.encode(torch.from_numpy(pixels)[None, None] / 255)
            assert codes.names[item] == f"images/{path.stem}-000000.png"
            for level, maps in expected.items():
                lower = slice(maps.shape[1] // 2, None)
                assert torch.equal(codes.levels[level][item, lower], maps[0, lower]), level

    @pytest.mark.parametrize(("row", "column"), [(0, 0), (13, 22), (31, 31)])
    def test_every_code_whose_cell_a_hidden_pixel_reaches_is_drawn_and_no_other(self, row, column, vqvae, pictures):
        """One pixel reaches one bottom code (4 x 4 pixels) and one top code (8 x 8)."""
        hidden = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        hidden[row, column] = True
        original = torch.from_numpy(picture(sorted(pictures.glob("*.png"))[0]))[None, None]
        found = encode_visible(original, hidden, vqvae)
        for level, cell in (("top", 8), ("bottom", 4)):
            assert (found[level] == -1).nonzero().tolist() == [[0, row // cell, column // cell]]

    def test_one_level_has_cells_of_its_own(self):
        settings = TrainVqvae(savename="one", epochs=1, batch=8, levels=1, channels=8, embedding_dim=8,
                                 residual_channels=4, codebook_size=16, downsample=(8,))
        one_level = TrainedVqvae(Vqvae(settings).eval(), {"image_shape": [1, SIDE, SIDE]}, "", Path())
        hidden = torch.from_numpy(hidden_by("right"))
        found = encode_visible(torch.zeros(1, 1, SIDE, SIDE, dtype=torch.uint8), hidden, one_level)
        assert set(found) == {"top"}
        assert (found["top"] == -1).tolist() == [4 * [[False, False, True, True]]]
        assert inpainting.code_grids(one_level) == {"top": (4, 4)}

    def test_what_is_white_or_nearly_so_in_a_file_is_drawn(self, complete, pictures, apart):
        """A mask in colour with a grey edge: more than half of white counts."""
        mask = np.zeros((SIDE, SIDE, 3), np.uint8)
        mask[8:16, 8:16], mask[16:20, 8:16] = (250, 255, 245), 100
        out = complete(pictures, "--mask", save(mask, apart / "mask.png"), "--count", 1)
        hidden = mask[..., 0] > 200
        for path in pictures.glob("*.png"):
            made = picture(out / "images" / f"{path.stem}-000000.png")
            assert np.array_equal(made[~hidden], picture(path)[~hidden])


    @pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
    def test_what_is_transparent_in_a_file_is_not_white(self, mode, complete, pictures, apart):
        """Many programs save transparent pixels as white ones that cannot be seen."""
        hidden = np.zeros((SIDE, SIDE), np.uint8)
        hidden[8:16, 4:20] = 255
        if mode == "P":
            mask = Image.fromarray(hidden // 255, "P")
            mask.putpalette([255] * 6)
            mask.save(apart / "mask.png", transparency=0)
        else:
            white = [np.full_like(hidden, 255)] * (len(mode) - 1)
            save(np.stack([*white, hidden], 2), apart / "mask.png")
        out = complete(pictures, "--mask", "mask.png", "--count", 1)
        for path in pictures.glob("*.png"):
            made = picture(out / "images" / f"{path.stem}-000000.png")
            assert np.array_equal(made[hidden == 0], picture(path)[hidden == 0])
            assert not np.array_equal(made[hidden > 0], picture(path)[hidden > 0])


class TestSeam:
    def test_a_seam_wider_than_the_picture_costs_no_more_than_one_of_its_width(self, monkeypatch):
        steps = []
        grow = inpainting.functional.max_pool2d
        monkeypatch.setattr(inpainting.functional, "max_pool2d", lambda *a, **b: steps.append(1) or grow(*a, **b))
        hidden = torch.tensor([[[True, False, False, False]]])
        assert inpainting.blend_weights(hidden, 999)[0, 0].tolist() == pytest.approx([1, 0.999, 0.998, 0.997])
        assert len(steps) <= 4

    def test_a_completion_fades_into_the_original_outside_of_the_mask_alone(self):
        """Over 2 pixels: 1, 1 | 2/3, 1/3, 0, 0. A white completion of a black image is 255 times that."""
        hidden = torch.tensor([[[True, True, False, False, False, False]]])
        weight = inpainting.blend_weights(hidden, 2)
        assert weight[0, 0].tolist() == pytest.approx([1, 1, 2 / 3, 1 / 3, 0, 0])
        incomplete = IncompleteImages(["a"], {}, weight, torch.zeros(1, 1, 1, 6, dtype=torch.uint8), {})
        white = torch.full((1, 1, 6), 255, dtype=torch.uint8)
        assert incomplete.completed(0, white).flatten().tolist() == [255, 255, 170, 85, 0, 0]

    def test_what_is_hidden_does_not_shine_through(self, complete, pictures):
        plain = complete(pictures, "--mask", "left", "--count", 1, out="plain")
        faded = complete(pictures, "--mask", "left", "--count", 1, "--blend", 3, out="faded")
        hidden = hidden_by("left")
        for path in (plain / "images").glob("*.png"):
            made, seam = picture(path), picture(faded / "images" / path.name)
            assert np.array_equal(made[hidden], seam[hidden])
            assert np.array_equal(made[:, SIDE // 2 + 3:], seam[:, SIDE // 2 + 3:])
            assert not np.array_equal(made[:, SIDE // 2:], seam[:, SIDE // 2:])


class TestCodeFiles:
    def test_codes_marked_minus_1_are_drawn_and_all_others_stay(self, complete, models, vqvae, apart):
        sample.main([str(argument) for argument in [*models, "--count", 3, "--out", "new"]])
        maps = CodeMaps.load(Path("new/codes.npz"), vqvae.hash)
        maps.levels["bottom"][:2, 5:] = -1
        maps.levels["top"][0, 3] = -1
        maps.save(Path("gaps.npz"), vqvae.hash, "")
        out = complete("gaps.npz", "--count", 2, "--seed", 1)
        found = CodeMaps.load(out / "codes.npz", vqvae.hash)
        assert found.names[:3] == ["images/000000-000000.png", "images/000000-000001.png", "images/000001-000000.png"]
        for level, codes in found.levels.items():
            given = maps.levels[level].repeat_interleave(2, 0)
            assert torch.equal(codes[given >= 0], given[given >= 0])
            assert (codes >= 0).all()
        assert not torch.equal(found.levels["bottom"][0], found.levels["bottom"][1])
        whole = picture(out / "images" / "000002-000001.png")  # nothing was missing there
        assert np.array_equal(whole, picture(Path("new/images/000002.png")))

    @pytest.mark.parametrize(("spoil", "said"), [
        (lambda maps: maps.levels["bottom"].clamp_(min=0), r"expected at least one code marked -1, found none\. What"),
        (lambda maps: maps.levels["top"].add_(16), r"expected top codes of 0 to 15, or -1, found \d+ to \d+\. Make"),
        (lambda maps: maps.levels.update(top=maps.levels["top"][:, :2]),
         r"top codes of shape \(3, 4, 4\), found \(3, 2"),
        (lambda maps: maps.levels.pop("bottom"), r"expected bottom codes of shape \(3, 8, 8\), found none\. Make")])
    def test_a_file_that_does_not_fit_is_refused(self, spoil, said, models, vqvae, refusal, apart):
        maps = CodeMaps(list("abc"), {"top": torch.zeros(3, 4, 4).long(), "bottom": torch.full((3, 8, 8), -1)})
        spoil(maps)
        maps.save(Path("gaps.npz"), vqvae.hash, "")
        line = refusal(sample.main, *models, "--out", "out", "--inpaint", "gaps.npz")
        assert re.match(rf"--inpaint gaps\.npz: .*{said}", line), line
        assert set(files_in(apart)) == {"gaps.npz"}

    @pytest.mark.parametrize(("name", "values", "said"), [
        ("image", ["a", "b", "a"], r"a name for each image that a file can have, no two alike, found 'a'\. Rename"),
        ("image", ["a", "b\0c", "d"], r"a name for each image that a file can have, .* found 'b\\x00c'\. Rename it"),
        ("top", np.full((3, 4, 4), 0.7), r"expected top codes that are integers, found float64\. Make the file again"),
        ("top", np.full((3, 4, 4), np.nan), r"expected top codes that are integers, found float64\. Make"),
        ("bottom", np.full((3, 8, 8), True), r"expected bottom codes that are integers, found bool\. Make"),
        ("bottom", np.full((3, 8, 8), "-1"), r"expected bottom codes that are integers, found <U2\. Make")])
    def test_names_and_numbers_that_would_be_changed_in_silence_are_refused(self, name, values, said, models, vqvae,
                                                                          refusal, apart):
        given = {"image": list("abc"), "top": np.zeros((3, 4, 4), np.int16), "bottom": np.full((3, 8, 8), -1)}
        np.savez("gaps.npz", **{**given, name: values}, vqvae_hash=vqvae.hash)
        line = refusal(sample.main, *models, "--out", "out", "--inpaint", "gaps.npz")
        assert re.match(rf"--inpaint gaps\.npz: .*{said}", line), line
        assert set(files_in(apart)) == {"gaps.npz"}

    @pytest.mark.parametrize(("place", "value"), [(6, 1), (8, 99)], ids=["encrypted", "packed in an unknown way"])
    def test_a_damaged_file_is_refused(self, place, value, models, vqvae, refusal, apart):
        """The bytes of the first entry in the archive's list."""
        CodeMaps(["a"], {"top": torch.full((1, 4, 4), -1)}).save(Path("gaps.npz"), vqvae.hash, "")
        content = bytearray(Path("gaps.npz").read_bytes())
        content[content.index(b"PK\x01\x02") + 2 + place] = value
        Path("gaps.npz").write_bytes(content)
        line = refusal(sample.main, *models, "--out", "out", "--inpaint", "gaps.npz")
        assert re.match(r"--inpaint gaps\.npz: expected a code file with image, top, bottom and vqvae_hash, fo", line)

    @pytest.mark.parametrize(("given", "more"), [
        ("codes.npz", []), ("images", ["--mask", "left"]), ("images/000001.png", ["--mask", "grid.png"])])
    def test_what_is_given_is_never_replaced(self, given, more, models, vqvae, pictures, refusal, apart, monkeypatch):
        """Everything is in one folder, which is --out too."""
        CodeMaps(["a"], {"top": torch.full((1, 4, 4), -1), "bottom": torch.full((1, 8, 8), -1)}).save(
            apart / "in" / "codes.npz", vqvae.hash, "")
        first = sorted(pictures.glob("*.png"))[0]
        save(picture(first), pictures / "images" / "000001.png")
        save(np.where(hidden_by("left"), 255, 0).astype(np.uint8), pictures / "grid.png")
        monkeypatch.chdir(pictures)
        before = files_in(pictures)
        line = refusal(sample.main, *models, "--out", ".", "--inpaint", given, *more)
        assert re.match(r"--out \.: expected .* sample\.py made, or one without images, codes\.npz, grid\.png, f", line)
        assert files_in(pictures) == before

    def test_codes_of_another_vqvae_are_refused(self, models, vqvae, refusal, apart):
        CodeMaps(["a"], {"top": torch.full((1, 4, 4), -1)}).save(Path("gaps.npz"), "0123456789", "")
        line = refusal(sample.main, *models, "--out", "out", "--inpaint", "gaps.npz")
        assert re.search(rf"expected codes of --vqvae .* \({vqvae.hash[:6]}\), found 012345\. Give", line), line


class TestNames:
    def test_names_are_those_of_the_files_and_unique_whatever_the_file_system(self):
        assert unique_names(["b/one.png", "a/two.png"]) == ["one", "two"]
        names = unique_names(["a/x.png", "b/X.png", "y.png"])
        assert [name[:2] for name in names] == ["x_", "X_", "y"]
        assert all(re.fullmatch(r"[xX]_[0-9a-f]{8}", name) for name in names[:2])

    def test_a_name_does_not_depend_on_the_place_in_the_folder(self):
        assert unique_names(["0.png", "a/x.png", "b/x.png"])[1] == unique_names(["a/x.png", "b/x.png"])[0]

    def test_sub_folders_are_looked_into_and_hidden_or_other_files_are_not(self, complete, pictures):
        first, second = sorted(pictures.glob("*.png"))
        save(picture(first), pictures / "deeper" / first.name)
        (pictures / ".hidden.png").write_text("no image")
        (pictures / "notes.txt").write_text("no image")
        out = complete(pictures, "--mask", "left", "--count", 1)
        names = sorted(path.stem for path in (out / "images").glob("*"))
        assert names == sorted(f"{name}-000000" for name in unique_names(
            [f"deeper/{first.name}", first.name, second.name]))

    def test_one_file_will_do(self, complete, pictures):
        out = complete(sorted(pictures.glob("*.png"))[0], "--mask", "left", "--count", 2)
        assert len(list((out / "images").glob("*.png"))) == 2


class TestGrid:
    def test_it_has_a_row_for_each_image_and_columns_for_what_was_given_and_what_was_made(self, complete, pictures):
        out = complete(pictures, "--mask", "left", "--count", 3)
        grid = Image.open(out / "grid.png")
        side, gap = 128, 2
        assert grid.size == (plots.LABEL_WIDTH + 5 * (side + gap), 2 * plots.TEXT_SIZE + 2 * (side + gap))
        pixels = np.array(grid.convert("L"))[2 * plots.TEXT_SIZE + gap:, plots.LABEL_WIDTH:]
        original, masked, made = (pixels[:side:4, column * (side + gap):][:, :side:4] for column in (0, 1, 2))
        first = sorted(pictures.glob("*.png"))[0]
        assert np.array_equal(original, picture(first))
        assert (masked[hidden_by("left")] == inpainting.GREY).all()
        assert np.array_equal(masked[~hidden_by("left")], original[~hidden_by("left")])
        assert np.array_equal(made, picture(out / "images" / f"{first.stem}-000000.png"))

    def test_it_stays_small_for_many_images(self, complete, pictures, apart):
        first = picture(sorted(pictures.glob("*.png"))[0])
        for number in range(writing.MOST_ROWS + 3):
            save(first, apart / "many" / f"{number}.png")
        out = complete(apart / "many", "--mask", "left", "--count", 1)
        assert Image.open(out / "grid.png").height < (writing.MOST_ROWS + 1) * 130
        assert len(list((out / "images").glob("*"))) == writing.MOST_ROWS + 3


class TestRefusals:
    @pytest.mark.parametrize(("arguments", "said"), [
        (["--inpaint", "nowhere", "--mask", "left"],
         r"--inpaint nowhere: expected a folder of images or a code file .*, found nothing\. Correct the path"),
        (["--inpaint", "empty", "--mask", "left"], r"--inpaint empty: expected .*, found no image in it\. Correct"),
        (["--inpaint", "notes.txt", "--mask", "left"], r"--inpaint notes.txt: .* found a file of another kind\. Corr"),
        (["--inpaint", "in", "--mask", "lft"], r"--mask lft: expected left, right, upper, lower or .* found neither"),
        (["--inpaint", "in", "--mask", "left", "--out", "in/out"],
         r"--out in/out: expected a folder outside of --inpaint in, found one in it\. Choose another"),
        (["--inpaint", "in"], r"--mask: expected left, right, upper, lower or an image file .*, found none\. For"),
        (["--mask", "left"], r"--mask: expected --inpaint beside it, found --mask left alone\. Give --inpaint"),
        (["--inpaint", "in", "--mask", "small.png"], r"--mask small.png: .* 32 by 32 pixels, found 16 by 16\. Draw"),
        (["--inpaint", "in", "--mask", "black.png"], r"--mask black.png: .* one white pixel, found none\. What is wh"),
        (["--inpaint", "in", "--mask", "notes.txt"], r"notes.txt: expected a readable image, found cannot identify"),
        (["--inpaint", "small.png", "--mask", "left"],
         r"--inpaint small.png: expected an image of shape \(1, 32, 32\) .* found \(1, 16, 16\)\. Make .* 32 by 32"),
        (["--inpaint", "colours.png", "--mask", "left"], r"--inpaint colours.png: .* found \(3, 32, 32\)\. Make"),
        (["--inpaint", "bad.npz"], r"--inpaint bad.npz: expected a code file with image, top, bottom and vqvae_hash"),
        (["--inpaint", "in", "--mask", "left", "--condition", "age=70"], r"--condition age=70: .* trained with, noth")])
    def test_what_does_not_fit_is_one_line_and_nothing_is_written(self, arguments, said, models, pictures, refusal,
                                                                  apart):
        (apart / "empty").mkdir()
        for name in ("notes.txt", "bad.npz"):
            (apart / name).write_text("precious")
        save(np.zeros((16, 16), np.uint8), apart / "small.png")
        save(np.zeros((SIDE, SIDE), np.uint8), apart / "black.png")
        save(np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8), apart / "colours.png")
        before = files_in(apart)
        line = refusal(sample.main, *models, "--out", "out", *arguments)
        assert re.search(f"^{said}", line), line
        assert files_in(apart) == before

    def test_other_images_or_another_mask_in_a_folder_that_holds_completions(self, complete, models, pictures, refusal,
                                                                             apart):
        complete(pictures, "--mask", "left", "--count", 1)
        before = files_in(apart / "out")
        line = refusal(sample.main, *models, "--out", "out", "--inpaint", pictures, "--mask", "right")
        assert re.search(r"^--out out: .* drawn with, found --mask right \(was left\)\. Give those again", line), line
        first = sorted(pictures.glob("*.png"))[0]
        save(picture(first) // 2, first)
        line = refusal(sample.main, *models, "--out", "out", "--inpaint", pictures, "--mask", "left")
        assert re.search(r"found --inpaint \S+in \(was \S+in, which has changed\)\. Give those again", line), line
        assert files_in(apart / "out") == before


def test_sixteen_bits_are_read_as_what_they_show(complete, pictures, apart):
    for path in sorted(pictures.glob("*.png")):
        save(picture(path).astype(np.uint16) * 257, apart / "deep" / path.name)
    shallow, deep = (complete(folder, "--mask", "lower", "--count", 2, out=folder.name + "-out")
                     for folder in (pictures, apart / "deep"))
    assert files_in(shallow / "images") == files_in(deep / "images")


def test_more_completions_are_added_to_those_that_are_there(complete, pictures, capfd):
    out = complete(pictures, "--mask", "left", "--count", 1)
    before = files_in(out / "images")
    complete(pictures, "--mask", "left", "--count", 3)
    assert "2 of 6 images are there already" in capfd.readouterr().out
    after = files_in(out / "images")
    assert before.items() <= after.items()
    assert len(after) == 6
    assert json.loads((out / "sample.json").read_text())["settings"]["count"] == 3
