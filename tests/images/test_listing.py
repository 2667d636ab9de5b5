"""A folder's images, splits and subjects in three layouts; what is not meant like that is refused with the way on."""

from pathlib import Path

import numpy as np
import pytest
from conftest import write_slices
from PIL import Image

from vqvae2.common.errors import UserError
from vqvae2.images import dataset as images
from vqvae2.images import listing as layouts
from vqvae2.images.settings import DataSettings

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def listed(folder, dataset, **settings) -> list[layouts.ImageFile]:
    return layouts.list_files(DataSettings(data=folder, dataset=dataset, **settings))[1]


def load(folder, **settings):
    return images.load_images(DataSettings(data=folder, **settings))


def load_folder(folder, **settings):
    return load(folder, dataset="folder", **settings)


def names(files) -> dict[str, list[str]]:
    """Names of the images of each split that has any."""
    found = {}
    for file in files:
        found.setdefault(file.split, []).append(file.name)
    return found


def save(path: Path, pixels: np.ndarray = RAMP, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


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

    @pytest.mark.parametrize("name", ["seg_441_slice_0.nii.png", "case_441_slice_0_seg.nii.png", "seg/case_441_5.png",
                                      "case_441_SEG_slice_0.nii.png", "labels_seg/case_441_5.png"])
    def test_what_is_called_seg_is_no_image_nor_what_is_in_such_a_folder(self, name, parent):
        save(parent / "keras_png_slices_train" / name)
        save(parent / "keras_png_slices_train" / "case_441_segment_2.png")
        assert names(listed(parent, "keras_png_slices"))["train"] == [
            "keras_png_slices_train/case_441_segment_2.png",
            *(f"keras_png_slices_train/case_441_slice_{i}.nii.png" for i in (0, 1))]

    @pytest.mark.parametrize("name", ["val", "valid", "validation"])
    def test_the_validation_folder_may_have_another_name(self, name, parent):
        (parent / "keras_png_slices_validate").rename(parent / f"keras_png_slices_{name}")
        assert names(listed(parent, "keras_png_slices"))["validate"] == [
            f"keras_png_slices_{name}/case_402_slice_{i}.nii.png" for i in (0, 1)]

    def test_a_path_one_folder_too_deep_or_too_high_is_answered_with_the_right_one(self, parent, tmp_path):
        right = tmp_path / "above" / "right"
        for folder in parent.glob("keras_png_slices_*"):
            right.mkdir(parents=True, exist_ok=True)
            folder.rename(right / folder.name)
        for wrong in (right / "keras_png_slices_test", right.parent):
            with pytest.raises(UserError, match=r"a folder keras_png_slices_train in it, found none\. Point at .*"
                                                rf"_test: --data {right}\."):
                listed(wrong, "keras_png_slices")

    def test_a_name_without_a_case_is_refused_unless_a_pattern_tells_the_subject(self, parent):
        save(parent / "keras_png_slices_test" / "brain_17.png")
        with pytest.raises(UserError, match=r"names such as case_001_slice_0\.nii\.png in keras_png_slices_test, found "
                                            r"keras_png_slices_test/brain_17\.png\. Give --subject-pattern"):
            listed(parent, "keras_png_slices")
        found = listed(parent, "keras_png_slices", subject_pattern=r"(?:case|brain)_(\d+)")
        assert {file.subject for file in found} == {"441", "402", "456", "17"}

    def test_links_that_are_being_made_are_not_trained_on(self, parent):
        (parent / ".cases-before.csv").touch()
        with pytest.raises(UserError, match=r"links that are all there, found some that are not yet\. Run extract_sl"):
            listed(parent, "keras_png_slices")

    @pytest.mark.parametrize("dataset", ["oasis", "folder"])
    def test_another_kind_of_data_set_is_told_from_this_one(self, dataset, parent):
        with pytest.raises(UserError, match=r"hoose --dataset keras_png_slices\."):
            listed(parent, dataset)


class TestFolder:
    @pytest.mark.parametrize("validate", ["val", "valid", "validate", "validation", "Val"])
    def test_a_folder_that_is_split_stays_so_whatever_validation_is_called(self, validate, tmp_path):
        for name in ("train/a.png", "train/deep/b.JPG", f"{validate}/c.jpeg", "test/d.tif", "other/e.png"):
            save(tmp_path / name)
        loaded = load_folder(tmp_path)
        assert {split: image_set.names for split, image_set in loaded.splits.items()} == {
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
        subjects = {split: set(image_set.subjects) for split, image_set in loaded.splits.items()}
        assert sum(map(len, subjects.values())) == len(set.union(*subjects.values())) == 120
        assert loaded.subjects_known
        # Binomial, 120 draws of 0.5 and 0.25: standard deviations 5.5 and 4.7; four of them are allowed.
        assert [len(members) for members in subjects.values()] == pytest.approx([60, 30, 30], abs=22)

    def test_a_subject_that_is_added_later_moves_nobody(self, tmp_path):
        def split_of():
            return {name: split for split, images in load_folder(tmp_path).splits.items() for name in images.names}

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
        assert [name for image_set in load_folder(tmp_path).splits.values() for name in image_set.names] == ["a.png"]

    def test_a_folder_without_images_is_refused(self, tmp_path):
        with pytest.raises(UserError, match=r"--data .*: expected images, found none\. Run extract_slices\.py, or"):
            load_folder(tmp_path)

    def test_folders_of_classes_may_be_in_each_split_or_in_an_unsplit_folder(self, tmp_path):
        for name in ("train/cat/1.png", "train/dog/1.png", "test/cat/1.png"):
            save(tmp_path / "split" / name)
        for name in ("cat/1.png", "dog/1.png", "dog/deep/2.png"):
            save(tmp_path / "unsplit" / name)
        assert names(listed(tmp_path / "split", "folder")) == {
            "train": ["train/cat/1.png", "train/dog/1.png"], "test": ["test/cat/1.png"]}
        unsplit = listed(tmp_path / "unsplit", "folder", split=(1, 0, 0))
        assert names(unsplit) == {"train": ["cat/1.png", "dog/1.png", "dog/deep/2.png"]}
        assert len({file.subject for file in unsplit}) == 3

    def test_the_subject_may_stand_in_a_folders_name_where_it_is_not_in_the_files(self, tmp_path):
        for name in ("train/p1/a.png", "train/p1/b.png", "test/p2/a.png"):
            save(tmp_path / name)
        assert [file.subject for file in listed(tmp_path, "folder", subject_pattern=r"(p\d)")] == [
            "p1", "p1", "p2"]

    def test_two_folders_for_one_split_are_refused(self, tmp_path):
        for name in ("train/a.png", "val/b.png", "Validate/c.png"):
            save(tmp_path / name)
        with pytest.raises(UserError, match=r"expected one folder for validate, found Validate and val\. Rename"):
            listed(tmp_path, "folder")

    def test_images_beside_the_splits_are_mentioned_once(self, tmp_path, capsys):
        for name in ("train/a.png", "val/b.png", "extra/deep/c.png", "d.png"):
            save(tmp_path / name)
        (tmp_path / "notes.txt").touch()
        load_folder(tmp_path)
        assert capsys.readouterr().out == ("images: 2 beside train, val are not read, such as d.png\n")

    @pytest.mark.parametrize(("files", "given", "said"), [
        (("all/train/a.png", "all/test/b.png"), ".", r"found test and train in 1 other folder\(s\) such as all\. "
                                                     r"Give --data .*all\."),
        (("cats/train/a.png", "cats/test/b.png", "dogs/train/a.png"), ".",
         r"found test and train in 2 other folder\(s\) such as cats\. Move them up: train/cats, not cats/train\."),
        (("train/a.png", "val/b.png"), "train", r"found train and validate in 1 other folder\(s\) such as data\. "
                                                r"Give --data .*data\.$")])
    def test_splits_that_would_be_mixed_and_split_anew_are_refused(self, files, given, said, tmp_path):
        for name in files:
            save(tmp_path / "data" / name)
        with pytest.raises(UserError, match=said):
            listed(tmp_path / "data" / given, "folder")

    @pytest.mark.parametrize("given", ["", "data", "data/keras_png_slices_train", "data/keras_png_slices_seg_test"])
    def test_the_png_release_is_not_split_anew_from_whichever_folder(self, given, tmp_path):
        for split in ("train", "validate", "test", "seg_test"):
            save(tmp_path / "data" / f"keras_png_slices_{split}" / "case_001_slice_0.nii.png")
        with pytest.raises(UserError, match=r"for --dataset folder, found keras_png_slices_ folders\. Choose --dataset "
                                            r"keras_png_slices(: --data .*data)?\.$"):
            listed(tmp_path / given, "folder")

    def test_a_class_that_happens_to_be_called_test_is_no_split(self, tmp_path):
        for name in ("a/test/1.png", "b/other/1.png"):
            save(tmp_path / name)
        assert len(listed(tmp_path, "folder")) == 2


class TestSharedSubjects:
    """Four subjects, two of them in train and test, in each layout."""

    @pytest.fixture(params=["oasis", "keras_png_slices", "folder"])
    def leaky(self, request, tmp_path):
        settings = {"data": tmp_path / "slices", "dataset": request.param}
        if request.param == "oasis":
            path = write_slices(tmp_path / "slices") / "manifest.csv"
            lines = path.read_text().splitlines()
            # The second subject's first slice, and the third's, go to test.
            moved = [line.replace(",train,", ",test,") if number in (4, 7) else line
                     for number, line in enumerate(lines)]
            path.write_text("\n".join(moved))
            return settings, "OAS1_0002"
        before = "keras_png_slices_" * (request.param != "folder")
        for split, cases in (("train", (1, 2, 3)), ("validate", (4,)), ("test", (2, 3, 5))):
            for case in cases:
                save(tmp_path / "slices" / f"{before}{split}" / f"case_{case:03d}_slice_{len(split)}.nii.png")
        if request.param == "folder":
            settings["subject_pattern"] = r"case_(\d+)"
            return settings, "002"
        return settings, "case_002"

    def test_they_are_refused_with_one_of_them_and_their_number(self, leaky):
        settings, subject = leaky
        with pytest.raises(UserError, match=rf"expected each subject in one split, found subject {subject} in "
                                            r"(test and train|train and test), and 1 more in two\. .* --allow-leak"):
            layouts.list_files(DataSettings(**settings))

    def test_with_allow_leak_they_are_counted_and_kept_in_the_config(self, leaky):
        settings, _ = leaky
        loaded = images.load_images(DataSettings(**settings, allow_leak=True))
        assert loaded.shared_subjects == 2
        assert loaded.describe()["data"]["shared_subjects"] == 2


def test_a_crop_needs_a_size(tmp_path):
    save(tmp_path / "train" / "a.png")
    with pytest.raises(UserError, match=r"--fit crop: expected --size beside it, found none\. For example --size 128"):
        load_folder(tmp_path, fit="crop")


def test_fit_and_colours_reach_the_images(tmp_path):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, 8:24, 0] = 200
    save(tmp_path / "train" / "a.png", pixels)
    shapes = {}
    for colours in ("auto", "grey", "rgb"):
        image = load_folder(tmp_path, size=8, fit="crop", colours=colours).splits["train"].pixels[0]
        shapes[colours] = image.shape
        # 0.299 x 200 are 60; of the black sides there is nothing.
        assert np.unique(image[0]).tolist() == [200 if colours != "grey" else 60]
    assert shapes == {"auto": (3, 8, 8), "grey": (1, 8, 8), "rgb": (3, 8, 8)}
    stretched = load_folder(tmp_path, size=8).splits["train"].pixels[0, 0]
    assert stretched[0].tolist() == [0, 0, 200, 200, 200, 200, 0, 0]


class TestBrokenImages:
    def test_they_are_all_listed_over_the_splits_with_their_number(self, tmp_path):
        for split in ("train", "val", "test"):
            for number in range(5):
                save(tmp_path / split / f"{number}.png")
        for name in ("train/0.png", "val/3.png", "test/4.png"):
            (tmp_path / name).write_bytes(b"no picture")
        torn = tmp_path / "train" / "2.png"
        torn.write_bytes(torn.read_bytes()[:50])
        with pytest.raises(UserError) as caught:
            load_folder(tmp_path)
        assert str(caught.value) == (
            f"--data {tmp_path}: expected images that can all be read, found 4 of 15 that cannot: test/4.png (cannot "
            "identify image file); train/0.png (cannot identify image file); train/2.png (image file is truncated); "
            "val/3.png (cannot identify image file). Delete them or make them again.")

    def test_of_many_the_first_ten_are_named(self, tmp_path):
        for number in range(13):
            (tmp_path / "train").mkdir(exist_ok=True)
            (tmp_path / "train" / f"{number:02d}.png").touch()
        with pytest.raises(UserError, match=r"found 13 of 13 that cannot: train/00\.png .*train/09\.png [^;]*; and "
                                            r"3 more\. Delete"):
            load_folder(tmp_path)


def jpeg(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(RAMP).save(path)


class TestArchivesPictures:
    def test_slices_of_a_head_of_the_oasis_jpegs_are_one_subject(self, tmp_path):
        for who in (1, 2, 4, 28):
            for number in range(100, 106):
                jpeg(tmp_path / "Non Demented" / f"OAS1_{who:04d}_MR1_mpr-1_{number}.jpg")
        assert {file.subject for file in listed(tmp_path, "folder")} == {f"OAS1_{who:04d}" for who in (1, 2, 4, 28)}

    def test_a_head_in_two_splits_is_refused(self, tmp_path):
        for split in ("train", "test"):
            jpeg(tmp_path / split / f"OAS1_0028_MR1_mpr-1_{len(split)}.jpg")
        with pytest.raises(UserError, match="each subject in one split, found subject OAS1_0028 in train and test"):
            listed(tmp_path, "folder")
