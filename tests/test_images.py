"""Images of three kinds of folder come into memory as they are, or one line says which does not fit."""

import csv
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SLICES_PER_SUBJECT, SUBJECTS, picture_of, write_slices
from PIL import Image
from torch.nn import functional

import train_vqvae
from trainer import Share
from vqvae2 import images
from vqvae2.config import DataSettings, VqvaeSettings
from vqvae2.errors import UserError

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def load(folder, *, splits=("train", "validate", "test"), divide=1, **settings):
    return images.load_images(DataSettings(data=folder, **settings), splits, divide)


def load_folder(folder, **settings):
    return load(folder, dataset="folder", **settings)


def save(path: Path, pixels: np.ndarray = RAMP, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def edit_manifest(folder, change):
    """Rewrite manifest.csv with `change` applied to its rows (lists of dicts)."""
    path = folder / "manifest.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    change(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


class TestManifest:
    @pytest.fixture
    def slices(self, tmp_path):
        return write_slices(tmp_path / "slices")

    def test_every_image_is_in_its_split_with_its_subject_and_pixels(self, tiny_slices):
        loaded = load(tiny_slices)
        for split, subjects in SUBJECTS.items():
            one = loaded.splits[split]
            assert len(one) == subjects * SLICES_PER_SUBJECT
            assert len(set(one.subjects)) == subjects
            for file, pixels in zip(one.files, one.pixels):
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
                                             "subjects_known": True, "extraction": None}

    def test_how_slices_were_cut_is_kept(self, slices):
        record = {"planes": ["axial"], "extent": [0.3, 0.8], "size": 32, "field_of_view": 224, "bits": 8}
        (slices / "extraction.json").write_text(json.dumps({"settings": record | {"seed": 0}}))
        assert load(slices).describe()["data"]["extraction"] == record
        (slices / "extraction.json").write_text("not JSON")
        assert load(slices).describe()["data"]["extraction"] is None

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
            one = {"split": "validate", "subject": "another", "sha256": "0" * 64, "image": "train/renamed.png"}[column]
            for row in rows[:SLICES_PER_SUBJECT] if column == "split" else rows[:1]:
                row[column] = one
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
         r"OAS1_0001_axial070\.png: expected a readable image, found cannot identify image file .*\. Delete it")])
    def test_a_damaged_folder_names_the_file_and_the_next_step(self, damage, said, slices):
        damage(slices)
        with pytest.raises(UserError, match=said):
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


class TestKeras:
    """The layout of the OASIS PNG release: keras_png_slices_<split>/case_NNN_slice_N.nii.png, and their labels."""

    @pytest.fixture
    def parent(self, tmp_path):
        for split, case in (("train", 441), ("validate", 402), ("test", 456)):
            for number in range(2):
                save(tmp_path / f"keras_png_slices_{split}" / f"case_{case}_slice_{number}.nii.png")
                save(tmp_path / f"keras_png_slices_seg_{split}" / f"seg_{case}_slice_{number}.nii.png")
        return tmp_path

    def test_a_case_is_a_subject_and_labels_are_no_images(self, parent):
        save(parent / "keras_png_slices_train" / "case_441_seg_0.png")
        loaded = load(parent, dataset="keras_png_slices")
        assert loaded.splits["train"].names == [f"keras_png_slices_train/case_441_slice_{i}.nii.png" for i in (0, 1)]
        assert [set(loaded.splits[split].subjects) for split in ("train", "validate", "test")] == [
            {"case_441"}, {"case_402"}, {"case_456"}]
        assert loaded.subjects_known

    def test_a_case_in_two_splits_is_refused(self, parent):
        save(parent / "keras_png_slices_test" / "case_441_slice_9.nii.png")
        with pytest.raises(UserError, match=r"found subject case_441 in train and test\. Split by subject"):
            load(parent, dataset="keras_png_slices")

    def test_a_missing_split_is_named(self, parent):
        with pytest.raises(UserError, match=r"keras_png_slices_train: expected a folder keras_png_slices_train in it, "
                                            r"found none\. Point at the parent of"):
            load(parent / "keras_png_slices_train", dataset="keras_png_slices")


class TestFolder:
    @pytest.mark.parametrize("validate", ["val", "valid", "validate", "validation", "Val"])
    def test_a_folder_that_is_split_stays_so_whatever_validation_is_called(self, validate, tmp_path):
        for name in ("train/a.png", "train/deep/b.JPG", f"{validate}/c.jpeg", "test/d.tif", "other/e.png"):
            save(tmp_path / name)
        loaded = load_folder(tmp_path)
        assert {split: one.names for split, one in loaded.splits.items()} == {
            "train": ["train/a.png", "train/deep/b.JPG"], "validate": [f"{validate}/c.jpeg"], "test": ["test/d.tif"]}

    def test_without_a_pattern_each_image_is_its_own_subject_and_that_is_said(self, tmp_path):
        for name in ("train/a.png", "val/a.png"):
            save(tmp_path / name)
        loaded = load_folder(tmp_path)
        assert not loaded.subjects_known
        assert loaded.describe()["data"]["subjects"] == {"train": 1, "validate": 1, "test": 0}

    def test_an_unsplit_folder_is_split_by_subject_in_the_shares_asked_for(self, tmp_path):
        for subject in range(120):
            for number in range(2):
                save(tmp_path / f"s{subject:03d}_{number}.png", RAMP[:8, :8])
        loaded = load_folder(tmp_path, subject_pattern=r"(s\d+)_", split=(50, 25, 25))
        subjects = {split: set(one.subjects) for split, one in loaded.splits.items()}
        assert sum(map(len, subjects.values())) == len(set.union(*subjects.values())) == 120
        assert loaded.subjects_known
        # Binomial, 120 draws of 0.5 and 0.25: standard deviations 5.5 and 4.7; four of them are allowed.
        assert [len(one) for one in subjects.values()] == pytest.approx([60, 30, 30], abs=22)

    def test_a_subject_that_is_added_later_moves_nobody(self, tmp_path):
        def split_of():
            return {name: split for split, one in load_folder(tmp_path).splits.items() for name in one.names}

        for subject in range(40):
            save(tmp_path / f"{subject}.png", RAMP[:8, :8])
        before = split_of()
        save(tmp_path / "0-added.png", RAMP[:8, :8])
        assert {name: split for name, split in split_of().items() if name != "0-added.png"} == before

    def test_a_pattern_that_does_not_fit_every_name_is_refused(self, tmp_path):
        for name in ("s1_a.png", "photo.png"):
            save(tmp_path / name)
        with pytest.raises(UserError, match=r"--subject-pattern s\(\\d\): expected a match in every image's name, "
                                            r"found none in photo\.png\. Correct"):
            load_folder(tmp_path, subject_pattern=r"s(\d)")

    def test_hidden_and_other_files_are_no_images(self, tmp_path):
        for name in ("a.png", ".hidden.png", ".thumbnails/b.png"):
            save(tmp_path / name)
        (tmp_path / "notes.txt").write_text("")
        assert [name for one in load_folder(tmp_path).splits.values() for name in one.names] == ["a.png"]

    def test_a_folder_without_images_is_refused(self, tmp_path):
        with pytest.raises(UserError, match=r"--data .*: expected images, found none\. Run extract_slices\.py, or"):
            load_folder(tmp_path)


class TestPixels:
    def read(self, folder):
        return load_folder(folder).splits["train"]

    def test_eight_bits_become_0_to_1(self, tmp_path):
        save(tmp_path / "train" / "a.png")
        one = self.read(tmp_path)
        assert one.pixels.dtype == np.uint8
        np.testing.assert_allclose(one.batch([0])[0, 0].numpy(), RAMP / 255, rtol=1e-6)
        assert torch.equal(one.bytes()[0, 0], torch.from_numpy(RAMP))

    def test_sixteen_bits_keep_all_of_them(self, tmp_path):
        pixels = np.array([[0, 1, 257], [32768, 65534, 65535], [300, 301, 302]], dtype=np.uint16)
        save(tmp_path / "train" / "a.png", pixels)
        one = self.read(tmp_path)
        assert one.pixels.dtype == np.uint16
        np.testing.assert_array_equal(one.pixels[0, 0], pixels)
        np.testing.assert_allclose(one.batch([0])[0, 0].numpy(), pixels / 65535, rtol=1e-6)
        assert one.bytes()[0, 0].tolist() == [[0, 0, 1], [128, 255, 255], [1, 1, 1]]

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
        save(tmp_path / "alpha" / "train" / "a.png", np.stack([RAMP] * 3 + [np.full_like(RAMP, 9)], -1))
        np.testing.assert_array_equal(self.read(tmp_path / "colour").pixels[0], colours.transpose(2, 0, 1))
        for kind in ("grey", "alpha"):
            np.testing.assert_array_equal(self.read(tmp_path / kind).pixels[0], RAMP[None])

    def test_a_grey_image_among_colours_gets_three_equal_channels(self, tmp_path):
        save(tmp_path / "train" / "a.png", np.stack([RAMP, 255 - RAMP, RAMP], -1))
        save(tmp_path / "train" / "b.png")
        np.testing.assert_array_equal(self.read(tmp_path).pixels[1], np.stack([RAMP] * 3))

    def test_floating_point_pixels_are_refused_since_their_range_is_not_known(self, tmp_path):
        save(tmp_path / "train" / "a.tif", (RAMP / 255).astype(np.float32))
        with pytest.raises(UserError, match=r"a\.tif: expected a readable image, found floating-point pixels, .*"):
            self.read(tmp_path)

    def test_a_batch_is_in_the_order_asked_for(self, tmp_path):
        for value in range(3):
            save(tmp_path / "train" / f"{value}.png", np.full((2, 2), value, np.uint8))
        batch = self.read(tmp_path).batch(torch.tensor([2, 0, 2]))
        assert batch.shape == (3, 1, 2, 2)
        assert (batch[:, 0, 0, 0] * 255).tolist() == [2, 0, 2]


    @pytest.mark.parametrize(("kind", "white"), [(np.uint8, 255), (np.uint16, 65535)])
    def test_every_value_is_the_float_nearest_to_its_share_of_white(self, kind, white):
        pixels = np.arange(white + 1, dtype=kind).reshape(1, 1, 1, -1)
        one = images.ImageSet((images.ImageFile("a.png", "train", "a", ""),), pixels)
        expected = torch.from_numpy((pixels.astype(np.float64) / white).astype(np.float32))
        assert torch.equal(one.batch([0]), expected)
        assert torch.equal(one.batch(torch.tensor([0]), torch.device("cpu")), expected)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
    @pytest.mark.parametrize(("kind", "white"), [(np.uint8, 255), (np.uint16, 65535)])
    def test_a_batch_on_cuda_is_bit_for_bit_that_on_the_cpu(self, kind, white):
        pixels = np.arange(white + 1, dtype=kind).reshape(1, 1, 1, -1)
        one = images.ImageSet((images.ImageFile("a.png", "train", "a", ""),), pixels)
        torch.cuda.set_sync_debug_mode("error")
        try:
            batch = one.batch([0], torch.device("cuda", 0))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert batch.is_cuda
        assert torch.equal(batch.cpu(), one.batch([0]))

    def test_a_batch_of_no_images_is_empty(self, tmp_path):
        save(tmp_path / "train" / "a.png")
        assert self.read(tmp_path).batch(torch.arange(0)).shape == (0, 1, 16, 16)


class TestAugmentation:
    @pytest.fixture
    def heads(self) -> torch.Tensor:
        """Seven heads on black, of a size that no vector instruction divides."""
        return torch.from_numpy(np.stack([picture_of(number, 0, 37) for number in range(7)])[:, None]) / 255

    def augmented(self, pixels, items=range(7), seed=0, epoch=0):
        return images.augmented(pixels, torch.tensor(list(items), dtype=torch.long), seed, epoch)

    def test_an_image_becomes_the_same_whatever_else_is_in_its_batch(self, heads):
        whole = self.augmented(heads)
        for i in range(7):
            assert torch.equal(self.augmented(heads[i:i + 1], [i]), whole[i:i + 1])
        assert torch.equal(self.augmented(heads.flip(0), reversed(range(7))).flip(0), whole)
        assert torch.equal(self.augmented(heads), whole)

    @pytest.mark.parametrize("other", [{"epoch": 1}, {"seed": 1}, {"items": range(1, 8)}])
    def test_another_epoch_seed_or_number_makes_another_picture(self, other, heads):
        before, after = self.augmented(heads), self.augmented(heads, **other)
        assert all(not torch.equal(one, two) for one, two in zip(before, after))

    def test_values_stay_in_0_to_1_with_black_exactly_0(self, heads):
        for epoch in range(20):
            made = self.augmented(functional.pad((heads * 2).clamp(0, 1), (6, 6, 6, 6)), epoch=epoch)
            assert made.min() >= 0
            assert made.max() <= 1
            # The heads end 6 pixels inside; moves, scales and neighbours reach less than 4 of them.
            border = torch.ones_like(made, dtype=torch.bool)
            border[:, :, 2:-2, 2:-2] = False
            assert (made[border] == 0).all()
        assert (self.augmented(torch.zeros(7, 1, 16, 16)) == 0).all()

    def test_a_pixel_is_black_wherever_all_four_that_it_lies_between_are(self):
        """A white square: the cubic's lobes would leave a glow beside its corners."""
        square = torch.zeros(32, 1, 24, 24)
        square[:, :, 8:16, 8:16] = 1

        def is_rectangle(made):
            lit = made[:, 0] > 0
            return (lit == lit.any(2)[:, :, None] & lit.any(1)[:, None]).all((1, 2))
        assert is_rectangle(self.augmented(square, range(32))).all()
        glowing = images.moved(square, torch.rand(32, 5, generator=torch.Generator().manual_seed(0)))
        assert not is_rectangle(glowing).any()

    def test_about_half_are_mirrored_and_none_is_upside_down(self):
        ramp = torch.linspace(0.2, 0.8, 32)
        across, down = ramp.expand(200, 1, 32, 32), ramp[:, None].expand(200, 1, 32, 32)
        made = self.augmented(across, range(200))[:, 0, 16]
        assert (made[:, 24] < made[:, 8]).float().mean().item() == pytest.approx(0.5, abs=0.14)  # four deviations
        made = self.augmented(down, range(200))[:, 0, :, 16]
        assert (made[:, 24] > made[:, 8]).all()

    def test_brightness_and_contrast_change_a_little(self):
        made = self.augmented(torch.full((500, 1, 8, 8), 0.5), range(500))[:, 0, 4, 4]
        # 0.5 x 0.9…1.1, bent by up to 0.1 x 0.25.
        assert 0.42 < made.min() < 0.45
        assert 0.55 < made.max() < 0.58
        assert made.mean().item() == pytest.approx(0.5, abs=0.01)

    def test_moving_is_what_affine_grid_does_bit_for_bit(self, heads):
        """The priors' augmented copies were made with it, and their codes are kept on disk."""
        draws = torch.rand(7, 5, generator=torch.Generator().manual_seed(3))
        affine = torch.zeros(7, 2, 3)
        affine[:, 0, 0] = torch.where(draws[:, 0] < 0.5, -1.0, 1.0) * (1 + (draws[:, 3] * 2 - 1) * 0.05)
        affine[:, 1, 1] = 1 + (draws[:, 4] * 2 - 1) * 0.05
        affine[:, :, 2] = (draws[:, 1:3] * 2 - 1) * 0.06
        grid = functional.affine_grid(affine, list(heads.shape), align_corners=False)
        expected = functional.grid_sample(heads, grid, mode="bicubic", align_corners=False).clamp(0, 1)
        assert torch.equal(images.moved(heads, draws), expected)

    def test_no_images_stay_none(self):
        assert self.augmented(torch.zeros(0, 1, 16, 16), ()).shape == (0, 1, 16, 16)

    @pytest.mark.parametrize("augment", [False, True])
    def test_only_training_images_are_augmented_and_only_when_asked(self, augment, tiny_slices, tmp_path):
        trainer = train_vqvae.VqvaeTrainer(VqvaeSettings(data=tiny_slices, savename="v", epochs=1, batch=4, seed=5,
                                                         results=tmp_path, augment=augment))
        trainer.device = torch.device("cpu")
        trainer.start()
        seen = []

        class Model(torch.nn.Module):
            def forward(self, pixels, place):
                seen.append(pixels.clone())
                nothing = torch.zeros(len(pixels))
                return SimpleNamespace(images=pixels, commitment=nothing, prediction=nothing)

        items = torch.tensor([3, 1])
        for model in (Model().train(), Model().eval()):
            trainer.losses(model, Share(items, torch.arange(2), 2, 7, 0))
        train, validate = (trainer.images.splits[split].batch(items) for split in ("train", "validate"))
        assert torch.equal(seen[0], images.augmented(train, items, 5, 7) if augment else train)
        assert torch.equal(seen[0], train) is not augment
        assert torch.equal(seen[1], validate)


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
        assert [set(one.flatten().tolist()) for one in loaded.pixels] == [{200}, {100}]

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
