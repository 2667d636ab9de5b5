import gzip
import hashlib
import os

import nibabel as nib
import numpy as np
import pytest
from scan_files import STORAGES, block, save, save_analyze

from vqvae2.scans import headers, volumes
from vqvae2.scans.finding import find_scans
from vqvae2.scans.headers import UnusableScan
from vqvae2.scans.volumes import file_sha256, read_volume, same_voxels

SIZES = (1.0, 2.0, 3.0)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_volume_is_the_same_from_every_storage(tmp_path, storage):
    volume = read_volume(save(tmp_path / "a.nii", block(), SIZES, storage))
    np.testing.assert_array_equal(volume.voxels, block())
    assert volume.voxel_size_mm == pytest.approx(SIZES)
    assert volume.orientation == storage


@pytest.mark.parametrize("storage", ["RAS", "LAS", "ASL", "PIR"])
def test_analyze_is_the_same_from_every_storage_once_it_is_told(tmp_path, storage):
    volume = read_volume(save_analyze(tmp_path / "a.hdr", block(), SIZES, storage), assumed=storage)
    np.testing.assert_array_equal(volume.voxels, block())
    assert volume.voxel_size_mm == pytest.approx(SIZES)
    assert volume.orientation == storage


def test_a_singleton_axis_among_the_first_three_is_no_volume(tmp_path):
    nib.save(nib.Nifti1Image(block()[:, :, None], np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(UnusableScan, match=r"found shape \(12, 14, 1, 10\)\. Convert it"):
        read_volume(tmp_path / "a.nii", number=0)


def test_a_series_gives_the_volume_that_is_asked_for_and_no_other(tmp_path):
    series = np.stack([block(seed=seed) for seed in range(3)], axis=-1)
    for name in ("a.nii", "a.nii.gz"):
        nib.save(nib.Nifti1Image(series, np.eye(4)), tmp_path / name)
        for number in range(3):
            volume = read_volume(tmp_path / name, number=number)
            np.testing.assert_array_equal(volume.voxels, series[..., number])
            assert volume.number == number
        with pytest.raises(UnusableScan, match=r"expected a volume 3 \(--volume\), found 3 volumes, 0 to 2\. Give"):
            read_volume(tmp_path / name, number=3)
    assert read_volume(save(tmp_path / "b.nii", block()), number=3).number is None


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


def test_voxels_stay_as_they_are_stored_and_their_scale_is_known(tmp_path):
    image = nib.Nifti1Image(block() + 100, np.eye(4))
    image.header.set_slope_inter(0.5, -50)
    image.header.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    assert volume.voxels.dtype == np.int16
    assert (volume.slope, volume.inter, volume.background) == (0.5, -50, 100)
    np.testing.assert_allclose(volume.scaled(volume.voxels), nib.load(tmp_path / "a.nii").get_fdata())


@pytest.mark.parametrize(("kind", "slope", "inter", "background"), [
    (np.int16, 2.0, 0.0, 0), (np.uint8, 0.1, 10.0, None), (np.uint8, 0.1, -2.56, 26), (np.float32, 0.5, 5.0, -10.0)])
def test_the_background_is_the_stored_number_nearest_to_what_stands_for_0(tmp_path, kind, slope, inter, background):
    voxels = block().astype(kind)
    voxels[0, 0, 0] = 1  # where all corners are the same, they are the background
    path = overwritten(save(tmp_path / "a.nii", voxels), 112, np.array([slope, inter], "<f4").tobytes())
    volume = read_volume(path)
    assert volume.background == background
    assert volume.is_not_background(np.array([26], kind)).item() == (background != 26)


def test_big_endian_numbers_are_read(tmp_path):
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    nib.save(nib.Nifti1Image(block().astype(">i2"), np.eye(4), header), tmp_path / "a.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii").voxels, block())


@pytest.mark.parametrize("background", [-1024, -0.75, 7])
def test_a_constant_background_that_is_not_0_is_background(tmp_path, background):
    """Z-scored scans and scans in Hounsfield units have such a background."""
    voxels = np.where(block() == 0, background, block()).astype(np.float32)
    volume = read_volume(save(tmp_path / "a.nii", voxels))
    assert volume.background == background
    np.testing.assert_array_equal(volume.scaled(volume.voxels), block())


@pytest.mark.parametrize("size", [0.0007, 0.002])
def test_a_matrix_in_metres_is_a_matrix(tmp_path, size):
    image = nib.Nifti1Image(block(), np.diag([-size, size, size, 1]))
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "a.nii")
    assert read_volume(tmp_path / "a.nii").orientation == "LAS"


def test_voxels_of_a_single_file_never_begin_within_its_header(tmp_path):
    path = overwritten(save(tmp_path / "a.nii", block()), 108, bytes(4))  # vox_offset
    np.testing.assert_array_equal(read_volume(path).voxels, block())


# Where the orientation comes from

def with_codes(path, sform, qform):
    """LAS by the sform, RPI by the qform."""
    image = nib.Nifti1Image(block(), np.eye(4))
    image.set_sform(np.diag([-1, 1, 1, 1]), sform)
    image.set_qform(np.diag([1, -1, -1, 1]), qform)
    nib.save(image, path)
    return path


def overwritten(path, at, content):
    whole = bytearray(path.read_bytes())
    whole[at:at + len(content)] = content
    path.write_bytes(whole)
    return path


@pytest.mark.parametrize(("sform", "qform", "expected"), [
    (1, 1, ("LAS", "sform")), (4, 0, ("LAS", "sform")), (0, 1, ("RPI", "qform"))])
def test_the_sform_counts_before_the_qform(tmp_path, sform, qform, expected):
    volume = read_volume(with_codes(tmp_path / "a.nii", sform, qform))
    assert (volume.orientation, volume.orientation_from) == expected


def test_a_damaged_sform_leaves_it_to_the_qform(tmp_path):
    path = overwritten(with_codes(tmp_path / "a.nii", 1, 1), 280, bytes(48))
    assert read_volume(path).orientation_from == "qform"


def test_a_header_that_says_nothing_leaves_it_to_the_layout_and_then_to_the_user(tmp_path):
    path = with_codes(tmp_path / "a.nii", 0, 0)
    with pytest.raises(UnusableScan, match=r"found none .*give --assume-orientation, such as LAS"):
        read_volume(path)
    for layout, assumed, expected in ((None, "LAS", ("LAS", "assumed")), ("ASL", "LAS", ("ASL", "layout"))):
        volume = read_volume(path, layout=layout, assumed=assumed)
        assert (volume.orientation, volume.orientation_from) == expected


def test_a_header_that_says_it_is_believed_before_the_layout(tmp_path):
    volume = read_volume(with_codes(tmp_path / "a.nii", 1, 0), layout="ASL", assumed="RAS")
    assert (volume.orientation, volume.orientation_from) == ("LAS", "sform")


@pytest.mark.parametrize(("orient", "expected"), list(enumerate(["ASL", "LSA", "ASL", "LPS", "LIA", "AIL"])))
def test_analyzes_orient_byte_counts_where_it_is_set(tmp_path, orient, expected):
    path = save_analyze(tmp_path / "a.hdr", block(), SIZES, expected)
    overwritten(path, 252, bytes([orient]))
    volume = read_volume(path, layout="ASL")
    assert (volume.orientation, volume.orientation_from) == (expected, "orient" if orient else "layout")
    np.testing.assert_array_equal(volume.voxels, block())


def test_mgh_without_its_flag_has_no_orientation(tmp_path):
    path = overwritten(save(tmp_path / "a.mgh", block(), SIZES, kind=nib.MGHImage), 28, bytes(2))
    with pytest.raises(UnusableScan, match=r"found none .*give --assume-orientation"):
        read_volume(path)
    assert read_volume(path, assumed="RAS").voxel_size_mm == (1, 1, 1)  # as FreeSurfer takes it, whatever stands there


# Sizes

def test_sizes_in_metres_become_mm(tmp_path):
    image = nib.Nifti1Image(block(), np.diag([0.001, 0.002, 0.003, 1]))
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "a.nii")
    assert read_volume(tmp_path / "a.nii").voxel_size_mm == pytest.approx(SIZES)


def test_one_volume_with_a_fourth_axis_of_length_1_is_one_volume(tmp_path):
    nib.save(nib.Nifti1Image(block()[..., None], np.eye(4)), tmp_path / "a.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii").voxels, block())


def test_values_that_are_not_finite_become_background_and_are_known(tmp_path):
    voxels = block().astype(np.float32)
    voxels[5, 5, 5], voxels[6, 6, 6] = np.nan, np.inf
    volume = read_volume(save(tmp_path / "a.nii", voxels))
    assert np.argwhere(volume.not_finite).tolist() == [[5, 5, 5], [6, 6, 6]]
    assert volume.voxels[5, 5, 5] == volume.voxels[6, 6, 6] == 0
    assert volume.voxels[4, 4, 4] == block()[4, 4, 4]


@pytest.mark.parametrize(("shape", "unit"), [((12, 14, 10), "meter"), ((12, 14, 10), "micron")])
def test_a_unit_that_makes_no_head_is_refused(tmp_path, shape, unit):
    image = nib.Nifti1Image(block(shape), np.eye(4))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii")
    with pytest.raises(UnusableScan, match=r"a volume 1 to 1000 mm long, found (14000|0\.014) mm\. Repair the"):
        read_volume(tmp_path / "a.nii")


# One volume after another

def test_a_volume_keeps_its_voxels_when_the_next_one_is_read(tmp_path):
    first = read_volume(save(tmp_path / "a.nii.gz", block(seed=1)))
    second = read_volume(save(tmp_path / "b.nii.gz", block(seed=2)))
    np.testing.assert_array_equal(first.voxels, block(seed=1))
    np.testing.assert_array_equal(second.voxels, block(seed=2))


def test_equal_voxels_are_known_however_they_are_packed(tmp_path):
    plain = save(tmp_path / "a.nii", block())
    packed = tmp_path / "b.nii.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes(), 1))
    pair = save(tmp_path / "c.hdr", block(), kind=nib.Nifti1Pair)
    other = save(tmp_path / "d.nii", block(seed=1))
    assert len({read_volume(path).fingerprint for path in (plain, packed, pair)}) == 1
    assert same_voxels(plain, packed, None)
    assert same_voxels(pair, packed, None)
    assert not same_voxels(plain, other, None)
    assert read_volume(other).fingerprint != read_volume(plain).fingerprint


def test_equal_check_sums_do_not_make_equal_voxels(tmp_path, monkeypatch):
    monkeypatch.setattr(volumes, "crc32", lambda *_: 0)
    first, other = (save(tmp_path / f"{seed}.nii", block(seed=seed)) for seed in (1, 2))
    assert read_volume(first).fingerprint == read_volume(other).fingerprint
    assert not same_voxels(first, other, None)


def test_the_hash_is_that_of_the_file_and_of_both_files_of_a_pair(tmp_path):
    path = save(tmp_path / "a.nii.gz", block())
    single = hashlib.sha256(path.read_bytes()).hexdigest()
    assert file_sha256(path) == read_volume(path).sha256 == single
    pair = save_analyze(tmp_path / "b.hdr", block())
    both = (tmp_path / "b.hdr").read_bytes() + (tmp_path / "b.img").read_bytes()
    before = hashlib.sha256(both).hexdigest()
    assert file_sha256(pair) == file_sha256(tmp_path / "b.img") == read_volume(pair, assumed="RAS").sha256 == before
    content = bytearray((tmp_path / "b.img").read_bytes())
    content[-1] ^= 1
    (tmp_path / "b.img").write_bytes(content)
    assert len({single, before, file_sha256(pair)}) == 3


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
    nib.save(nib.AnalyzeImage(block(), None), path)
    overwritten(path, 80, bytes(4))


def flat_matrix(path):
    overwritten(save(path, block()), 280, bytes(16))  # srow_x


def sizes_written(path, *sizes):
    overwritten(save(path, block()), 80, np.array(sizes, "<f4").tobytes())


def rgb(path):
    colours = np.zeros((8, 8, 8), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, np.eye(4)), path)


def claims(path, size):
    """A gzip file of 12 x 14 x 10 voxels that claims another size at its end, and its header the same."""
    giant(path)
    path.write_bytes(path.read_bytes()[:-4] + size.to_bytes(4, "little"))


def giant(path):
    save(path, block())
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[42:48] = np.array([32767] * 3, "<i2").tobytes()
    path.write_bytes(gzip.compress(bytes(content)))


BAD = {
    "empty": ("a.nii", lambda path: path.write_bytes(b""), "found an empty file. Copy or download"),
    "text": ("a.nii.gz", lambda path: path.write_text("hello, world\n"), "found text .'hello, world'.. Copy"),
    "git-annex pointer": ("a.nii.gz", lambda path: path.write_text("/annex/objects/MD5E-s3--abc.nii.gz\n"),
                          r"found text .'/annex/objects.*Download it \(datalad get\)"),
    "DICOM": ("a.nii", lambda path: path.write_bytes(bytes(128) + b"DICM" + bytes(500)), "found a DICOM file. Convert"),
    "noise": ("a.nii", lambda path: path.write_bytes(np.random.default_rng(0).bytes(900)), "found something else"),
    "text as mgz": ("a.mgz", lambda path: path.write_text("hello, world\n"), "found text .'hello"),
    "cut gzip": ("a.nii.gz", lambda path: (save(path, block()), cut(path, 0.6)), "found one that is cut short .*Copy"),
    "damaged gzip": ("a.nii.gz", damage_gzip, "found one that is cut short or damaged. Copy or download"),
    "cut voxels": ("a.nii", lambda path: (save(path, block()), cut(path, 0.9)),
                   "expected 3712 bytes for its 12 x 14 x 10 voxels, found 3340. It is cut short"),
    "cut header": ("a.nii", lambda path: (save(path, block()), cut(path, 0.05)), "found something else"),
    "giant": ("a.nii.gz", giant, r"32767 x 32767 x 32767 voxels, found 3712\. It is cut short"),
    "series": ("a.nii", nifti(np.ones((8, 8, 6, 24), np.int16)),
               r"found shape \(8, 8, 6, 24\). .*fMRI: leave it out, or give --volume 0"),
    "flat": ("a.nii", nifti(np.ones((8, 8), np.int16)), r"found shape \(8, 8\). .*picture: give whole volumes"),
    "one plane": ("a.nii", nifti(np.ones((8, 8, 1), np.int16)), r"found shape \(8, 8, 1\)"),
    "zeros": ("a.nii", nifti(np.zeros((8, 8, 8), np.int16)), "found the same value, 0, in every voxel. Leave"),
    "constant": ("a.nii", nifti(np.full((8, 8, 8), 7.5)), r"found the same value, 7\.5, in every voxel. Leave"),
    "NaN": ("a.nii", nifti(np.full((8, 8, 8), np.nan, np.float32)), "found no finite value in any voxel. Leave"),
    "complex": ("a.nii", nifti(np.ones((8, 8, 8), np.complex64)), "found type complex64. Convert it to float32"),
    "no orientation": ("a.nii", no_orientation, "found none .*give --assume-orientation, such as LAS"),
    "Analyze": ("a.hdr", lambda path: save_analyze(path, block()), "found none .*Analyze.* give --assume-orientation"),
    "pair without .img": ("a.hdr", lambda path: (save_analyze(path, block()), path.with_suffix(".img").unlink()),
                          "expected a pair .hdr and .img, found no file a.img"),
    "no voxel size": ("a.hdr", no_voxel_size, "expected voxel sizes above 0 mm, found 0 x 1 x 1. Repair"),
    "zero size": ("a.nii", lambda path: sizes_written(path, 0, 1, 1), "above 0 mm, found 0 x 1 x 1. Repair its header"),
    "negative size": ("a.nii", lambda path: sizes_written(path, 1, -2, 1), "found 1 x -2 x 1. Repair its header, or"),
    "NaN size": ("a.nii", lambda path: sizes_written(path, 1, np.nan, 1), "found 1 x nan x 1. Repair its header, or"),
    "RGB": ("a.nii", rgb, "expected one real number in a voxel, found type .*R.* Convert it to float32"),
    "header alone": ("a.nii", lambda path: (save(path, block()), cut(path, 352 / 3712)),
                     "expected 3712 bytes for its 12 x 14 x 10 voxels, found 352. It is cut short"),
    "giant that lies": ("a.nii.gz", lambda path: claims(path, 2**32 - 1), "one that is cut short or damaged. Copy"),
    "image alone": ("a.img", lambda path: (save_analyze(path.with_suffix(".hdr"), block()),
                                           path.with_suffix(".hdr").unlink()), "found no file a.hdr. Copy or download"),
    "gzip of nothing": ("a.nii.gz", lambda path: path.write_bytes(gzip.compress(b"")), "found an empty file. Copy or"),
    "negative axis": ("a.nii", lambda path: overwritten(save(path, block()), 42, b"\xff\xff"), "found something else"),
    "unknown type": ("a.nii", lambda path: overwritten(save(path, block()), 70, b"\x63\x00"), "found something else"),
    "flat matrix": ("a.nii", flat_matrix, "found a matrix that maps the volume to a plane .*Repair its header"),
    "broken link": ("a.nii", lambda path: path.symlink_to("nowhere"),
                    "found a link to a file that is not there.*datalad"),
    "folder": ("a.nii", lambda path: path.mkdir(), "found not a regular file but a folder. See its"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_in_plain_words(tmp_path, case):
    name, make, message = BAD[case]
    make(tmp_path / name)
    with pytest.raises(UnusableScan, match=message) as caught:
        read_volume(tmp_path / name)
    assert str(caught.value) == f"{name}: {caught.value.reason}"
    assert caught.value.reason.startswith("expected ")


def test_a_header_that_claims_terabytes_takes_no_memory(tmp_path, monkeypatch):
    giant(tmp_path / "a.nii.gz")
    asked = []
    monkeypatch.setattr(volumes, "_memory", lambda size, make=volumes._memory: asked.append(size) or make(size))
    with pytest.raises(UnusableScan, match=r"expected 70362301923678 bytes for its .* found 3712\. It is cut short"):
        read_volume(tmp_path / "a.nii.gz")
    assert max(asked) <= volumes.MOST_FROM_A_BYTE * (tmp_path / "a.nii.gz").stat().st_size


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused_in_plain_words(tmp_path):
    save(tmp_path / "a.nii", block()).chmod(0)
    with pytest.raises(UnusableScan, match=r"found permission denied\. See its permissions"):
        read_volume(tmp_path / "a.nii")


def test_a_new_format_is_one_function_and_one_row_of_the_table(tmp_path, monkeypatch):
    """NumPy files that are stored as LAS, of 1 x 2 x 3 mm; a series is asked for by its number."""
    def read_npz(path, number):
        voxels = np.load(path)["voxels"]
        header = headers.Header(voxels.shape, voxels.dtype, affines=(("npz", np.diag([-1.0, 2.0, 3.0, 1.0])),))
        headers.check_shape(path.name, header, number)
        return header, voxels[..., number] if header.is_series else voxels
    monkeypatch.setitem(volumes.READERS, ".npz", read_npz)
    voxels = block().astype(np.float32)
    voxels[5, 5, 5] = np.nan
    np.savez(tmp_path / "sub-01_T1w.npz", voxels=voxels[::-1])
    [scan] = find_scans(tmp_path).scans
    volume = read_volume(scan.path)
    assert (scan.subject, volume.orientation, volume.orientation_from) == ("01", "LAS", "npz")
    assert volume.voxel_size_mm == (1, 2, 3)
    np.testing.assert_array_equal(volume.voxels, np.nan_to_num(voxels))
    assert np.argwhere(volume.not_finite).tolist() == [[5, 5, 5]]
    assert same_voxels(scan.path, save(tmp_path / "a.nii", voxels, (1, 2, 3), "LAS"), None)
    np.savez(tmp_path / "b.npz", voxels=np.stack([block(seed=1), block(seed=2)], -1))
    np.testing.assert_array_equal(read_volume(tmp_path / "b.npz", number=1).voxels[::-1], block(seed=2))
    with pytest.raises(UnusableScan, match=r"^b\.npz: expected one 3-D volume, found shape \(12, 14, 10, 2\)\."):
        read_volume(tmp_path / "b.npz")
    (tmp_path / "c.npz").mkdir()
    with pytest.raises(UnusableScan, match=r"found not a regular file"):
        read_volume(tmp_path / "c.npz")


@pytest.mark.parametrize("name", ["p.hdr.gz", "p.img.gz"])
def test_a_compressed_pair_is_read_by_either_name(tmp_path, name):
    voxels = block()
    nib.save(nib.Nifti1Pair(voxels, np.eye(4)), tmp_path / "p.img.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / name).voxels, voxels)
    assert [scan.name for scan in find_scans(tmp_path).scans] == ["p.hdr.gz"]


def test_a_quaternion_rounded_a_hair_above_1_is_a_half_turn(tmp_path):
    image = nib.Nifti1Image(block(), None)
    image.set_qform(np.diag([-1, -1, 1, 1]), 1)
    content = bytearray(image.to_bytes())
    content[252:256] = np.array([1, 0], "<i2").tobytes()  # the codes of qform and sform
    content[256:268] = np.array([0, 0, 1.0000003], "<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    volume = read_volume(tmp_path / "a.nii")
    assert (volume.orientation, volume.orientation_from) == ("LPS", "qform")


def with_two_matrices(path, sform, qform):
    """The same voxels by an sform and by a qform, both set."""
    image = nib.Nifti1Image(block(), None)
    image.set_sform(np.diag([*sform, 1]), 2)
    image.set_qform(np.diag([*qform, 1]), 1)
    nib.save(image, path)
    return path


@pytest.mark.parametrize(("sform", "qform", "said"), [
    ((1, 1, 1), (1, 1, 1), ""), ((1, 1, 1), (1, 1, 1.009), ""),
    ((-1, 1, 1), (1, 1, 1), "sform LAS 1 x 1 x 1 mm, qform RAS 1 x 1 x 1 mm"),
    ((1, 1, 1), (1, 1, 1.02), "sform RAS 1 x 1 x 1 mm, qform RAS 1 x 1 x 1.02 mm")])
def test_two_matrices_that_differ_are_said(tmp_path, sform, qform, said):
    assert read_volume(with_two_matrices(tmp_path / "a.nii", sform, qform)).geometry == said


def test_the_qform_counts_where_it_is_trusted(tmp_path):
    path = with_two_matrices(tmp_path / "a.nii", (-1, 1, 1), (1, 1, 2))
    by_sform, by_qform = read_volume(path), read_volume(path, trust="qform")
    assert (by_sform.orientation, by_sform.orientation_from, by_sform.voxel_size_mm) == ("LAS", "sform", (1, 1, 1))
    assert (by_qform.orientation, by_qform.orientation_from, by_qform.voxel_size_mm) == ("RAS", "qform", (1, 1, 2))
    np.testing.assert_array_equal(by_sform.voxels[::-1], by_qform.voxels)


def sheared(path, degrees, qform=0):
    matrix = np.eye(4)
    matrix[0, 1], matrix[1, 1] = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    image = nib.Nifti1Image(block(), None)
    image.set_sform(matrix, 2)
    image.set_qform(np.eye(4), qform)
    nib.save(image, path)
    return path


@pytest.mark.parametrize(("degrees", "said"), [(0.4, ""), (2, "axes of the sform 2.0 degrees off right angles"),
                                               (-4.9, "axes of the sform 4.9 degrees off right angles")])
def test_a_matrix_with_little_shear_is_used_and_said(tmp_path, degrees, said):
    volume = read_volume(sheared(tmp_path / "a.nii", degrees))
    assert (volume.geometry, volume.voxel_size_mm) == (said, pytest.approx((1, 1, 1)))


def test_a_sheared_matrix_is_refused_and_the_other_one_is_named_where_it_is_there(tmp_path):
    with pytest.raises(UnusableScan, match=r"expected axes at right angles \(within 5 degrees\), found an sform that "
                                           r"is 12 degrees off\. Resample the scan, or leave it out"):
        read_volume(sheared(tmp_path / "a.nii", 12))
    path = sheared(tmp_path / "b.nii", 12, qform=1)
    with pytest.raises(UnusableScan, match=r"12 degrees off\. Resample the scan, or give --trust qform"):
        read_volume(path)
    assert read_volume(path, trust="qform").orientation_from == "qform"
