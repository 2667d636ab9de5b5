"""Tests that folders of DICOM files are found, told whose they are, and read through dcm2niix."""

import concurrent.futures
import gzip
import os
import random
import re
import shutil
import stat
import time
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import files_in
from scan_files import block, save, slices_in
from test_archives import tree_of

from vqvae2.commands import extract
from vqvae2.evaluation import prediction
from vqvae2.scans import dicom
from vqvae2.scans.finding import find_scans
from vqvae2.scans.headers import UnusableScan
from vqvae2.scans.nifti import grid_of
from vqvae2.scans.volumes import file_sha256, files_of, read_volume, same_voxels
from vqvae2.slices.scan_slices import read_table
from vqvae2.slices.settings import ExtractSettings

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
dcm2niix = pytest.importorskip("dcm2niix", reason="needs the extra dicom")
from dicom_files import NAME, changed, save_enhanced, save_slices  # noqa: E402, needs pydicom

STORAGES = ["LPS", "LPI", "PIL", "PIR", "LIP", "LIA"]
"""Axial, sagittal and coronal slices, from either end."""
COSINE, SINE = np.cos(np.radians(20)), np.sin(np.radians(20))
TILTED = np.array([[1, 0, 0], [0, COSINE, -SINE], [0, SINE, COSINE]])
SIZES = (1.0, 1.5, 2.0)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    """A cache of each test's own."""
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("VQVAE2_CACHE", str(place))
    return place


@pytest.fixture
def conversions(monkeypatch) -> list:
    """Every run of dcm2niix, in a list that grows."""
    runs, run = [], dicom._run
    monkeypatch.setattr(dicom, "_run", lambda *given, **more: runs.append(given) or run(*given, **more))
    return runs


def names(folder: Path, **options) -> list[str]:
    return [scan.name for scan in find_scans(folder, **options).scans]


def people(folder: Path, **options) -> dict[str, tuple[str, str]]:
    return {scan.name: (scan.subject, scan.session) for scan in find_scans(folder, **options).scans}


# What is read

@pytest.mark.parametrize("turn", [None, TILTED], ids=["straight", "oblique"])
@pytest.mark.parametrize("storage", STORAGES)
def test_classic_slices_in_any_order_of_names_give_the_volume_that_was_acquired(tmp_path, storage, turn):
    ras = block()
    save_slices(tmp_path / "s", ras, sizes=SIZES, storage=storage, turn=turn, reverse=True)
    volume = read_volume(tmp_path / "s")
    np.testing.assert_array_equal(volume.voxels, ras)
    assert volume.voxel_size_mm == pytest.approx(SIZES, rel=1e-5)
    assert volume.orientation_from in ("sform", "qform")


@pytest.mark.parametrize("turn", [None, TILTED], ids=["straight", "oblique"])
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("in_order", [True, False], ids=["in order", "shuffled"])
def test_an_enhanced_file_with_frames_in_any_order_gives_the_volume(tmp_path, storage, turn, in_order):
    ras = block()
    slices = {"S": 10, "I": 10, "L": 12, "R": 12, "P": 14, "A": 14}[storage[2]]
    order = range(slices) if in_order else np.random.default_rng(1).permutation(slices)
    save_enhanced(tmp_path / "s/any", ras, sizes=SIZES, storage=storage, turn=turn, order=order)
    volume = read_volume(tmp_path / "s")
    np.testing.assert_array_equal(volume.voxels, ras)
    assert volume.voxel_size_mm == pytest.approx(SIZES, rel=1e-5)


def test_each_voxel_of_an_oblique_series_lies_where_the_scanner_says(tmp_path):
    ras = block()
    affine = np.eye(4)
    affine[:3, :3] = TILTED @ np.diag(SIZES)
    save_slices(tmp_path / "s", ras, sizes=SIZES, storage="PIL", turn=TILTED)
    with dicom.converted(tmp_path / "s") as path:
        image = nib.as_closest_canonical(nib.load(path))
    np.testing.assert_array_equal(image.get_fdata(), ras)
    np.testing.assert_allclose(image.affine[:3, :3], affine[:3, :3], atol=1e-5)
    header = pydicom.dcmread(tmp_path / "s/IM0001.dcm")
    # PIL: the first pixel is the most anterior, superior and right one.
    np.testing.assert_allclose(np.array(header.ImagePositionPatient) * (-1, -1, 1),
                               (image.affine @ [*np.array(ras.shape) - 1, 1])[:3], atol=1e-4)


def test_a_file_or_its_folder_is_the_scan_and_its_hash_is_of_all_files_in_natural_order(tmp_path):
    paths = save_slices(tmp_path / "s", name="IM{}.dcm")
    assert files_of(tmp_path / "s") == files_of(paths[3]) == tuple(paths)
    assert file_sha256(tmp_path / "s") == read_volume(paths[3]).sha256 == read_volume(tmp_path / "s").sha256
    before = file_sha256(tmp_path / "s")
    paths[-1].unlink()
    assert file_sha256(tmp_path / "s") != before
    assert same_voxels(tmp_path / "s", paths[0], None)


# The series that is chosen

def test_of_a_flat_dump_the_t1_is_chosen_by_its_description(tmp_path):
    t1 = block(seed=1)
    for number, description in enumerate(["localizer", "t2_flair", "AAHScout_MPR_sag", "ep2d_diff_TRACEW"], 1):
        save_slices(tmp_path / "p1", block(seed=9), description=description, number=number, study="1.2",
                    name=f"{number}-{{}}.dcm")
    save_slices(tmp_path / "p1", t1, description="SAG MPRAGE", number=7, study="1.2", name="7-{}.dcm")
    save_slices(tmp_path / "p1", block(seed=8), description="MPRAGE again", number=11, study="1.2", name="11-{}.dcm")
    assert people(tmp_path) == {"p1": ("p1", "")}
    np.testing.assert_array_equal(read_volume(tmp_path / "p1").voxels, t1)


def test_an_original_comes_before_a_derived_t1(tmp_path):
    save_slices(tmp_path, block(seed=1), number=2, study="1.2", name="a{}.dcm", ImageType=["DERIVED", "SECONDARY"])
    save_slices(tmp_path, block(seed=2), number=5, study="1.2", name="b{}.dcm")
    np.testing.assert_array_equal(read_volume(tmp_path).voxels, block(seed=2))


def test_where_no_description_says_t1_the_only_volume_is_taken_and_several_are_refused(tmp_path):
    save_slices(tmp_path, block(seed=1), description="sag 3d", number=2, study="1.2", name="a{}.dcm")
    save_slices(tmp_path, block(seed=2), description="localizer", number=1, study="1.2", name="b{}.dcm")
    np.testing.assert_array_equal(read_volume(tmp_path).voxels, block(seed=1))
    save_slices(tmp_path, block(seed=3), description="cor 3d", number=3, study="1.2", name="c{}.dcm")
    with pytest.raises(UnusableScan, match=r"expected a series that is described as T1-weighted, found 3 series: "
                                           r"localizer, sag 3d, cor 3d\. Give each series a folder"):
        read_volume(tmp_path)


def test_files_of_two_people_are_refused_and_the_message_names_nobody(tmp_path):
    save_slices(tmp_path / "s", patient="Anna", name="a{}.dcm")
    save_slices(tmp_path / "s", patient="Berta", name="b{}.dcm")
    with pytest.raises(UnusableScan, match=r"files of one person, found 2 PatientIDs\. Give each person") as caught:
        read_volume(tmp_path / "s")
    assert "Anna" not in str(caught.value)


def test_phases_and_further_echoes_are_not_taken_for_the_volume(tmp_path):
    first = save_slices(tmp_path, block(seed=1), name="m{}.dcm")
    series = pydicom.dcmread(first[0]).SeriesInstanceUID
    for seed, tags in ((2, {"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}), (3, {"EchoTime": 9.0})):
        save_slices(tmp_path, block(seed=seed), name=f"x{seed}_{{}}.dcm", SeriesInstanceUID=series, **tags)
    np.testing.assert_array_equal(read_volume(tmp_path).voxels, block(seed=1))


def test_a_segmentation_beside_the_series_is_no_scan(tmp_path):
    """As another program leaves it: of the same patient and examination, in the same folder and in one of its own."""
    highdicom = pytest.importorskip("highdicom", reason="needs highdicom, of the extra dev")
    from highdicom.sr.coding import CodedConcept
    sources = [pydicom.dcmread(path) for path in save_slices(tmp_path / "p1/MPRAGE", block(seed=1))]
    brain = CodedConcept("12738006", "SCT", "Brain")
    about = highdicom.seg.SegmentDescription(
        1, "brain", CodedConcept("91723000", "SCT", "Anatomical structure"), brain,
        highdicom.seg.SegmentAlgorithmTypeValues.MANUAL)
    mask = np.stack([source.pixel_array > 0 for source in sources]).astype(np.uint8)
    made = highdicom.seg.Segmentation(
        sources, mask, highdicom.seg.SegmentationTypeValues.BINARY, [about], highdicom.UID(), 99, highdicom.UID(), 1,
        "maker", "model", "1", "serial")
    (tmp_path / "p1/results").mkdir()
    for place in ("p1/MPRAGE/A0.dcm", "p1/results/seg.dcm"):
        made.save_as(tmp_path / place)
    result = find_scans(tmp_path)
    assert ([scan.name for scan in result.scans], result.other) == (["p1/MPRAGE"], 1)
    np.testing.assert_array_equal(read_volume(tmp_path / "p1/MPRAGE").voxels, block(seed=1))
    with pytest.raises(UnusableScan, match="expected an MR series, found only objects of other kinds"):
        read_volume(tmp_path / "p1/results")


def test_volume_n_takes_one_of_a_series_of_volumes(tmp_path):
    two_volumes(tmp_path)
    for number in (0, 1):
        np.testing.assert_array_equal(read_volume(tmp_path, number=number).voxels, block(seed=number))


# What is refused

def cut_short(folder):
    path = save_slices(folder)[4]
    path.write_bytes(path.read_bytes()[:-100])


def cut_in_the_header(folder):
    path = save_slices(folder)[4]
    path.write_bytes(path.read_bytes()[:200])


def without_positions(folder):
    for path in save_slices(folder):
        changed(path, ImagePositionPatient=None)


def turned_against_each_other(folder):
    series = pydicom.dcmread(save_slices(folder, storage="LPS", name="a{}.dcm")[0]).SeriesInstanceUID
    save_slices(folder, storage="PIL", name="b{}.dcm", SeriesInstanceUID=series)


def two_volumes(folder):
    for seed in (0, 1):
        paths = save_slices(folder, block(seed=seed), name=f"{seed}_{{}}.dcm", SeriesInstanceUID="1.2.3", study="1.2",
                            AcquisitionNumber=seed + 1, AcquisitionTime=f"14161{seed}")
        for index, path in enumerate(paths, 10 * seed + 1):
            changed(path, InstanceNumber=index)


def colours(folder):
    for path in save_slices(folder):
        changed(path, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0, BitsAllocated=8,
                BitsStored=8, HighBit=7, PixelData=np.random.default_rng(0).bytes(12 * 14 * 3))


BAD = {
    "a slice is missing": (lambda folder: save_slices(folder, skip=(4,)),
                           r"expected slices at equal distances, found 1 to 2 mm\. A slice is missing: copy"),
    "a frame is missing": (lambda folder: save_enhanced(folder / "e.dcm", skip=(4,)),
                           r"expected slices at equal distances, found 1 to 2 mm\. A slice is missing: copy"),
    "a slice of one of two volumes is missing": (
        lambda folder: (save_slices(folder, SeriesInstanceUID="1.2.3", name="a{}.dcm"),
                        save_slices(folder, SeriesInstanceUID="1.2.3", name="b{}.dcm", skip=(0,))),
        r"expected as many slices at each place, found 1 to 2\. A slice is missing"),
    "a file is cut short": (cut_short, r"whole DICOM files, found 1 cut short or damaged, such as IM0005\.dcm\."),
    "a header is cut short": (cut_in_the_header, r"expected whole DICOM files, found 1 cut .* IM0005\.dcm\. Copy"),
    "no position": (without_positions, r"expected slices with a position, .* found 10 without\. Nothing is guessed"),
    "a localizer": (turned_against_each_other, r"expected parallel slices, .*It looks like a localizer"),
    "one slice": (lambda folder: save_slices(folder, skip=range(1, 10)),
                  r"expected one 3-D volume, found shape \(12, 14, 1\)\. It looks like a picture"),
    "a series of volumes": (two_volumes, r"expected one 3-D volume, found shape \(12, 14, 10, 2\)\. .*--volume 0"),
    "colours": (colours, r"expected one real number in a voxel, found type"),
    "text with the ending": (lambda folder: (save_slices(folder), (folder / "a.dcm").write_text("hello")),
                             r"expected whole DICOM files, found 1 cut short or damaged, such as a\.dcm"),
    "an empty file": (lambda folder: (save_slices(folder), (folder / "a.dcm").write_bytes(b"")),
                      r"expected whole DICOM files, found 1 cut short or damaged, such as a\.dcm"),
    "a link to nothing": (lambda folder: (save_slices(folder), (folder / "a.dcm").symlink_to("nowhere")),
                          r"expected all files of a DICOM series, found a link to a file that is not there"),
    "an empty folder": (Path.mkdir, r"expected a folder of DICOM files, found none in it\."),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_series_is_refused_in_plain_words(tmp_path, case, cache):
    make, message = BAD[case]
    make(tmp_path / "s")
    with pytest.raises(UnusableScan, match=message) as caught:
        read_volume(tmp_path / "s")
    assert str(caught.value) == f"s: {caught.value.reason}"
    assert NAME not in str(caught.value)


def test_a_copy_of_a_slice_counts_once(tmp_path):
    paths = save_slices(tmp_path)
    shutil.copy(paths[3], tmp_path / "IM0004 (1).dcm")
    np.testing.assert_array_equal(read_volume(tmp_path).voxels, block())


@pytest.mark.parametrize(("script", "message"), [
    ("echo 'Error: no such codec'; exit 3", r"a series that dcm2niix converts, found Error: no such codec\. Copy"),
    ("echo Convert; exit 0", r"a series that dcm2niix converts, found Convert\. Copy"),
    ("exit 1", r"found status 1\."), ("exec sleep 60", r"found nothing after 0\.5 seconds\. Convert it by hand"),
])
def test_a_dcm2niix_that_fails_or_hangs_is_a_reason_and_prints_nothing(tmp_path, monkeypatch, script, message, capfd):
    save_slices(tmp_path / "s")
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o700)
    monkeypatch.setattr(dcm2niix, "bin", str(program))
    monkeypatch.setattr(dicom, "LONGEST_SECONDS", 0.5)
    start = time.monotonic()
    with pytest.raises(UnusableScan, match=message):
        read_volume(tmp_path / "s")
    assert time.monotonic() - start < 30
    assert capfd.readouterr() == ("", "")


def test_a_dcm2niix_that_cannot_start_is_a_reason(tmp_path, monkeypatch):
    save_slices(tmp_path / "s")
    monkeypatch.setattr(dcm2niix, "bin", str(tmp_path / "none"))
    with pytest.raises(UnusableScan, match=r"expected dcm2niix to start, found no such file .*pip install"):
        read_volume(tmp_path / "s")


def test_a_volume_that_dcm2niix_puts_elsewhere_is_refused(tmp_path, monkeypatch):
    save_slices(tmp_path / "s", sizes=SIZES)
    run = dicom._run

    def stretched(*given, **more):
        done = run(*given, **more)
        path = Path(given[0][-2]) / "volume.nii.gz"
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine @ np.diag([1, 1, 1.2, 1])), path)
        return done
    monkeypatch.setattr(dicom, "_run", stretched)
    with pytest.raises(UnusableScan, match=r"lies where the DICOM headers say, found its corners 3\.6 mm away"):
        read_volume(tmp_path / "s")


# The cache

def test_a_series_is_converted_once_and_again_when_a_file_changes(tmp_path, conversions):
    paths = save_slices(tmp_path / "s")
    first = read_volume(tmp_path / "s")
    again = read_volume(paths[0])
    assert len(conversions) == 1
    np.testing.assert_array_equal(first.voxels, again.voxels)
    shutil.copytree(tmp_path / "s", tmp_path / "elsewhere")
    read_volume(tmp_path / "elsewhere")
    assert len(conversions) == 1
    changed(paths[0], PatientWeight=70)
    read_volume(tmp_path / "s")
    assert len(conversions) == 2


def test_two_peoples_series_of_equal_names_sizes_and_times_are_kept_apart(tmp_path):
    for seed in (1, 2):
        for path in save_slices(tmp_path / f"p{seed}", block(seed=seed), study="1.2.3", SeriesInstanceUID="1.2.4"):
            os.utime(path, (0, 0))
    for seed in (1, 2):
        np.testing.assert_array_equal(read_volume(tmp_path / f"p{seed}").voxels, block(seed=seed))


def test_the_cache_holds_the_volume_alone_without_a_name_or_a_comment_and_for_nobody_else(tmp_path, cache):
    save_slices(tmp_path / "Surname", name="Surname{}.dcm", patient="Surname 7")
    read_volume(tmp_path / "Surname")
    [name] = files_in(cache)
    assert name.startswith("dicom/")
    content = (cache / name).read_bytes()
    for text in (name.encode(), content, gzip.decompress(content)):
        assert b"surname" not in text.lower()
        assert b"19500101" not in text
    assert stat.S_IMODE((cache / "dicom").stat().st_mode) == 0o700


@pytest.mark.parametrize("place", ["a file", "nowhere"])
def test_without_a_cache_that_can_be_written_a_series_is_converted_each_time(tmp_path, monkeypatch, conversions, place):
    save_slices(tmp_path / "s")
    (tmp_path / "file").touch()
    if place == "a file":
        monkeypatch.setenv("VQVAE2_CACHE", str(tmp_path / "file"))
    else:
        monkeypatch.delenv("VQVAE2_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", "relative")
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    for _ in range(2):
        np.testing.assert_array_equal(read_volume(tmp_path / "s").voxels, block())
    assert len(conversions) == 2
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize(("given", "place"), [
    ({"VQVAE2_CACHE": "/c"}, "/c/dicom"), ({"VQVAE2_CACHE": "", "XDG_CACHE_HOME": "/x"}, "/x/vqvae2/dicom"),
    ({"VQVAE2_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/h"}, "/h/.cache/vqvae2/dicom")])
def test_the_cache_is_where_the_environment_says(monkeypatch, given, place):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert dicom.cache_folder() == Path(place)


def test_a_damaged_file_in_the_cache_is_made_again(tmp_path, cache):
    save_slices(tmp_path / "s")
    whole = read_volume(tmp_path / "s")
    [name] = files_in(cache)
    (cache / name).write_bytes((cache / name).read_bytes()[:300])
    np.testing.assert_array_equal(read_volume(tmp_path / "s").voxels, whole.voxels)
    assert len((cache / name).read_bytes()) > 300


def test_a_cache_inside_the_scans_is_refused(tmp_path, monkeypatch, refusal):
    monkeypatch.setenv("VQVAE2_CACHE", str(tmp_path / "scans/cache"))
    save_slices(tmp_path / "scans/p01/T1")
    assert "expected a folder outside of --scans" in refusal(extract.main, "--scans", str(tmp_path / "scans"), "--list")


def test_several_processes_may_convert_one_series_at_once(tmp_path, cache):
    save_slices(tmp_path / "s")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for volume in pool.map(read_volume, [tmp_path / "s"] * 4):
            np.testing.assert_array_equal(volume.voxels, block())
    assert len(files_in(cache)) == 1


# Which folders are found

@pytest.mark.parametrize("name", ["IM{:04d}", "{:04d}", "I.{:03d}", "MR.1.2.840.113619.2.{}", "1.2.840.113619.2.{}",
                                  "x{}.dcm", "X{}.IMA"])
def test_dicom_is_found_by_its_ending_or_where_it_has_none_by_its_beginning(tmp_path, name):
    save_slices(tmp_path / "p1/MPRAGE", name=name)
    for beside in ("DICOMDIR", "README", "notes.txt", "._x1.dcm", "catalog.xml"):
        (tmp_path / "p1/MPRAGE" / beside).write_bytes(bytes(128) + b"DICM" if beside == "DICOMDIR" else b"hello")
    assert people(tmp_path) == {"p1/MPRAGE": ("p1", "")}
    np.testing.assert_array_equal(read_volume(tmp_path / "p1/MPRAGE").voxels, block())


def test_a_dicomdir_and_text_without_an_ending_are_no_scans(tmp_path):
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "README").write_text("hello")
    (tmp_path / "p1").mkdir()
    (tmp_path / "p1/notes").write_text("hello")
    result = find_scans(tmp_path)
    assert (result.scans, result.other, result.unreadable) == ([], 0, ())


def test_only_a_folder_without_scans_is_looked_into_and_there_one_file(tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr(dicom, "begins_as_dicom", looked.append)
    for name in ("a/sub-01_T1w.nii", "a/0001", "b/x.txt", "b/y.png", "c/0001", "c/0002", "c/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    find_scans(tmp_path)
    assert looked == [tmp_path / "c/0001"]


LAYOUTS = {
    "adni": ([("ADNI/002_S_0295/MPRAGE/2006-04-18_08_20_30.0/S13408",
               "ADNI_002_S_0295_MR_MPRAGE_br_raw_20060418193538653_{}_S13408_I13722.dcm", "MPRAGE"),
              ("ADNI/002_S_0295/Localizer/2006-04-18_08_20_30.0/S13407",
               "ADNI_002_S_0295_MR_Localizer_br_raw_20060418193538653_{}_S13407_I13721.dcm", "Localizer"),
              ("ADNI/002_S_0295/MPRAGE/2007-04-18_08_20_30.0/S23408",
               "ADNI_002_S_0295_MR_MPRAGE_br_raw_20070418193538653_{}_S23408_I23722.dcm", "MPRAGE")],
             {"ADNI/002_S_0295/MPRAGE/2006-04-18_08_20_30.0/S13408": ("002_S_0295", "2006-04-18"),
              "ADNI/002_S_0295/MPRAGE/2007-04-18_08_20_30.0/S23408": ("002_S_0295", "2007-04-18")}),
    "loni": ([("PPMI/3107/MPRAGE_GRAPPA/2011-03-29_14_16_19.0/I269469", "PPMI_3107_MR_MPRAGE_{}_I269469.dcm",
               "MPRAGE GRAPPA"),
              ("PPMI/3107/DTI_gated/2011-03-29_14_16_19.0/I269470", "PPMI_3107_MR_DTI_{}_I269470.dcm", "DTI gated"),
              ("PPMI/3108/MPRAGE_GRAPPA/2011-03-29_14_16_19.0/I269479", "PPMI_3108_MR_MPRAGE_{}_I269479.dcm",
               "MPRAGE GRAPPA")],
             {"PPMI/3107/MPRAGE_GRAPPA/2011-03-29_14_16_19.0/I269469": ("3107", "2011-03-29"),
              "PPMI/3108/MPRAGE_GRAPPA/2011-03-29_14_16_19.0/I269479": ("3108", "2011-03-29")}),
    "xnat": ([("S01_MR1/scans/3-MPRAGE/resources/DICOM/files", "1.3.12.2.1107.{}.dcm", "MPRAGE"),
              ("S01_MR1/scans/1-localizer/resources/DICOM/files", "1.3.12.2.1107.{}.dcm", "localizer"),
              ("S01_MR1/scans/2-T2_FLAIR/resources/DICOM/files", "1.3.12.2.1107.{}.dcm", "t2_flair"),
              ("S02_MR1/scans/4-MPRAGE/resources/DICOM/files", "1.3.12.2.1107.{}", "MPRAGE")],
             {"S01_MR1/scans/3-MPRAGE/resources/DICOM/files": ("S01", "MR1"),
              "S02_MR1/scans/4-MPRAGE/resources/DICOM/files": ("S02", "MR1")}),
    "visits": ([(f"p0{p}/visit{v}/{series}", "IM{:04d}.dcm", series) for p in (1, 2) for v in (1, 2)
                for series in ("T1", "T2")],
               {f"p0{p}/visit{v}/T1": (f"p0{p}", f"visit{v}") for p in (1, 2) for v in (1, 2)}),
    "series that only the header names": (
        [(f"p0{p}/S{series:04d}", "IM{:04d}", description) for p in (1, 2)
         for series, description in ((1, "localizer"), (2, "t2_tse"), (3, "t1_mprage"), (4, "sag 3d"))],
        {f"p0{p}/S0003": (f"p0{p}", "") for p in (1, 2)}),
    "numbers": ([(f"p0{p}/{series}/DICOM", "{}", description) for p in (1, 2)
                 for series, description in ((1, "localizer"), (2, "t1_mprage"))],
                {f"p0{p}/2/DICOM": (f"p0{p}", "") for p in (1, 2)}),
    "numbers and names": ([(f"p0{p}/{p + 3}-T1_MPRAGE", "{}.dcm", "T1 MPRAGE") for p in (1, 2, 3)],
                          {f"p0{p}/{p + 3}-T1_MPRAGE": (f"p0{p}", "") for p in (1, 2, 3)}),
    "a dump of each person": ([(f"p0{p}", f"{kind}{{}}.dcm", description) for p in (1, 2)
                               for kind, description in (("a", "localizer"), ("b", "t1_mprage"))],
                              {"p01": ("p01", ""), "p02": ("p02", "")}),
    "one person": ([("study/T1", "IM{}", "t1_mprage"), ("study/T2", "IM{}", "t2_tse")], {"study/T1": ("study", "")}),
    "BIDS": ([("sub-01/ses-1/anat/dicom", "IM{}", "t1_mprage"), ("sub-02/ses-1/anat/dicom", "IM{}", "t1_mprage")],
             {"sub-01/ses-1/anat/dicom": ("01", "1"), "sub-02/ses-1/anat/dicom": ("02", "1")}),
}


def write_tree(folder: Path, series: list[tuple[str, str, str]], shape=(6, 7, 8)) -> Path:
    """Write the series of a tree: paths of folders, names of files, descriptions.

    Folders in one folder are of one examination, unless that is the whole tree; a series' number is what its folder
    says.
    """
    for seed, (place, name, description) in enumerate(series):
        *above, own = place.removesuffix("/resources/DICOM/files").removesuffix("/DICOM").split("/")
        visit = f"1.2.{zlib.crc32('/'.join(above or [own]).encode())}"
        number = re.search(r"\d{1,5}|$", own)[0]
        number = int(number) if above and number else seed + 1
        save_slices(folder / place, block(shape, 1, seed), description=description, name=name, number=number,
                    study=visit, patient=visit)
    return folder


@pytest.mark.parametrize("case", LAYOUTS)
def test_the_folders_path_says_whose_a_series_is_and_with_its_header_which_is_the_t1(tmp_path, case):
    series, expected = LAYOUTS[case]
    result = find_scans(write_tree(tmp_path, series))
    assert {scan.name: (scan.subject, scan.session) for scan in result.scans} == expected
    assert result.doubt is None
    assert case not in ("adni", "loni", "xnat") or {scan.archive for scan in result.scans} == {case}


def test_a_tree_that_is_one_folder_is_one_scan(tmp_path):
    save_slices(tmp_path)
    [scan] = find_scans(tmp_path).scans
    assert (scan.name, scan.path, bool(scan.subject)) == (".", tmp_path, True)


def test_folders_of_two_examinations_that_may_be_people_are_in_doubt_and_never_told_apart_in_silence(tmp_path, refusal):
    for place in (f"{lab}/{lab[0]}x{number}q" for lab in ("Oslo", "Rome") for number in range(5)):
        save_slices(tmp_path / place, number=9)
    line = refusal(extract.main, "--scans", tmp_path, "--list")
    assert "--archive plain:1 makes 2 subjects" in line
    assert "dicom.dcm" not in line


@pytest.mark.parametrize("seed", range(int(os.environ.get("VQVAE2_RANDOM_TREES", 40))))
def test_no_person_of_a_tree_of_folders_made_at_random_is_two_subjects(tmp_path, seed):
    """The trees of test_archives.py, where each file is a folder now: of a T1, or of a T1 and a localizer beside it."""
    draws = random.Random(seed)
    owners = {path.removesuffix(".nii"): who for path, who in tree_of(draws).items()}
    form = draws.choice(("{}", "{}/S{:04d}", "{}/{}-t1_mprage", "{}/DICOM", "{}/{}"))
    numbers = draws.choice(((3,), (3, 4), (draws.randrange(2, 9),)))
    people = {}
    for visit, (path, who) in enumerate(owners.items()):
        for number in numbers if form != "{}" else numbers[:1]:
            place = form.format(path, number)
            people[place] = who
            save_slices(tmp_path / place, np.ones((2, 2, 1), int), number=number, study=f"1.2.{visit}", name="{}")
    found = find_scans(tmp_path)
    subjects = {who: {scan.subject for scan in found.scans if people[scan.name] == who} for who in people.values()}
    assert found.doubt is not None or all(len(each) <= 1 for each in subjects.values()), (subjects, people)


def test_series_of_one_examination_are_one_persons_whatever_their_folders_are_called(tmp_path):
    for name, seed in (("E1001", 1), ("E1002", 2)):
        save_slices(tmp_path / "S01" / name, block(seed=seed), study="1.2.3")
        save_slices(tmp_path / "S02" / name, block(seed=seed + 2), study="1.2.4")
    assert set(people(tmp_path).values()) == {("S01", ""), ("S02", "")}


def test_a_nifti_file_and_a_folder_of_dicom_are_scans_of_one_session(tmp_path):
    save_slices(tmp_path / "p1/T1")
    save(tmp_path / "p1/p1_T1.nii.gz", block())
    save_slices(tmp_path / "p2/T1", block(seed=1))
    result = find_scans(tmp_path)
    assert ({scan.subject for scan in result.scans}, result.further) == ({"p1", "p2"}, 1)


def test_all_runs_takes_each_t1_series_and_suffix_goes_by_the_folders_name(tmp_path):
    for number, description in ((3, "T1_MPRAGE"), (4, "T2_FLAIR"), (10, "T1_MPRAGE_2")):
        save_slices(tmp_path / f"S01_MR1/scans/{number}-{description}/DICOM", block(seed=number), number=number,
                    description=description, study="1.2")
    base = "S01_MR1/scans/{}/DICOM"
    assert names(tmp_path) == [base.format("3-T1_MPRAGE")]
    assert names(tmp_path, all_runs=True) == [base.format("3-T1_MPRAGE"), base.format("10-T1_MPRAGE_2")]
    [scan] = find_scans(tmp_path, suffixes=["FLAIR"]).scans
    assert (scan.name, scan.subject) == (base.format("4-T2_FLAIR"), "S01")
    np.testing.assert_array_equal(read_volume(scan.path).voxels, block(seed=4))


def test_a_pattern_is_searched_in_the_folders_path(tmp_path):
    save_slices(tmp_path / "a/case7/IMAGES")
    assert people(tmp_path, subject_pattern=r"case(\d+)/") == {"a/case7/IMAGES": ("7", "")}
    [scan] = find_scans(tmp_path, subject_pattern="none(x)").scans
    assert scan.refused.startswith("expected a name in which --subject-pattern finds a subject, found a/case7/IMAGES.")


# Without the extra

def test_without_the_extra_folders_are_counted_as_not_read_with_what_to_install(tmp_path, monkeypatch, capfd, refusal):
    save_slices(tmp_path / "p1/T1")
    monkeypatch.setattr(dicom, "is_installed", lambda: False)
    line = refusal(extract.main, "--scans", tmp_path, "--list")
    assert "expected the packages dcm2niix and pydicom, which read DICOM, found none, and 1 folder of DICOM files. " \
           "Install them: pip install 'vqvae2-brain-mri[dicom]'." in line
    save(tmp_path / "p2/T1.nii", block())
    extract.main(["--scans", str(tmp_path), "--list"])
    out = capfd.readouterr().out
    assert ("not read: 1 folder of DICOM files, such as p1/T1; to read them: "
            "pip install 'vqvae2-brain-mri[dicom]'\n") in out
    assert "scans that would be read: 1 of 1 subjects" in out
    with pytest.raises(UnusableScan, match=r"expected the packages dcm2niix and pydicom.*pip install"):
        read_volume(tmp_path / "p1/T1")


# The whole chain

BRAIN = (20, 24, 18)


@pytest.mark.parametrize("layout", ["adni", "loni", "xnat"])
def test_an_extraction_from_dicom_gives_slices_of_the_right_people_and_a_second_run_changes_nothing(
        tmp_path, layout, conversions, capsys):
    forms = {"adni": ("00{}_S_029{}/MPRAGE/2006-04-18_08_20_30.0/S1340{}", "00{}_S_029{}"),
             "loni": ("PPMI/310{}/MPRAGE_GRAPPA/2011-03-29_14_16_19.0/I2694{}", "310{}"),
             "xnat": ("S0{}_MR1/scans/3-MPRAGE/resources/DICOM/files", "S0{}")}
    place, subject = forms[layout]
    other = place.replace("MPRAGE", "T2_FLAIR").replace("scans/3", "scans/4").replace("S1340", "S2340")
    for k in (1, 2, 3):
        for form, description, seed in ((place, "MPRAGE", k), (other, "T2_FLAIR", k + 5)):
            save_slices(tmp_path / "scans" / form.format(k, k, k), block(BRAIN, seed=seed), patient=f"P{k}",
                        number=seed, description=description, name="1.3.12.{}.dcm", study=f"1.2.{k}", reverse=True)
    command = ["--scans", str(tmp_path / "scans"), "--out", str(tmp_path / "out"), "--per-scan", "2", "--size", "32",
               "--workers", "1"]
    extract.main(command)
    rows = read_table(tmp_path / "out/manifest.csv")
    expected = {place.format(k, k, k): subject.format(k, k) for k in (1, 2, 3)}
    assert {row["scan"]: row["subject"] for row in rows} == expected
    assert (len(rows), {row["archive"] for row in rows}, len(conversions)) == (6, {layout}, 3)
    assert len({row["sha256"] for row in rows}) == 6
    before = slices_in(tmp_path / "out")
    capsys.readouterr()
    extract.main(command)
    assert slices_in(tmp_path / "out") == before
    assert "used 3 scans (3 of them unchanged since the last run), rejected 0" in capsys.readouterr().out
    # Without a slice a scan is rejected; without all of them it is gone.
    first = tmp_path / "scans" / min(expected)
    files = files_of(first)
    files[5].unlink()
    extract.main(command)
    [row] = read_table(tmp_path / "out/rejected.csv")
    assert row["scan"] == min(expected)
    assert "A slice is missing" in row["reason"]
    assert {row["scan"] for row in read_table(tmp_path / "out/manifest.csv")} == set(expected) - {min(expected)}
    for file in files_of(tmp_path / "scans" / max(expected)):
        file.unlink()
    extract.main(command)
    assert "gone: 1 scan no longer there" in capsys.readouterr().out


def test_predict_finds_the_mask_beside_a_series_that_is_named_by_a_file_or_by_its_folder(tmp_path):
    save_slices(tmp_path / "p01/T1")
    mask = save(tmp_path / "p01/brain_mask.nii", (block() > 0).astype(np.int16))
    for given in (tmp_path / "p01/T1", next((tmp_path / "p01/T1").iterdir())):
        [source] = prediction.find_sources([given], (), tmp_path / "out", ("brain_mask",))
        assert source.scan.mask == mask


def test_predict_takes_a_file_of_a_series_or_its_folder_for_the_scan(tmp_path):
    paths = save_slices(tmp_path / "sub-01/T1", block(BRAIN))
    cutting = ExtractSettings(scans=tmp_path, out=tmp_path, size=32)
    for given in (paths[2:4], [paths[0].parent], [tmp_path]):
        sources = prediction.find_sources(given, (), tmp_path / "out")
        assert [(source.scan.path, source.scan.subject) for source in sources] in (
            [(paths[0].parent, "01")], [(paths[0].parent, "dicom")])
        [image] = prediction.read_all(sources, cutting, (1, 32, 32), 32)[0]
        assert image.pixels.any()


def test_the_list_shows_folders(tmp_path, capsys):
    save_slices(tmp_path / "p1/2-T1_MPRAGE", number=2, study="1.2")
    save_slices(tmp_path / "p1/3-T1_MPRAGE", number=3, study="1.2")
    extract.main(["--scans", str(tmp_path), "--list"])
    assert capsys.readouterr().out.splitlines()[1] == "p1\t\t\tp1/2-T1_MPRAGE\tinstead of p1/3-T1_MPRAGE"


# What is written on its grid

@pytest.mark.parametrize("turn", [None, TILTED], ids=["straight", "oblique"])
@pytest.mark.parametrize("storage", ["LPS", "PIR"])
def test_a_volume_on_the_grid_of_a_series_lies_where_the_series_lies(tmp_path, storage, turn):
    save_slices(tmp_path / "t1", block(), sizes=SIZES, storage=storage, turn=turn)
    volume = read_volume(tmp_path / "t1")
    part = tuple(slice(0, length) for length in volume.voxels.shape)
    grid_of(tmp_path / "t1", volume).write(tmp_path / "b.nii.gz", part, volume.voxels)
    again = read_volume(tmp_path / "b.nii.gz")
    assert np.array_equal(again.voxels, volume.voxels)
    assert np.allclose(again.affine, volume.affine, atol=1e-4)
    image = nib.load(tmp_path / "b.nii.gz")
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    assert np.allclose(image.get_qform(), image.get_sform(), atol=1e-4)
    assert b"P7" not in gzip.decompress((tmp_path / "b.nii.gz").read_bytes())[:352]
