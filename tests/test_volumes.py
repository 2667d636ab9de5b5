import gzip
import os

import nibabel as nib
import numpy as np
import pytest
from scan_files import STORAGES, block, save, save_analyze

from vqvae2.volumes import UnusableScan, read_file, read_volume

SIZES = (1.0, 2.0, 3.0)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_volume_is_the_same_from_every_storage(tmp_path, storage):
    volume = read_volume(save(tmp_path / "a.nii", block(), SIZES, storage))
    np.testing.assert_array_equal(volume.voxels, block())
    assert volume.voxel_size_mm == pytest.approx(SIZES)
    assert volume.orientation == storage


@pytest.mark.parametrize("storage", ["RAS", "LAS", "ASL", "PIR"])
def test_analyze_is_the_same_from_every_storage_once_it_is_told(tmp_path, storage):
    volume = read_volume(save_analyze(tmp_path / "a.hdr", block(), SIZES, storage), storage)
    np.testing.assert_array_equal(volume.voxels, block())
    assert volume.voxel_size_mm == pytest.approx(SIZES)
    assert volume.orientation == storage


@pytest.mark.parametrize(("name", "kind"), [
    ("a.nii", nib.Nifti1Image), ("a.nii.gz", nib.Nifti1Image), ("a.nii", nib.Nifti2Image), ("a.hdr", nib.Nifti1Pair),
    ("a.img", nib.Nifti1Pair), ("a.mgh", nib.MGHImage), ("a.mgz", nib.MGHImage), ("a.hdr", nib.Nifti2Pair)])
def test_every_format_gives_the_same_volume(tmp_path, name, kind):
    volume = read_volume(save(tmp_path / name, block(), SIZES, "LIP", kind))
    np.testing.assert_array_equal(volume.voxels, block())
    assert volume.voxel_size_mm == pytest.approx(SIZES)


def test_an_oblique_scan_goes_to_the_closest_axes_and_keeps_its_voxels(tmp_path):
    turn = np.array([[np.cos(0.3), -np.sin(0.3), 0], [np.sin(0.3), np.cos(0.3), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1.0, 2.0, 3.0])
    nib.save(nib.Nifti1Image(block(), affine), tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    np.testing.assert_array_equal(volume.voxels, block()[::-1])
    assert volume.voxel_size_mm == pytest.approx(SIZES, rel=1e-6)


def test_the_qform_counts_where_there_is_no_sform(tmp_path):
    image = nib.Nifti1Image(block(), np.diag([-1, 2, 3, 1]))
    image.set_sform(None, 0)
    image.set_qform(np.diag([-1, 2, 3, 1]), 1)
    nib.save(image, tmp_path / "a.nii")
    assert read_volume(tmp_path / "a.nii").orientation == "LAS"


def test_integers_stay_integers_and_scaled_ones_become_float32(tmp_path):
    assert read_volume(save(tmp_path / "a.nii", block())).voxels.dtype == np.int16
    image = nib.Nifti1Image(block(), np.eye(4))
    image.header.set_slope_inter(0.5, 7)
    image.header.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "scaled.nii")
    voxels = read_volume(tmp_path / "scaled.nii").voxels
    assert voxels.dtype == np.float32
    np.testing.assert_array_equal(voxels, block() * 0.5 + 7)


def test_big_endian_numbers_are_read(tmp_path):
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    nib.save(nib.Nifti1Image(block().astype(">i2"), np.eye(4), header), tmp_path / "a.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii").voxels, block())


def test_sizes_in_metres_become_mm(tmp_path):
    image = nib.Nifti1Image(block(), np.diag([0.001, 0.002, 0.003, 1]))
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "a.nii")
    assert read_volume(tmp_path / "a.nii").voxel_size_mm == pytest.approx(SIZES)


def test_one_volume_with_a_fourth_axis_of_length_1_is_one_volume(tmp_path):
    nib.save(nib.Nifti1Image(block()[..., None], np.eye(4)), tmp_path / "a.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii").voxels, block())


def test_values_that_are_not_finite_are_0_and_counted(tmp_path):
    voxels = block().astype(np.float32)
    voxels[5, 5, 5], voxels[6, 6, 6] = np.nan, np.inf
    volume = read_volume(save(tmp_path / "a.nii", voxels))
    assert volume.nan_voxels == 2
    assert volume.voxels[5, 5, 5] == volume.voxels[6, 6, 6] == 0
    assert volume.voxels[4, 4, 4] == block()[4, 4, 4]


def test_the_hash_is_that_of_the_file_and_of_both_files_of_a_pair(tmp_path):
    single = read_file(save(tmp_path / "a.nii.gz", block())).sha256
    pair = save_analyze(tmp_path / "b.hdr", block())
    before = read_file(pair).sha256
    content = bytearray((tmp_path / "b.img").read_bytes())
    content[-1] ^= 1
    (tmp_path / "b.img").write_bytes(content)
    assert len({single, before, read_file(pair).sha256}) == 3


def no_orientation(path):
    image = nib.Nifti1Image(block(), None)
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nib.save(image, path)


def cut(path, share):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def damage_gzip(path):
    save(path, block())
    content = bytearray(path.read_bytes())
    content[-6] ^= 255  # in the check sum: the voxels can be read, but are not proved
    path.write_bytes(content)


def nifti(voxels):
    return lambda path: nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)


def no_voxel_size(path):
    image = nib.AnalyzeImage(block(), None)
    nib.save(image, path)
    content = bytearray(path.read_bytes())
    content[80:84] = bytes(4)
    path.write_bytes(content)


def flat_matrix(path):
    save(path, block())
    content = bytearray(path.read_bytes())
    content[280:296] = bytes(16)  # srow_x
    path.write_bytes(content)


def giant(path):
    save(path, block())
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[42:48] = np.array([32767] * 3, "<i2").tobytes()
    path.write_bytes(gzip.compress(bytes(content)))


BAD = {
    "empty": ("a.nii", lambda path: path.write_bytes(b""), "found an empty file a.nii. Copy or download"),
    "text": ("a.nii.gz", lambda path: path.write_text("hello, world\n"), "found text .'hello, world'.. Copy"),
    "git-annex pointer": ("a.nii.gz", lambda path: path.write_text("/annex/objects/MD5E-s3--abc.nii.gz\n"),
                          "found text .'/annex/objects"),
    "noise": ("a.nii", lambda path: path.write_bytes(np.random.default_rng(0).bytes(900)), "found something else"),
    "text as mgz": ("a.mgz", lambda path: path.write_text("hello, world\n"), "found text .'hello"),
    "cut gzip": ("a.nii.gz", lambda path: (save(path, block()), cut(path, 0.6)), "found one that is cut short .*Copy"),
    "damaged gzip": ("a.nii.gz", damage_gzip, "damaged .CRC check failed.*Copy or download"),
    "cut voxels": ("a.nii", lambda path: (save(path, block()), cut(path, 0.9)),
                   "expected 3712 bytes for its 12 x 14 x 10 voxels, found 3340. It is cut short"),
    "cut header": ("a.nii", lambda path: (save(path, block()), cut(path, 0.05)), "found something else"),
    "giant": ("a.nii.gz", giant, r"32767 x 32767 x 32767 voxels, found 3712\. It is cut short"),
    "series": ("a.nii", nifti(np.ones((8, 8, 6, 24), np.int16)), r"found shape \(8, 8, 6, 24\). .*fMRI: point --scans"),
    "flat": ("a.nii", nifti(np.ones((8, 8), np.int16)), r"found shape \(8, 8\). .*picture: point --scans"),
    "one plane": ("a.nii", nifti(np.ones((8, 8, 1), np.int16)), r"found shape \(8, 8, 1\)"),
    "zeros": ("a.nii", nifti(np.zeros((8, 8, 8), np.int16)), "found the same value, 0, in every voxel. Leave"),
    "constant": ("a.nii", nifti(np.full((8, 8, 8), 7.5)), r"found the same value, 7\.5, in every voxel. Leave"),
    "NaN": ("a.nii", nifti(np.full((8, 8, 8), np.nan, np.float32)), "found no finite value in any voxel. Leave"),
    "complex": ("a.nii", nifti(np.ones((8, 8, 8), np.complex64)), "found type complex64. Convert it to float32"),
    "no orientation": ("a.nii", no_orientation, "found none .*give --assume-orientation, such as LAS"),
    "Analyze": ("a.hdr", lambda path: save_analyze(path, block()), "Analyze format.* give --assume-orientation"),
    "pair without .img": ("a.hdr", lambda path: (save_analyze(path, block()), path.with_suffix(".img").unlink()),
                          "expected a pair .hdr and .img, found no file a.IMG"),
    "no voxel size": ("a.hdr", no_voxel_size, "expected voxel sizes above 0 mm, found 0 x 1 x 1. Repair"),
    "flat matrix": ("a.nii", flat_matrix, "found a matrix that maps the volume to a plane .*Repair its header"),
    "broken link": ("a.nii", lambda path: path.symlink_to("nowhere"),
                    "found a link to a file that is not there.*datalad"),
    "folder": ("a.nii", lambda path: path.mkdir(), "found is a directory. See its permissions"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_in_plain_words(tmp_path, case):
    name, make, message = BAD[case]
    make(tmp_path / name)
    with pytest.raises(UnusableScan, match=message) as caught:
        read_volume(tmp_path / name)
    assert str(caught.value) == f"{name}: {caught.value.reason}"
    assert caught.value.reason.startswith("expected ")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused_in_plain_words(tmp_path):
    save(tmp_path / "a.nii", block()).chmod(0)
    with pytest.raises(UnusableScan, match=r"found permission denied\. See its permissions"):
        read_volume(tmp_path / "a.nii")
