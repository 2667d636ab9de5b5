"""extract_slices.py --layout keras_png_slices: the same images under another name, and never one that is not right."""

import csv
import hashlib
import os
from pathlib import Path

import pytest
from scan_files import save_bids, slices_in

from vqvae2.commands import extract as extract_slices
from vqvae2.common.errors import UserError
from vqvae2.images.dataset import load_images
from vqvae2.images.settings import DataSettings
from vqvae2.slices.keras_names import links_of

SUBJECTS = 7
SMALL = ["--size", "16", "--field-of-view", "16", "--per-scan", "2", "--workers", "1"]
KERAS = ["--layout", "keras_png_slices"]
FOLDERS = {split: f"keras_png_slices_{split}" for split in ("train", "validate", "test")}


@pytest.fixture
def scans(apart) -> Path:
    return save_bids(apart / "scans", SUBJECTS)


@pytest.fixture
def out(apart) -> Path:
    return apart / "out"


def extract(scans: Path, out: Path, *more: object) -> None:
    extract_slices.main(["--scans", str(scans), "--out", str(out), *SMALL, *map(str, more)])


def rows_of(path: Path) -> list[dict]:
    return list(csv.DictReader(path.open(newline="")))


def links_in(out: Path) -> dict[str, str]:
    """Hash of every file in the layout's folders by its path."""
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for folder in FOLDERS.values() for path in sorted((out / folder).glob("*"))}


def expected_links(out: Path) -> dict[str, str]:
    """The same, worked out from the manifest."""
    rows = rows_of(out / "manifest.csv")
    cases = {subject: number for number, subject in enumerate(sorted({row["subject"] for row in rows}), 1)}
    seen = dict.fromkeys(cases, -1)
    found = {}
    for row in rows:
        seen[row["subject"]] += 1
        name = f"case_{cases[row['subject']]:03d}_slice_{seen[row['subject']]}.nii.png"
        found[f"keras_png_slices_{row['split']}/{name}"] = row["sha256"]
    return found


def manifest(*rows):
    return [{"subject": subject, "split": split, "image": image, "sha256": "0"} for subject, split, image in rows]


class TestNumbers:
    def test_cases_follow_subjects_names_and_slices_the_manifests_order(self):
        links = links_of(manifest(("b", "test", "test/b9.png"), ("a", "train", "train/a2.png"),
                                  ("b", "test", "test/b1.png")))
        assert [(link["case"], link["subject"], link["image"], link["link"]) for link in links] == [
            ("case_001", "a", "train/a2.png", "keras_png_slices_train/case_001_slice_0.nii.png"),
            ("case_002", "b", "test/b9.png", "keras_png_slices_test/case_002_slice_0.nii.png"),
            ("case_002", "b", "test/b1.png", "keras_png_slices_test/case_002_slice_1.nii.png")]

    def test_a_thousand_subjects_have_four_digits_so_that_names_sort_as_numbers(self):
        links = links_of(manifest(*((f"s{number:04d}", "train", f"train/{number}.png") for number in range(1000))))
        assert (links[0]["case"], links[-1]["case"]) == ("case_0001", "case_1000")


class TestLayout:
    def test_every_image_is_there_once_more_under_its_case_without_taking_room(self, scans, out, capsys):
        extract(scans, out, *KERAS)
        assert links_in(out) == expected_links(out)
        for row in rows_of(out / "cases.csv"):
            assert os.path.samefile(out / row["image"], out / row["link"])
            assert row["link"].startswith(f"keras_png_slices_{row['split']}/{row['case']}_slice_")
        assert len(rows_of(out / "cases.csv")) == 2 * SUBJECTS
        assert f"layout: {2 * SUBJECTS} links for {SUBJECTS} cases in keras_png_slices_train" in capsys.readouterr().out

    def test_both_layouts_of_the_folder_load_as_the_same_images_in_the_same_splits(self, scans, out):
        extract(scans, out, *KERAS)
        original, other = (load_images(DataSettings(data=out, dataset=name)) for name in ("oasis", "keras_png_slices"))
        subject_of = {row["case"]: row["subject"] for row in rows_of(out / "cases.csv")}
        for split, images in original.splits.items():
            found = other.splits[split]
            pictures = [{(subject, picture.tobytes()) for subject, picture in zip(subjects, of.pixels)}
                        for of, subjects in ((images, images.subjects), (found, map(subject_of.get, found.subjects)))]
            assert pictures[0] == pictures[1]
            assert len(images) == len(found) > 0

    def test_where_there_are_no_hard_links_they_are_copies(self, scans, out, monkeypatch, capsys):
        def none(*_):
            raise PermissionError
        monkeypatch.setattr(os, "link", none)
        extract(scans, out, *KERAS)
        assert links_in(out) == expected_links(out)
        assert f"{2 * SUBJECTS} of them copies" in capsys.readouterr().out
        extract(scans, out, *KERAS)  # and they are known to be right again
        assert links_in(out) == expected_links(out)

    def test_parts_make_it_too_and_the_bytes_are_those_of_one_run(self, scans, out, apart):
        extract(scans, out, *KERAS)
        for part in ("1/2", "2/2"):
            extract(scans, apart / "parts", *KERAS, "--shard", part)
        assert slices_in(apart / "parts") == slices_in(out)

    def test_nothing_else_changes_by_it(self, scans, out, apart):
        extract(scans, out, *KERAS)
        extract(scans, apart / "plain")
        own = {name: content for name, content in slices_in(out).items()
               if not name.startswith(("keras_png_slices_", "cases.csv", "extraction.json"))}
        plain = slices_in(apart / "plain")
        del plain["extraction.json"]  # which says --layout, where it is not the default
        assert own == plain


class TestAgain:
    def test_without_a_change_every_byte_and_file_stays(self, scans, out):
        extract(scans, out, *KERAS)
        before = slices_in(out), {name: (out / name).stat().st_ino for name in [*links_in(out), "cases.csv"]}
        extract(scans, out, *KERAS)
        assert (slices_in(out), {name: (out / name).stat().st_ino for name in before[1]}) == before

    @pytest.mark.parametrize("change", [["--per-scan", "1"], ["--size", "24"], ["--split", "10", "45", "45"],
                                        ["--planes", "axial", "coronal"]])
    def test_after_a_change_it_is_what_a_fresh_run_makes(self, change, scans, out, apart):
        extract(scans, out, *KERAS)
        extract(scans, out, *KERAS, *change)
        extract(scans, apart / "fresh", *KERAS, *change)
        assert slices_in(out) == slices_in(apart / "fresh")
        assert links_in(out) == expected_links(out)

    def test_without_the_flag_its_own_links_go_and_all_that_it_does_not_know_stays(self, scans, out, apart, capsys):
        extract(scans, out, *KERAS)
        (out / FOLDERS["test"] / "notes.txt").write_text("mine")
        (out / FOLDERS["test"] / "case_900_slice_0.nii.png").write_text("mine")
        extract(scans, out)
        assert links_in(out).keys() == {f"keras_png_slices_test/{name}"
                                        for name in ("notes.txt", "case_900_slice_0.nii.png")}
        assert not (out / FOLDERS["train"]).exists()
        assert not (out / "cases.csv").exists()
        assert f"removed: {2 * SUBJECTS} links of an earlier --layout" in capsys.readouterr().out

    @pytest.mark.parametrize("name", ["case_001_slice_0.nii.png", "other.jpg", "case_002"])
    def test_pictures_that_it_has_not_made_are_an_error_before_anything_is_written(self, name, scans, out):
        path = out / FOLDERS["train"] / name
        path.parent.mkdir(parents=True)
        path.mkdir() if "." not in name else path.write_text("mine")
        before = slices_in(out)
        with pytest.raises(UserError, match=r"--out .*: expected nothing but its own links, .* found 1 other\(s\), "
                                            rf"such as keras_png_slices_train/{name}\. Move them away"):
            extract(scans, out, *KERAS)
        assert slices_in(out) == before

    def test_a_table_that_names_other_files_removes_none_of_them(self, scans, out):
        extract(scans, out, *KERAS)
        (out / "mine.png").write_text("mine")
        with (out / "cases.csv").open("a") as file:
            file.write("case_900,x,train,train/x.png,../out/mine.png\ncase_901,x,train,train/x.png,mine.png\n")
        extract(scans, out)
        assert (out / "mine.png").read_text() == "mine"


class TestKilled:
    @pytest.mark.parametrize("moment", range(0, 36, 3))
    def test_whenever_it_is_killed_no_link_is_wrong_and_the_next_run_ends_it(
            self, moment, scans, out, apart, monkeypatch):
        """The layout changes from 2 images a scan to 1, in other splits, and ends after `moment` changes of files."""
        extract(scans, out, *KERAS)
        before = links_in(out)
        extract(scans, apart / "fresh", *KERAS, "--per-scan", "1", "--split", "10", "45", "45")
        after = links_in(apart / "fresh")
        left = [moment]

        def dies(function):
            def maybe(*arguments, **options):
                path = Path(arguments[-1])
                if "keras" in str(path) or "cases" in path.name:
                    left[0] -= 1
                    if left[0] < 0:
                        raise KeyboardInterrupt
                return function(*arguments, **options)
            return maybe

        with monkeypatch.context() as patch:
            patch.setattr(os, "link", dies(os.link))
            patch.setattr(os, "replace", dies(os.replace))
            patch.setattr(Path, "unlink", dies(Path.unlink))
            try:
                extract(scans, out, *KERAS, "--per-scan", "1", "--split", "10", "45", "45")
                killed = False
            except KeyboardInterrupt:
                killed = True
        assert killed or moment > 20
        found = links_in(out).items()
        assert found <= before.items() or found <= after.items()
        if killed and found != before.items():
            with pytest.raises(UserError, match=r"links that are all there, found some that are not yet"):
                load_images(DataSettings(data=out, dataset="keras_png_slices"))
        # The next run may have other settings than the one that was killed.
        extract(scans, out, *KERAS, "--per-scan", "1", "--split", *(("64", "16", "20") if moment % 2 else (10, 45, 45)))
        assert links_in(out) == expected_links(out)
        assert not (out / ".cases-before.csv").exists()


def test_a_manifest_is_never_beside_links_that_contradict_it(scans, out, monkeypatch):
    extract(scans, out, *KERAS)

    def stop(*_):
        raise KeyboardInterrupt("while linking")
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", stop)
        with pytest.raises(KeyboardInterrupt, match="while linking"):
            extract(scans, out, *KERAS, "--split", "10", "45", "45")
    assert not (out / "manifest.csv").exists()
    extract(scans, out, *KERAS, "--split", "10", "45", "45")
    assert links_in(out) == expected_links(out)
