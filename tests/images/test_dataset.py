"""Images of three kinds of folder come into memory as they are, or one line says which does not fit."""

import hashlib
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SLICES_PER_SUBJECT, SUBJECTS, edit_manifest, write_slices
from PIL import Image

from vqvae2.common.errors import UserError
from vqvae2.images import dataset
from vqvae2.images.listing import ImageFile
from vqvae2.images.settings import DataSettings

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def load(folder, *, splits=("train", "validate", "test"), divide=1, **settings):
    return dataset.load_images(DataSettings(data=folder, **settings), splits, divide)


def load_folder(folder, **settings):
    return load(folder, dataset="folder", **settings)


def save(path: Path, pixels: np.ndarray = RAMP, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


class TestManifest:
    @pytest.fixture
    def slices(self, tmp_path):
        return write_slices(tmp_path / "slices")

    def test_every_image_is_in_its_split_with_its_subject_and_pixels(self, tiny_slices):
        loaded = load(tiny_slices)
        for split, subjects in SUBJECTS.items():
            image_set = loaded.splits[split]
            assert len(image_set) == subjects * SLICES_PER_SUBJECT
            assert len(set(image_set.subjects)) == subjects
            for file, pixels in zip(image_set.files, image_set.pixels):
                assert file.name.startswith(f"{split}/{file.subject}_axial")
                np.testing.assert_array_equal(pixels, np.array(Image.open(tiny_slices / file.name))[None])
        assert loaded.shape == (1, 32, 32)
        assert loaded.subjects_known

    def test_a_split_that_is_not_asked_for_is_not_read_but_counted(self, slices):
        for path in (slices / "test").iterdir():
            path.unlink()
        loaded = load(slices, splits=("train", "validate"))
        assert [len(loaded.splits[split]) for split in ("train", "validate", "test")] == [18, 6, 0]
        assert loaded.describe()["data"] == {"folder": "slices", "images": {"train": 18, "validate": 6, "test": 9},
                                             "subjects": {"train": 6, "validate": 2, "test": 3},
                                             "subjects_known": True, "shared_subjects": 0, "extraction": None}

    def test_how_slices_were_cut_is_kept(self, slices):
        record = {"planes": ["axial"], "extent": [0.3, 0.8], "size": 32, "field_of_view": 224, "bits": 8}
        (slices / "extraction.json").write_text(json.dumps({"settings": record | {"seed": 0}}))
        assert load(slices).describe()["data"]["extraction"] == record
        (slices / "extraction.json").write_text(json.dumps({"settings": {"planes": ["axial"], "size": 32}}))
        assert load(slices).describe()["data"]["extraction"] is None  # an older version said less

    @pytest.mark.parametrize(("text", "said"), [
        ("not JSON", r"extraction\.json: expected what extract_slices\.py wrote, found Expecting value.* Run ext"),
        ('{"settings": 5}', r"extraction\.json\.settings: expected named values, found 5\."),
        ('{"settings": {"planes": ["oblique"]}}', r"settings\.planes\[0\]: expected one of axial, .* found .oblique"),
        ('{"settings": {"extent": [0.8, 0.3]}}', r"--extent: expected two fractions, .* found 0\.8 0\.3"),
        ('{"settings": {"extent": [0.3]}}', r"settings\.extent: expected a list of 2, found 1 values\."),
        ('{"settings": {"size": 1e999}}', r"extraction\.json: expected what .*, found the number 1e999\."),
        ('{"settings": {"size": 8.5}}', r"settings\.size: expected a whole number, found 8\.5\."),
        ('{"settings": {"bits": true}}', r"settings\.bits: expected one of 8, 16, found true\."),
        ('{"settings": {}, "settings": {}}', r"extraction\.json: .* found 'settings' twice\.")])
    def test_a_record_of_what_extract_slices_does_not_do_is_refused(self, text, said, slices):
        (slices / "extraction.json").write_text(text)
        with pytest.raises(UserError, match=said):
            load(slices).describe()

    def test_what_was_trained_on_is_kept_as_hashes_of_pixels_and_subjects(self, tiny_slices):
        described = load(tiny_slices).describe()
        first = np.array(Image.open(tiny_slices / "train" / "OAS1_0001_axial070.png"))
        assert hashlib.sha256(b"(1, 32, 32)" + first.tobytes()).hexdigest()[:16] in described["training_images"]
        assert described["training_subjects"] == sorted(
            hashlib.sha256(f"OAS1_000{number}".encode()).hexdigest()[:16] for number in range(1, 7))
        assert "OAS1" not in str(described)

    @pytest.mark.parametrize("column", ["split", "subject", "sha256", "image"])
    def test_the_data_hash_changes_with_the_manifest(self, column, slices):
        before = load(slices).describe()["data_hash"]

        def change(rows):
            if column == "image":
                (slices / rows[0]["image"]).rename(slices / "train" / "renamed.png")
            value = {"split": "validate", "subject": "another", "sha256": "", "image": "train/renamed.png"}
            for row in rows[:SLICES_PER_SUBJECT] if column == "split" else rows[:1]:
                row[column] = value[column]
        edit_manifest(slices, change)
        assert load(slices).describe()["data_hash"] != before

    def test_a_subject_in_two_splits_is_refused(self, slices):
        edit_manifest(slices, lambda rows: rows[0].update(split="test"))
        with pytest.raises(UserError, match=r"--data .*slices: expected each subject in one split, found subject "
                                            r"OAS1_0001 in test and train\. Split by subject: run extract_slices"):
            load(slices, splits=("train",))

    @pytest.mark.parametrize(("damage", "said"), [
        (lambda folder: (folder / "manifest.csv").unlink(),
         r"manifest\.csv: expected the manifest that extract_slices\.py writes, found none\. .* --dataset folder"),
        (lambda folder: (folder / "manifest.csv").write_text("image,split\na,train\n"),
         r"manifest\.csv: expected the column\(s\) sha256, subject, found image, split\. Run extract_slices"),
        (lambda folder: (folder / "manifest.csv").write_text(""),
         r"manifest\.csv: expected the column\(s\) image, sha256, split, subject, found none\. Run extract_slices"),
        (lambda folder: (folder / "manifest.csv").write_bytes(b"image,split,subject,sha256\n\xff\xfe,train,a,\n"),
         r"manifest\.csv: expected a readable manifest, found .*can't decode byte 0xff.*\. Run extract_slices"),
        (lambda folder: edit_manifest(folder, lambda rows: rows[0].update(split="training")),
         r"manifest\.csv: expected splits train, validate, test, found training\. Run extract_slices"),
        (lambda folder: (folder / "manifest.csv").write_text("image,split,subject,sha256\ntrain/a.png"),
         r"manifest\.csv: expected splits train, validate, test, found nothing\. Run extract_slices"),
        (lambda folder: (folder / "manifest.csv").write_text("image,split,subject,sha256\n"),
         r"--data .*slices: expected images, found none\. Run extract_slices"),
        (lambda folder: (folder / "train" / "OAS1_0001_axial070.png").unlink(),
         r"OAS1_0001_axial070\.png: expected an image, found nothing\. Run extract_slices"),
        (lambda folder: (folder / "train" / "OAS1_0001_axial070.png").write_bytes(b""),
         r"OAS1_0001_axial070\.png: expected a readable image, found cannot identify image file\. Delete it")])
    def test_a_damaged_folder_names_the_file_and_the_next_step(self, damage, said, slices):
        damage(slices)
        with pytest.raises(UserError, match=said):
            load(slices)

    def test_an_image_that_is_not_the_manifests_is_named(self, slices):
        save(slices / "train" / "OAS1_0002_axial071.png", np.full((32, 32), 128, np.uint8))
        with pytest.raises(UserError, match=r"OAS1_0002_axial071\.png: expected the image whose SHA-256 the manifest "
                                            r"has \([0-9a-f]{12}\), found another \([0-9a-f]{12}\)\. Put it back, or"):
            load(slices)
        with pytest.raises(UserError, match=r"OAS1_0002_axial071\.png: expected the image whose SHA-256"):
            list(dataset.SliceDataset(slices, "train"))
        for path in (slices / "validate").iterdir():
            save(path, RAMP)
        with pytest.raises(UserError, match=r"found 7 of 33 that cannot: train/OAS1_0002_axial071\.png \(not the image "
                                            r"whose SHA-256 the manifest has\); validate/"):
            load(slices)

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
    def test_a_torn_image_is_refused(self, share, slices):
        path = slices / "validate" / "OAS1_0007_axial071.png"
        path.write_bytes(path.read_bytes()[:int(path.stat().st_size * share)])
        with pytest.raises(UserError, match=r"OAS1_0007_axial071\.png: expected a readable image, found .+ Delete it"):
            load(slices)

    def test_the_mark_of_a_spreadsheet_before_the_first_column_does_not_matter(self, slices):
        path = slices / "manifest.csv"
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert len(load(slices).splits["train"]) == 18

    @pytest.mark.parametrize(("make", "found"), [(lambda path: None, "nothing"), (Path.touch, "a file")])
    def test_what_is_no_folder_is_refused(self, make, found, tmp_path):
        make(tmp_path / "slices")
        with pytest.raises(UserError, match=rf"--data .*slices: expected a folder, found {found}\. Run extract_slices"):
            load(tmp_path / "slices")

    def test_the_folder_may_come_from_the_environment(self, tiny_slices, apart, monkeypatch):
        monkeypatch.setenv("SLICES_PATH", f"{tiny_slices}/")
        assert len(load(None).splits["train"]) == 18


class TestPixels:
    def read(self, folder):
        return load_folder(folder).splits["train"]

    def test_eight_bits_become_0_to_1(self, tmp_path):
        save(tmp_path / "train" / "a.png")
        image_set = self.read(tmp_path)
        assert image_set.pixels.dtype == np.uint8
        np.testing.assert_allclose(image_set.batch([0])[0, 0].numpy(), RAMP / 255, rtol=1e-6)
        assert torch.equal(image_set.bytes()[0, 0], torch.from_numpy(RAMP))

    def test_sixteen_bits_keep_all_of_them(self, tmp_path):
        pixels = np.array([[0, 1, 257], [32768, 65534, 65535], [300, 301, 302]], dtype=np.uint16)
        save(tmp_path / "train" / "a.png", pixels)
        image_set = self.read(tmp_path)
        assert image_set.pixels.dtype == np.uint16
        np.testing.assert_array_equal(image_set.pixels[0, 0], pixels)
        np.testing.assert_allclose(image_set.batch([0])[0, 0].numpy(), pixels / 65535, rtol=1e-6)
        assert image_set.bytes()[0, 0].tolist() == [[0, 0, 1], [128, 255, 255], [1, 1, 1]]

    def test_eight_and_sixteen_bits_side_by_side_are_equally_bright(self, tmp_path):
        save(tmp_path / "train" / "a.png", np.array([[0, 100, 255]], dtype=np.uint8))
        save(tmp_path / "train" / "b.png", np.array([[0, 25700, 65535]], dtype=np.uint16))
        first, second = self.read(tmp_path).batch([0, 1])
        assert torch.equal(first, second)
        np.testing.assert_allclose(first[0, 0].numpy(), [0, 100 / 255, 1], rtol=1e-6)

    def test_colours_stay_and_grey_stored_as_colours_is_one_channel(self, tmp_path):
        colours = np.stack([RAMP, 255 - RAMP, RAMP // 2], -1)
        save(tmp_path / "colour" / "train" / "a.png", colours)
        save(tmp_path / "grey" / "train" / "a.png", np.stack([RAMP] * 3, -1))
        save(tmp_path / "alpha" / "train" / "a.png", np.stack([RAMP] * 3 + [np.full_like(RAMP, 255)], -1))
        np.testing.assert_array_equal(self.read(tmp_path / "colour").pixels[0], colours.transpose(2, 0, 1))
        for kind in ("grey", "alpha"):
            np.testing.assert_array_equal(self.read(tmp_path / kind).pixels[0], RAMP[None])

    def test_a_grey_image_among_colours_gets_three_equal_channels(self, tmp_path):
        save(tmp_path / "train" / "a.png", np.stack([RAMP, 255 - RAMP, RAMP], -1))
        save(tmp_path / "train" / "b.png")
        np.testing.assert_array_equal(self.read(tmp_path).pixels[1], np.stack([RAMP] * 3))

    def test_a_batch_is_in_the_order_asked_for(self, tmp_path):
        for value in range(3):
            save(tmp_path / "train" / f"{value}.png", np.full((2, 2), value, np.uint8))
        batch = self.read(tmp_path).batch(torch.tensor([2, 0, 2]))
        assert batch.shape == (3, 1, 2, 2)
        assert (batch[:, 0, 0, 0] * 255).tolist() == [2, 0, 2]


    @pytest.mark.parametrize(("kind", "white"), [(np.uint8, 255), (np.uint16, 65535)])
    def test_every_value_is_the_float_nearest_to_its_share_of_white(self, kind, white):
        pixels = np.arange(white + 1, dtype=kind).reshape(1, 1, 1, -1)
        image_set = dataset.ImageSet((ImageFile("a.png", "train", "a", ""),), pixels)
        expected = torch.from_numpy((pixels.astype(np.float64) / white).astype(np.float32))
        assert torch.equal(image_set.batch([0]), expected)
        assert torch.equal(image_set.batch(torch.tensor([0]), torch.device("cpu")), expected)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
    @pytest.mark.parametrize(("kind", "white"), [(np.uint8, 255), (np.uint16, 65535)])
    def test_a_batch_on_cuda_is_bit_for_bit_that_on_the_cpu(self, kind, white):
        pixels = np.arange(white + 1, dtype=kind).reshape(1, 1, 1, -1)
        image_set = dataset.ImageSet((ImageFile("a.png", "train", "a", ""),), pixels)
        torch.cuda.set_sync_debug_mode("error")
        try:
            batch = image_set.batch([0], torch.device("cuda", 0))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert batch.is_cuda
        assert torch.equal(batch.cpu(), image_set.batch([0]))

    def test_a_batch_of_no_images_is_empty(self, tmp_path):
        save(tmp_path / "train" / "a.png")
        assert self.read(tmp_path).batch(torch.arange(0)).shape == (0, 1, 16, 16)


class TestSizes:
    @pytest.fixture
    def mixed(self, tmp_path):
        save(tmp_path / "train" / "a.png", np.full((16, 16), 200, np.uint8))
        save(tmp_path / "train" / "b.png", np.full((24, 16), 100, np.uint8))
        return tmp_path

    def test_different_sizes_are_refused_with_both_and_the_flag(self, mixed):
        with pytest.raises(UserError, match=r"--data: expected images of one size, found 16 by 16, 24 by 16\. Give"):
            load_folder(mixed)

    def test_size_makes_them_one(self, mixed):
        loaded = load_folder(mixed, size=8).splits["train"]
        assert loaded.pixels.shape == (2, 1, 8, 8)
        assert [set(image.flatten().tolist()) for image in loaded.pixels] == [{200}, {100}]

    @pytest.mark.parametrize("kind", [np.uint8, np.uint16])
    def test_shrinking_is_the_mean_of_what_falls_into_a_pixel(self, kind, tmp_path):
        pixels = (np.arange(256) * 7 % 251).reshape(16, 16).astype(kind)
        save(tmp_path / "train" / "a.png", pixels)
        expected = pixels.reshape(8, 2, 8, 2).astype(float).mean((1, 3))
        # Pillow rounds 8-bit pixels after each direction: twice a half.
        np.testing.assert_allclose(load_folder(tmp_path, size=8).splits["train"].pixels[0, 0], expected, atol=1)

    @pytest.mark.parametrize("kind", [np.uint8, np.uint16])
    def test_enlarging_is_smooth_whatever_the_bits(self, kind, tmp_path):
        save(tmp_path / "train" / "a.png", np.tile(np.array([0, 80, 160, 240] * 2, kind), (8, 1)))
        row = load_folder(tmp_path, size=16).splits["train"].pixels[0, 0, 8].astype(int)
        # Linear between pixel centres: quarters of a step of 80.
        np.testing.assert_allclose(row[:8], [0, 20, 60, 100, 140, 180, 220, 180], atol=1)

    def test_splits_of_different_sizes_are_refused(self, tmp_path):
        save(tmp_path / "train" / "a.png")
        save(tmp_path / "val" / "a.png", RAMP[:8])
        with pytest.raises(UserError, match=r"expected one shape in all splits, found train \(1, 16, 16\), "
                                            r"validate \(1, 8, 16\)\. Give --size"):
            load_folder(tmp_path)

    @pytest.mark.parametrize(("size", "advice"), [((30, 32), 24), ((20, 20), 16), ((6, 6), 8)])
    def test_a_size_that_the_grid_does_not_divide_is_refused_with_one_that_it_does(self, size, advice, tmp_path):
        save(tmp_path / "train" / "a.png", np.zeros(size, np.uint8))
        with pytest.raises(UserError, match=rf"expected height and width that 8 divides \(--downsample\), "
                                            rf"found {size[0]} by {size[1]}\. Give --size {advice}\."):
            load_folder(tmp_path, divide=8)


@pytest.mark.parametrize(("kind", "channels"), [(np.uint8, 1), (np.uint8, 3), (np.uint16, 1)])
def test_intensities_are_the_mean_and_deviation_of_each_channel_over_all_pixels(kind, channels):
    white = np.iinfo(kind).max
    pixels = np.random.default_rng(4).integers(0, white // np.arange(1, channels + 1)[:, None, None] + 1,
                                               (7, channels, 6, 5)).astype(kind)
    mean, deviation = dataset.ImageSet((), pixels).intensities()
    seen = pixels.astype(np.float64) / white
    assert mean.numpy() == pytest.approx(seen.mean((0, 2, 3)), rel=1e-6)
    assert deviation.numpy() == pytest.approx(seen.std((0, 2, 3)), rel=1e-6)


def test_a_channel_of_one_value_has_the_deviation_1():
    mean, deviation = dataset.ImageSet((), np.full((2, 1, 4, 4), 51, np.uint8)).intensities()
    assert (mean.item(), deviation.item()) == (pytest.approx(0.2), 1.0)


class TestSliceDataset:
    def test_an_item_is_the_picture_its_subject_and_its_row_of_the_manifest(self, tiny_slices):
        slices = dataset.SliceDataset(tiny_slices, "validate")
        assert len(slices) == SUBJECTS["validate"] * SLICES_PER_SUBJECT
        item = slices[1]
        stored = np.array(Image.open(tiny_slices / item["name"]))
        assert (item["subject"], item["name"]) == ("OAS1_0007", "validate/OAS1_0007_axial071.png")
        assert (item["plane"], item["split"], len(item["sha256"])) == ("axial", "validate", 64)
        assert torch.equal(item["image"], torch.from_numpy((stored / 255).astype(np.float32))[None])

    def test_it_goes_through_a_loader_and_ends(self, tiny_slices):
        batches = list(torch.utils.data.DataLoader(dataset.SliceDataset(tiny_slices, "validate"), batch_size=4))
        assert [tuple(batch["image"].shape) for batch in batches] == [(4, 1, 32, 32), (2, 1, 32, 32)]
        assert len(list(dataset.SliceDataset(tiny_slices, "validate"))) == 6

    def test_other_folders_are_read_with_the_settings_of_the_commands(self, tmp_path):
        save(tmp_path / "train" / "a.png")
        (item,) = dataset.SliceDataset(tmp_path, "train", dataset="folder", size=8, colours="rgb")
        assert (set(item), tuple(item["image"].shape)) == ({"image", "name", "subject"}, (3, 8, 8))

    def test_a_split_without_images_is_refused(self, tiny_slices):
        with pytest.raises(UserError, match=r"slices.*: expected images in the split training, found none\. Choose of "
                                            r"train, validate, test\."):
            dataset.SliceDataset(tiny_slices, "training")

    @pytest.mark.parametrize("library", ["monai", "torchio"])
    def test_the_pipeline_in_the_docs_runs(self, library, tiny_slices, apart, capsys):
        pytest.importorskip(library, reason=f"{library} is not installed: pip install .[bench]")
        (apart / "slices").symlink_to(tiny_slices)
        text = (Path(__file__).parents[2] / "docs" / "in-python.md").read_text(encoding="utf-8")
        (code,) = (block for block in re.findall(r"```py\n(.*?)```", text, re.DOTALL) if library in block)
        exec(code, {})
        said = {"monai": r"torch\.Size\(\[8, 1, 32, 32\]\) \['OAS1_000\d'(, 'OAS1_000\d'){7}\]\n",
                "torchio": r"\(1, 32, 32, 1\) OAS1_0007\n"}[library]
        assert re.fullmatch(said, capsys.readouterr().out)


class TestGoingOn:
    """What a run began with is compared with what is there now, whatever the kind of data set."""

    @pytest.fixture(params=["oasis", "folder", "keras_png_slices"])
    def data(self, request, tmp_path):
        """(folder, how to load it, the names of a training and of a validation image)"""
        folder = write_slices(tmp_path / "slices")
        names = "train/OAS1_0003_axial071.png", "validate/OAS1_0008_axial070.png"
        if request.param == "keras_png_slices":
            for path in folder.glob("*/*.png"):
                path.rename(path.with_name(f"case_{path.name[5:9]}_slice_{path.stem[-3:]}.nii.png"))
            for split in SUBJECTS:
                (folder / split).rename(folder / f"keras_png_slices_{split}")
            names = ("keras_png_slices_train/case_0003_slice_071.nii.png",
                     "keras_png_slices_validate/case_0008_slice_070.nii.png")

        def loaded():
            if request.param == "oasis":
                edit_manifest(folder, hashed=True)
            return load(folder, splits=("train", "validate"), dataset=request.param)
        return folder, loaded, names

    def test_the_first_image_that_differs_is_named(self, data):
        folder, loaded, names = data
        began = loaded().describe()
        assert loaded().describe(began) == began
        for name in reversed(names):  # the validation image's pixels are in no other record of a run
            save(folder / name, np.full((32, 32), 128, np.uint8))
            with pytest.raises(UserError, match=rf"--data .*slices: expected the images that this run began with, "
                                                rf"found another {name}\. Put back what was there, or choose"):
                loaded().describe(began)

    def test_an_image_more_or_less_is_told_with_the_first_that_differs(self, tmp_path):
        for number in range(4):
            save(tmp_path / "train" / f"{number}.png", RAMP + number)
        began = load_folder(tmp_path).describe()
        save(tmp_path / "train" / "15.png")
        with pytest.raises(UserError, match=r"found 5 instead of 4; the first that differs is train/15\.png\. Put"):
            load_folder(tmp_path).describe(began)
        for name in ("15", "3"):
            (tmp_path / "train" / f"{name}.png").unlink()
        with pytest.raises(UserError, match=r"3 instead of 4; the first that differs is none after train/2\.png\."):
            load_folder(tmp_path).describe(began)

    def test_a_name_that_is_not_utf_8_is_a_name(self, tmp_path):
        (tmp_path / "train").mkdir()
        os.rename(save(tmp_path / "a.png"), tmp_path / "train" / "\udcff.png")
        loaded = load_folder(tmp_path)
        assert loaded.describe(loaded.describe())["data"]["images"]["train"] == 1
