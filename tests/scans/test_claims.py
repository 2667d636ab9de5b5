"""Memory is asked for before it is taken: what a header says decides, and no more than that is inflated."""

import gzip
import math
import os
import tracemalloc
import zlib

import nibabel as nib
import numpy as np
import pytest
from scan_files import block, ellipsoid, save, save_series

from vqvae2.common import memory
from vqvae2.common.errors import UserError
from vqvae2.scans import covariates, dicom, headers, volumes
from vqvae2.scans.finding import Scan, find_scans
from vqvae2.scans.headers import UnusableScan
from vqvae2.scans.volumes import read_volume, same_voxels
from vqvae2.slices.scan_slices import draw_slices
from vqvae2.slices.settings import ExtractSettings

SMALL = ExtractSettings(planes=("axial", "coronal"), per_scan=2, size=64)


def inflated(monkeypatch):
    """Count the bytes that are inflated from now on."""
    counts = []

    class Counting(gzip.GzipFile):
        @property
        def _buffer(self):
            return self.__buffer

        @_buffer.setter
        def _buffer(self, buffer):
            raw = buffer.raw
            whole = raw.readinto
            raw.readinto = lambda into: counts.append(whole(into)) or counts[-1]
            self.__buffer = buffer

    monkeypatch.setattr(volumes, "GzipFile", Counting)
    return counts


def with_more_behind(path, more):
    """Write a good scan again, with zeros behind its voxels."""
    save(path, block())
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(more), 1))
    return path


def test_inflation_stops_soon_behind_what_the_header_says(tmp_path, monkeypatch):
    counts = inflated(monkeypatch)
    monkeypatch.setattr(volumes, "MOST_BEHIND", 100_000)
    read_volume(with_more_behind(tmp_path / "tags.nii.gz", 90_000))
    counts.clear()
    with pytest.raises(UnusableScan, match=r"^bomb\.nii\.gz: expected 3712 bytes, as its header says, found more than "
                                           r"103749\. Its header is wrong, or the file is: copy or download it again"):
        read_volume(with_more_behind(tmp_path / "bomb.nii.gz", 20_000_000))
    assert sum(counts) < 2_000_000


def test_of_a_series_its_other_volumes_may_follow(tmp_path, monkeypatch):
    monkeypatch.setattr(volumes, "MOST_BEHIND", 0)
    save_series(tmp_path / "a.nii.gz", 1, 2, 3)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz", number=0).voxels, block(seed=1))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgh", "a.hdr", "a.img"])
def test_a_file_far_larger_than_its_header_says_is_not_read(tmp_path, name, monkeypatch):
    """Files with holes: they take no place on the disk, but hashing them would take hours."""
    kind = nib.MGHImage if name == "a.mgh" else nib.Nifti1Pair if name[2:] in ("hdr", "img") else nib.Nifti1Image
    save(tmp_path / name, block(), kind=kind)
    os.truncate(tmp_path / name, 1 << 40)
    monkeypatch.setattr(volumes, "file_sha256", None)
    with pytest.raises(UnusableScan, match=r"bytes, as its header says, found more than"):
        read_volume(tmp_path / name)


def zeros_of(shape):
    """A gzip file of a small part of the bytes that its header says and that it has."""
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_sform(np.eye(4), 1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    packer = zlib.compressobj(1, wbits=31)
    parts = [packer.compress(header.binaryblock + bytes(4))]
    parts += [packer.compress(bytes(1 << 20)) for _ in range(math.prod(shape) * 4 >> 20)]
    return b"".join([*parts, packer.flush()])


@pytest.mark.parametrize("number", [None, 1])
def test_a_scan_that_does_not_fit_beside_the_other_workers_is_refused_by_its_header(tmp_path, monkeypatch, number):
    shape = (256, 256, 64) if number is None else (256, 256, 64, 2)
    (tmp_path / "a.nii.gz").write_bytes(zeros_of(shape))
    counts = inflated(monkeypatch)
    monkeypatch.setattr(volumes, "file_sha256", None)
    with memory.only(60 << 20), pytest.raises(UnusableScan, match=(
            r"^a\.nii\.gz: expected a scan that needs at most 63 MB, this process's share of the free memory, found "
            r"one that needs \d+ MB for 256 x 256 x 64 voxels of float32\. Give fewer --workers, free")):
        read_volume(tmp_path / "a.nii.gz", number=number)
    assert sum(counts) < 300_000


def test_an_axis_is_no_longer_than_that_of_any_head(tmp_path):
    save(tmp_path / "a.nii", np.ones((20_000, 2, 2), np.uint8), (0.01, 1, 1))
    with pytest.raises(UnusableScan, match=r"expected at most 8192 voxels along an axis, found 20000 x 2 x 2\. Repair"):
        read_volume(tmp_path / "a.nii")


def brain(kind, shape=(90, 100, 80)):
    draws = np.random.default_rng(0)
    return (ellipsoid(shape, [0.4 * side for side in shape]) * draws.normal(120, 10, shape)).astype(kind)


def with_nan(kind):
    voxels = brain(kind)
    voxels[voxels == 0] = np.nan
    return voxels


@pytest.mark.parametrize(("voxels", "sizes"), [
    (brain(np.int16), (2, 2, 2)), (brain(np.uint8), (1, 1, 1)), (brain(np.float64), (2, 2, 2)),
    (with_nan(np.float32), (2, 2, 2)), (brain(np.uint8, (9, 400, 500)), (9, 0.5, 0.5)),
    (brain(np.uint8, (500, 9, 400)), (0.5, 9, 0.5)), (brain(np.uint8, (250, 230, 260)), (2.1, 2.1, 2.1))],
    ids=["int16", "uint8", "float64", "not finite", "few planes", "few other planes", "a large box"])
def test_reading_and_drawing_take_no_more_than_was_asked_for(tmp_path, voxels, sizes, monkeypatch):
    path = save(tmp_path / "a.nii", voxels, sizes)
    monkeypatch.setattr(volumes, "_spare", np.empty(0, np.uint8))
    asked = []
    real = headers.expect_bytes
    monkeypatch.setattr(headers, "expect_bytes", lambda name, needed, what: asked.append(needed) or real(name, needed,
                                                                                                        what))
    tracemalloc.start()
    assert list(draw_slices(Scan(path, path.name, "p"), SMALL, {}))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= max(asked)


def test_a_mask_is_read_beside_its_scan(tmp_path):
    path = save(tmp_path / "a.nii", brain(np.int16))
    mask = save(tmp_path / "m.nii", (brain(np.int16) > 0).astype(np.uint8))
    scan = Scan(path, path.name, "p", mask=mask)
    needed = headers.BYTES_BESIDE + brain(np.int16).size * 3 + 100 * 90 * headers.BYTES_A_PLANE
    with memory.only(needed), pytest.raises(UnusableScan, match=r"^a\.nii: expected a brain mask beside it that can be "
                                            r"used, found m\.nii: expected a scan that needs at most .* MB, this"):
        list(draw_slices(scan, SMALL))
    with memory.only(needed * 2):
        assert list(draw_slices(scan, SMALL))


def test_two_scans_are_compared_with_one_of_them_in_memory(tmp_path, monkeypatch):
    for name in ("a.nii", "b.nii.gz"):
        save(tmp_path / name, brain(np.int16))
    monkeypatch.setattr(volumes, "_spare", np.empty(0, np.uint8))
    tracemalloc.start()
    assert same_voxels(tmp_path / "a.nii", tmp_path / "b.nii.gz", None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.9 * brain(np.int16).nbytes


@pytest.mark.parametrize("name", ["p.hdr", "p.img"])
def test_a_pipe_in_place_of_one_file_of_a_pair_is_not_waited_for(tmp_path, name):
    save(tmp_path / "p.img", block(), kind=nib.Nifti1Pair)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(UnusableScan, match=r"found not a regular file but a named pipe\. See its permissions"):
        read_volume(tmp_path / "p.hdr")


def test_a_pipe_or_a_table_larger_than_the_memory_is_left_out_of_the_covariates(tmp_path):
    scans = [Scan(tmp_path / "a.nii", "a.nii", "1")]
    os.mkfifo(tmp_path / "participants.tsv")
    (tmp_path / "sub-1_sessions.tsv").write_text("participant_id\tage\n1\t20\n")
    tables = {".": [tmp_path / "participants.tsv", tmp_path / "sub-1_sessions.tsv"]}
    joined = covariates.join(scans, tables, None, None, ())
    assert joined.values["a.nii"]["age"] == "20"
    assert joined.left_out == ("participants.tsv left out: expected a file that can be read, found not a regular file "
                               "but a named pipe. Correct the path or its permissions, or give fewer columns.",)
    with memory.only(1000), pytest.raises(UserError, match="found 24 bytes, where 8 are the most"):
        covariates.read_table(tmp_path / "sub-1_sessions.tsv", None)


pydicom = pytest.importorskip("pydicom", reason="DICOM is an extra")
if dicom.is_installed():
    import dcm2niix
    from dicom_files import changed, save_enhanced, save_slices


@pytest.mark.skipif(not dicom.is_installed(), reason="DICOM is an extra")
class TestDicom:
    @pytest.fixture(autouse=True)
    def cache(self, tmp_path, monkeypatch):
        monkeypatch.setenv("VQVAE2_CACHE", str(tmp_path / "cache"))

    def test_a_pipe_among_the_files_is_not_waited_for(self, tmp_path):
        save_slices(tmp_path / "scans" / "p1" / "t1")
        os.mkfifo(tmp_path / "scans" / "p1" / "t1" / "AAA.dcm")
        [scan] = find_scans(tmp_path / "scans", archive="plain:1").scans
        assert read_volume(scan.path).voxels.shape == block().shape
        assert dicom.begins_as_dicom(tmp_path / "scans" / "p1" / "t1" / "AAA.dcm") is False

    def test_pixels_that_do_not_fit_are_refused_by_the_headers(self, tmp_path, monkeypatch):
        path = changed(save_enhanced(tmp_path / "s" / "a.dcm"), Rows=65535, Columns=65535, NumberOfFrames=10**6)
        meta = pydicom.dcmread(path)
        meta.file_meta.TransferSyntaxUID = pydicom.uid.RLELossless  # packed pixels may be shorter than they say
        meta.PixelData = pydicom.encaps.encapsulate([b"1234"])
        meta.save_as(path)
        monkeypatch.setattr(dicom, "_run", None)
        with pytest.raises(UnusableScan, match=r"^s: expected a scan that needs at most .*, found one that needs "
                                               r"[\d,]{14,} MB for its pixels\. Give fewer --workers"):
            read_volume(tmp_path / "s")

    def test_a_file_larger_than_the_memory_is_not_read(self, tmp_path, monkeypatch):
        save_slices(tmp_path / "s")
        os.truncate(tmp_path / "s" / "IM0002.dcm", 1 << 40)
        monkeypatch.setattr(volumes, "file_sha256", None)
        with pytest.raises(UnusableScan, match=r"needs 1,099,512 MB for its file IM0002\.dcm\."):
            read_volume(tmp_path / "s")

    @pytest.mark.parametrize("megabytes", [0, 25])
    def test_a_deflated_file_is_inflated_no_further_than_a_header_may_be(self, tmp_path, megabytes):
        [path, *others] = save_slices(tmp_path / "s")
        for other in others:
            other.unlink()
        data = pydicom.dcmread(path)
        data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
        data.PixelData = bytes(megabytes << 20 or 2)
        data.save_as(path)
        tracemalloc.start()
        with memory.only(300 << 20):
            found = dicom.glance(tmp_path / "s", [path.name])
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert found.is_mr == (megabytes == 0)
        assert peak < 20 << 20

    def test_a_header_of_empty_items_takes_no_more_than_its_share(self, tmp_path):
        path = save_enhanced(tmp_path / "s" / "a.dcm")
        data = pydicom.dcmread(path)
        data.PerFrameFunctionalGroupsSequence = [pydicom.Dataset()] * 2_000
        data.save_as(path)
        assert dicom.glance(path.parent, [path.name]).is_mr
        with memory.only(1 << 20):
            assert not dicom.glance(path.parent, [path.name]).is_mr

    def test_dcm2niix_may_take_no_more_than_its_share(self, tmp_path):
        save_slices(tmp_path / "s", brain(np.int16))
        with memory.only(5 << 20):
            assert dicom._run([dcm2niix.bin, "-o", str(tmp_path), str(tmp_path / "s")]).returncode != 0
