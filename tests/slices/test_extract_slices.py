import csv
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import on_screen
from PIL import Image
from scan_files import block, save, save_analyze, save_bids, slices_in

from vqvae2.commands import extract as extract_slices
from vqvae2.common.errors import UserError
from vqvae2.slices import extraction
from vqvae2.slices.splits import own_split

ROOT = Path(__file__).parents[2]
REAL_SCANS = ROOT.parent / "shared/data/scans"
SUBJECTS = 7
SMALL = ["--size", "16", "--field-of-view", "16", "--per-scan", "2", "--workers", "1"]


@pytest.fixture
def scans(apart) -> Path:
    return save_bids(apart / "scans", SUBJECTS)


def extract(scans: Path, out: Path, *more: object) -> tuple[list[dict], list[dict], dict]:
    """Run the script; return the rows of manifest.csv and rejected.csv, and extraction.json."""
    extract_slices.main(["--scans", str(scans), "--out", str(out), *SMALL, *map(str, more)])
    return (*(list(csv.DictReader((out / name).open(newline=""))) for name in ("manifest.csv", "rejected.csv")),
            json.loads((out / "extraction.json").read_text()))


def test_the_manifest_has_its_columns_in_order_and_tells_the_truth(scans, apart, capsys):
    rows, rejected, report = extract(scans, apart / "out", "--planes", "axial", "sagittal")
    header = (apart / "out/manifest.csv").read_text().splitlines()[0]
    assert header.startswith("image,split,subject,session,scan,plane,index,position_mm,low,high,sha256,orientation,"
                             "orientation_from,background,nan_voxels,volume,run,age,sex,scan_sha256,voxels")
    assert len(rows) == SUBJECTS * 2 * 2
    for row in rows:
        path = apart / "out" / row["image"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == row["sha256"]
        assert row["image"] == f"{row['split']}/{row['subject']}_{row['plane']}{int(row['index']):03d}.png"
        assert row["scan"] == f"sub-{row['subject']}/anat/sub-{row['subject']}_T1w.nii.gz"
        assert (scans / row["scan"]).is_file()
        assert row["age"] == str(20 + int(row["subject"]))
        assert row["sex"] == "FM"[int(row["subject"]) % 2]
        assert (row["orientation"], row["nan_voxels"], row["session"]) == ("RAS", "0", "")
        with Image.open(path) as image:
            assert (image.size, image.mode) == ((16, 16), "L")
    # 10 planes, the brain is planes 2…7; parts of 0.3…0.8 have their middles at 0.425 and 0.675 of 6 planes.
    assert [(row["index"], row["position_mm"]) for row in rows[:2]] == [("4", "-0.500"), ("6", "1.500")]
    assert rejected == []
    assert report["counts"]["images"] == {split: sum(row["split"] == split for row in rows)
                                          for split in ("train", "validate", "test")}
    line = capsys.readouterr().out
    assert line.startswith(f"used {SUBJECTS} scans (0 of them unchanged since the last run), rejected 0, skipped 0")
    assert line.splitlines()[0].endswith("out/manifest.csv")


def test_no_subject_is_in_two_splits_and_new_subjects_move_nobody(scans, apart):
    rows, _, first = extract(scans, apart / "out")
    before = {row["subject"]: row["split"] for row in rows}
    for number in range(20, 40):
        save(scans / f"sub-{number}/anat/sub-{number}_T1w.nii", block(seed=number))
    rows, _, second = extract(scans, apart / "out")
    after = defaultdict(set)
    for row in rows:
        after[row["subject"]].add(row["split"])
    assert all(len(splits) == 1 for splits in after.values())
    for subject in before.keys() - first["lent"].keys() - second["lent"].keys():
        assert after[subject] == {before[subject]}


def test_sessions_of_a_subject_share_its_split(apart):
    for session in range(6):
        save(apart / f"scans/sub-x/ses-{session}/anat/sub-x_ses-{session}_T1w.nii", block(seed=session))
    rows, _, report = extract(apart / "scans", apart / "out")
    assert len(rows) == 12
    assert {row["split"] for row in rows} == {"train"}
    assert rows[0]["image"].startswith("train/x_0_axial")
    assert report["counts"]["subjects"] == {"train": 1, "validate": 0, "test": 0}


def test_a_subject_lent_to_an_empty_split_is_marked_and_comes_back(apart):
    own = defaultdict(list)
    for number in range(60):
        own[own_split(f"{number}", (64, 16, 20), 0)].append(number)
    scans = apart / "scans"
    for number in own["train"][:4]:
        save(scans / f"sub-{number}_T1w.nii", block(seed=number))
    first, _, report = extract(scans, apart / "out")
    lent = report["lent"]
    assert {each["from"] for each in lent.values()} == {"train"}
    assert {each["to"] for each in lent.values()} == {"validate", "test"}
    for number in (own["validate"][0], own["test"][0]):
        save(scans / f"sub-{number}_T1w.nii", block(seed=number))
    second, _, report = extract(scans, apart / "out")
    assert report["lent"] == {}
    moved = {row["subject"]: row["split"] for row in second}
    assert {moved[subject] for subject in lent} == {"train"}
    assert {row["sha256"] for row in first} <= {row["sha256"] for row in second}
    assert {row["image"] for row in second} == {name for name in slices_in(apart / "out") if name.endswith(".png")}


def test_equal_work_gives_equal_bytes_for_any_number_of_workers_and_again(scans, apart, capsys):
    (scans / "sub-03/anat/sub-03_T1w.nii.gz").write_text("text")
    extract(scans, apart / "one")
    extract(scans, apart / "two", "--workers", 2)
    once = slices_in(apart / "one")
    assert once == slices_in(apart / "two")
    capsys.readouterr()
    extract(scans, apart / "one")
    assert "used 6 scans (6 of them unchanged since the last run), rejected 1" in capsys.readouterr().out
    assert once == slices_in(apart / "one")
    content = b"".join((apart / "one" / name).read_bytes() for name in ("extraction.json", "manifest.csv"))
    assert str(apart).encode() not in content
    assert b"workers" not in content


def test_a_preset_and_the_flags_that_it_stands_for_cut_the_same_slices(scans, apart, capsys):
    (apart / "mine.toml").write_text("[extract]\nplanes = ['coronal']\nbits = 16")
    extract(scans, apart / "out", "--planes", "coronal", "--bits", "16")
    by_flags = slices_in(apart / "out")
    capsys.readouterr()
    extract(scans, apart / "out", "--preset", apart / "mine.toml")
    assert f"({SUBJECTS} of them unchanged" in capsys.readouterr().out
    assert slices_in(apart / "out") == by_flags


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"half")])
def test_a_slice_that_is_gone_or_damaged_is_made_again_and_no_other_scan_is(scans, apart, damage):
    extract(scans, apart / "out")
    before = slices_in(apart / "out")
    times = {path: path.stat().st_ino for path in (apart / "out").rglob("*.png")}
    damage(min((apart / "out").rglob("02_axial*.png")))
    extract(scans, apart / "out")
    assert slices_in(apart / "out") == before
    assert {path.name[:2] for path, time in times.items() if path.stat().st_ino != time} == {"02"}


def test_a_killed_run_goes_on_from_what_it_has_noted(scans, apart, monkeypatch):
    extract(scans, apart / "whole")
    work_on, calls = extraction.work_on, []

    def killed_at_the_fourth(*task):
        calls.append(task)
        if len(calls) == 4:
            (apart / "out/train/.04_axial004.tmp.png").write_bytes(b"half")
            raise KeyboardInterrupt("killed at the fourth scan")
        return work_on(*task)
    monkeypatch.setattr(extraction, "work_on", killed_at_the_fourth)
    with pytest.raises(KeyboardInterrupt, match="at the fourth scan"):
        extract(scans, apart / "out")
    assert not (apart / "out/manifest.csv").exists()
    done = {path.name: path.stat().st_ino for path in (apart / "out").rglob("*.png") if path.name[0] != "."}
    assert len(done) == 6
    noted = sorted((apart / "out/.scans").glob("*.json"))
    assert len(noted) == 3
    noted[0].write_text('{"pixels": "cut o')
    monkeypatch.setattr(extraction, "work_on", work_on)
    extract(scans, apart / "out")
    assert slices_in(apart / "out") == slices_in(apart / "whole")
    kept = {path.name for path in (apart / "out").rglob("*.png") if done.get(path.name) == path.stat().st_ino}
    assert len(kept) == 4


def test_a_killed_run_leaves_nothing_to_one_with_other_settings(scans, apart, monkeypatch):
    extract(scans, apart / "whole", "--per-scan", 1)
    work_on = extraction.work_on

    def killed_after_the_first(*task):
        work_on(*task)
        raise KeyboardInterrupt("killed after the first scan")
    monkeypatch.setattr(extraction, "work_on", killed_after_the_first)
    with pytest.raises(KeyboardInterrupt, match="after the first scan"):
        extract(scans, apart / "out", "--per-scan", 5)
    monkeypatch.setattr(extraction, "work_on", work_on)
    extract(scans, apart / "out", "--per-scan", 1)
    assert slices_in(apart / "out") == slices_in(apart / "whole")


@pytest.mark.parametrize("change", [
    ["--per-scan", "1"], ["--planes", "coronal", "axial"], ["--size", "24"], ["--bits", "16"],
    ["--extent", "0.1", "0.6"], ["--seed", "3"], ["--split", "50", "25", "25"]])
def test_changed_settings_give_what_a_fresh_run_gives(scans, apart, change):
    extract(scans, apart / "out")
    (apart / "out/train/mine.png").write_bytes(b"not ours")
    extract(scans, apart / "out", *change)
    extract(scans, apart / "fresh", *change)
    changed = slices_in(apart / "out")
    assert changed.pop("train/mine.png")
    assert changed == slices_in(apart / "fresh")


def test_a_changed_scan_is_read_again_and_with_prune_a_removed_one_leaves_no_slices(scans, apart):
    extract(scans, apart / "out")
    save(scans / "sub-02/anat/sub-02_T1w.nii.gz", block(seed=99))
    shutil.rmtree(scans / "sub-05")
    extract(scans, apart / "out", "--prune")
    extract(scans, apart / "fresh")
    assert slices_in(apart / "out") == slices_in(apart / "fresh")
    assert not list((apart / "out").rglob("05_*"))


def test_bad_files_are_rows_in_rejected_csv_and_leave_nothing_else(scans, apart):
    extract(scans, apart / "out")
    good = slices_in(apart / "out")
    gz = (scans / "sub-01/anat/sub-01_T1w.nii.gz").read_bytes()
    bad = {"sub-90_T1w.nii.gz": lambda path: path.write_text("text, not a scan"),
           "sub-91_T1w.nii.gz": lambda path: path.write_bytes(gz[:200]),
           "sub-92_T1w.nii": lambda path: save(path, np.zeros((8, 8, 8), np.int16)),
           "sub-93_T1w.hdr": lambda path: save_analyze(path, block()),
           "sub-94_T1w.nii": lambda path: path.write_bytes(b"")}
    for name, make in bad.items():
        make(scans / name)
    _, rejected, report = extract(scans, apart / "out")
    assert [row["scan"] for row in rejected] == list(bad)
    for row, words in zip(rejected, ["found text", "cut short", "same value, 0,", "--assume-orientation", "empty"]):
        assert words in row["reason"]
        assert row["reason"].startswith("expected ")
    counts = {name: report["counts"][name] for name in ("scans", "used", "rejected", "skipped", "gone")}
    assert counts == {"scans": 12, "used": 7, "rejected": 5, "skipped": 0, "gone": 0}
    reports = {"rejected.csv", "extraction.json", "index.html"}
    assert {k: v for k, v in slices_in(apart / "out").items() if k not in reports} == {
        k: v for k, v in good.items() if k not in reports}
    # Told how it is stored, the Analyze pair is used.
    assert len(extract(scans, apart / "out", "--assume-orientation", "las")[1]) == 4


def test_a_folder_of_which_no_scan_can_be_used_is_an_error_with_the_reason_and_the_list(apart, refusal):
    for number in range(1, 4):
        save(apart / f"raw/sub-0{number}_T1w.nii", np.zeros((8, 8, 8 + (number == 3)), np.int16))
    (apart / "raw/sub-03_T1w.nii").write_bytes(b"")
    for _ in range(2):  # the second time all is recalled
        said = refusal(extract_slices.main, "--scans", "raw", "--out", "out", "--workers", "1")
        assert re.search(r"^--scans: expected at least one scan that can be used, found none of 3\. See "
                         r"out/rejected\.csv; most often: expected .*same value, 0", said)
    assert (apart / "out/rejected.csv").read_text().count("_T1w.nii,") == 3
    assert (apart / "out/index.html").is_file()
    assert json.loads((apart / "out/extraction.json").read_text())["counts"]["used"] == 0


def test_strict_ends_at_a_bad_file_and_goes_on_once_it_is_gone(scans, apart):
    bad = scans / "sub-04/anat/sub-04_T1w.nii.gz"
    good = bad.read_bytes()
    bad.write_text("hello")
    with pytest.raises(UserError, match=r"^sub-04/anat/sub-04_T1w\.nii\.gz: expected a NIfTI, .* found text \('hello'\)"
                                        r"\. .*Without --strict it is skipped\."):
        extract(scans, apart / "out", "--strict")
    assert not (apart / "out/manifest.csv").exists()
    bad.write_bytes(good)
    extract(scans, apart / "out", "--strict")
    extract(scans, apart / "fresh")
    assert slices_in(apart / "out") == slices_in(apart / "fresh")


def test_oasis_1_analyze_files_are_used_with_their_known_storage(apart):
    session = apart / "scans/disc1/OAS1_0007_MR1"
    save_analyze(session / "RAW/OAS1_0007_MR1_mpr-1_anon.hdr", block(), storage="ASL")
    save_analyze(session / "PROCESSED/MPRAGE/T88_111/OAS1_0007_MR1_mpr_n4_anon_111_t88_masked_gfc.hdr",
                 block(seed=1), storage="LAS")
    save(apart / "plain/a.nii", block(seed=1))
    rows, _, report = extract(apart / "scans", apart / "out")
    plain, _, _ = extract(apart / "plain", apart / "plain-out")
    assert [row["sha256"] for row in rows] == [row["sha256"] for row in plain]
    assert {(row["subject"], row["session"], row["orientation"]) for row in rows} == {("OAS1_0007", "MR1", "LAS")}
    assert report["counts"]["skipped"] == 1
    shutil.rmtree(session / "PROCESSED")
    save(apart / "plain/a.nii", block())
    raw = extract(apart / "scans", apart / "out", "--prune")[0]
    plain, _, _ = extract(apart / "plain", apart / "plain-out")
    assert [row["sha256"] for row in raw] == [row["sha256"] for row in plain]


def test_a_header_that_is_repaired_counts_also_beside_newer_voxels(apart):
    """The repaired .hdr may be older than the .img beside it, as when it comes from a backup."""
    path = save(apart / "scans/a.hdr", block(), storage="RAS", kind=nib.Nifti1Pair)
    os.utime(path.with_suffix(".img"), ns=(3 * 10**18,) * 2)
    os.utime(path, ns=(2 * 10**18,) * 2)
    before, _, _ = extract(apart / "scans", apart / "out")
    save(apart / "repaired/a.hdr", block()[::-1], storage="LAS", kind=nib.Nifti1Pair)
    path.write_bytes((apart / "repaired/a.hdr").read_bytes())
    os.utime(path, ns=(10**18,) * 2)
    after, _, _ = extract(apart / "scans", apart / "out")
    assert [row["orientation"] for row in before + after] == ["RAS", "RAS", "LAS", "LAS"]
    assert extract(apart / "scans", apart / "out")[0] == after


def test_an_image_that_is_lost_before_the_other_parts_end_is_no_row_but_drawn_again(scans, apart, capsys):
    extract_slices.main(["--scans", str(scans), "--out", "out", "--shard", "1/2", *SMALL])
    min((apart / "out").glob("*/*.png")).unlink()
    capsys.readouterr()
    extract_slices.main(["--scans", str(scans), "--out", "out", "--shard", "2/2", *SMALL])
    assert capsys.readouterr().out.endswith("the manifest is written when all are done, not yet: 1\n")
    assert not (apart / "out/manifest.csv").exists()
    extract_slices.main(["--scans", str(scans), "--out", "out", "--shard", "1/2", *SMALL])
    extract(scans, apart / "fresh")
    assert slices_in(apart / "out") == slices_in(apart / "fresh")


def test_scans_that_would_clash_keep_all_their_images(apart):
    for data_set in "ab":
        save(apart / f"scans/{data_set}/sub-01/anat/sub-01_T1w.nii", block(seed=ord(data_set)))
    rows, _, _ = extract(apart / "scans", apart / "out")
    assert len({row["image"] for row in rows}) == 4
    assert len({row["sha256"] for row in rows}) == 4
    assert len({row["split"] for row in rows}) == 1


def test_paths_come_from_env_files_and_the_environment_beats_them(scans, apart, monkeypatch):
    (apart / ".env").write_text(f"OASIS_PATH={scans}\nSLICES_PATH={apart / 'from-env-file'}\n")
    extract_slices.main(SMALL)
    assert (apart / "from-env-file/manifest.csv").is_file()
    monkeypatch.setenv("SLICES_PATH", str(apart / "from-environment"))
    extract_slices.main(SMALL)
    assert slices_in(apart / "from-environment") == slices_in(apart / "from-env-file")


@pytest.mark.parametrize(("workers", "number"), [(1, signal.SIGTERM), (2, signal.SIGHUP)])
def test_a_signal_ends_a_run_with_75_and_the_next_one_goes_on(apart, workers, number):
    """A batch system stops a run so, and a terminal that is closed: every process of the run gets the signal."""
    save_bids(apart / "scans", 40)
    command = [sys.executable, str(ROOT / "extract_slices.py"), "--scans", "scans", "--out", "out", "--per-scan", "60",
               "--planes", "axial", "coronal", "sagittal", "--extent", "0", "1", "--workers", str(workers)]
    run = subprocess.Popen(command, cwd=apart, text=True, stderr=subprocess.PIPE, start_new_session=True)
    while not list((apart / "out/.scans").glob("[!.]*.json")):
        assert run.poll() is None
        time.sleep(0.01)
    os.killpg(run.pid, number)
    said = run.communicate(timeout=60)[1]
    assert run.returncode == 75
    assert on_screen(said)[-1] == f"Stopped by {number.name}. Run the same command again to go on."
    assert not (apart / "out/manifest.csv").exists()
    again = subprocess.run(command, cwd=apart, text=True, capture_output=True, check=True)
    assert int(re.search(r"\((\d+) of them unchanged", again.stdout)[1]) > 0
    subprocess.run([*command, "--out", "whole"], cwd=apart, capture_output=True, check=True)
    assert slices_in(apart / "out") == slices_in(apart / "whole")


def test_wrong_paths_are_refused_in_one_line_before_anything_is_written(scans, apart, refusal):
    (apart / "empty").mkdir()
    (apart / "file").write_text("")
    before = slices_in(apart)
    for arguments, words in (
            (["--out", "out"], "--scans: expected a folder, or OASIS_PATH in the environment or in .env, found"),
            (["--scans", scans], "--out: expected a folder, or SLICES_PATH"),
            (["--scans", "nowhere", "--out", "out"], "--scans nowhere: expected a folder of scans, found nothing."),
            (["--scans", "file", "--out", "out"], "--scans file: expected a folder of scans, found a file. Give"),
            (["--scans", "empty", "--out", "out"], "--scans empty: expected T1-weighted scans"),
            (["--scans", scans, "--out", "file"], "--out file: expected a folder or nothing, found a file file."),
            (["--scans", scans, "--out", "file/x"], "--out file/x: expected a folder or nothing, found a file file."),
            (["--scans", scans, "--out", scans / "x"], "expected a folder outside of --scans, found one inside"),
            (["--scans", scans, "--out", scans], "expected a folder outside of --scans, found one inside")):
        assert words in refusal(extract_slices.main, *arguments)
    assert slices_in(apart) == before
    assert not (apart / "out").exists()


def test_the_command_line_ends_with_2_for_a_user_error_and_0_when_done(scans, apart):
    def run(*arguments):
        return subprocess.run([sys.executable, str(ROOT / "extract_slices.py"), *arguments], cwd=apart, text=True,
                              capture_output=True, check=False)
    failed = run("--scans", "nowhere", "--out", "out")
    assert (failed.returncode, failed.stderr.count("\n"), failed.stdout) == (2, 1, "")
    done = run("--scans", str(scans), "--out", "out", *SMALL[:-1], "2")
    assert done.returncode == 0
    assert done.stdout.startswith("used 7 scans")
    assert "scan/s" in done.stderr


@pytest.mark.skipif(not REAL_SCANS.is_dir(), reason="needs the development scans, ../shared/data/scans")
def test_two_real_scans_fill_the_picture_as_a_brain_does(apart):
    for name in ("sub-01", "sub-02"):
        (apart / "scans").mkdir(exist_ok=True)
        (apart / "scans" / name).symlink_to(REAL_SCANS / name)
    extract_slices.main(["--scans", str(apart / "scans"), "--out", str(apart / "out"), "--size", "64", "--workers", "1",
                         "--planes", "axial", "coronal", "sagittal"])
    rows = list(csv.DictReader((apart / "out/manifest.csv").open()))
    assert [(row["subject"], row["plane"], row["orientation"]) for row in rows] == [
        (subject, plane, "LAS") for subject in ("01", "02") for plane in ("axial", "coronal", "sagittal")]
    for row in rows:
        picture = np.asarray(Image.open(apart / "out" / row["image"]))
        assert 0.1 < (picture > 0).mean() < 0.45
        assert picture[:4].max() == picture[-4:].max() == 0
        assert 90 < picture[picture > 0].mean() < 190
