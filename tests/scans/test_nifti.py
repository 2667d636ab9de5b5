"""nifti.py: a file on the scan's own grid, header and all, whatever the scan's format, storage, type and byte order."""

import gzip

import nibabel as nib
import numpy as np
import pytest
from scan_files import STORAGES, block, ellipsoid, save, save_analyze, save_series, stored

from vqvae2.scans import nifti
from vqvae2.scans.nifti import grid_of
from vqvae2.scans.volumes import read_volume

OBLIQUE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, -0.2, 0.3) @ np.diag([0.9, 1.1, 1.3]), (-80, 33, 12))
"""From RAS indices: turned by up to 17 degrees, with voxels of three different sizes."""


def written(path, out, **reading):
    """Write the scan's own voxels back beside it; return the volume, the grid and the new file's bytes."""
    volume = read_volume(path, **reading)
    grid = grid_of(path, volume)
    grid.write(out, tuple(slice(0, length) for length in volume.voxels.shape), volume.voxels)
    return volume, grid, gzip.decompress(out.read_bytes())


def bytes_of(path):
    content = path.read_bytes()
    return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content


def save_oblique(path, voxels, storage="RAS", kind=nib.Nifti1Image, *, big=False):
    """Write a RAS array whose rows and columns are oblique to the scanner, in any storage and byte order."""
    array, affine = stored(voxels, (1, 1, 1), storage)
    header = kind.header_class(endianness=">" if big else "<")
    header.set_data_dtype(voxels.dtype)
    image = kind(array, OBLIQUE @ affine, header)
    image.set_sform(OBLIQUE @ affine, 1)
    image.set_qform(OBLIQUE @ affine, 1)
    nib.save(image, path)
    return path


def positions(path, sitk):
    """Where SimpleITK says that four voxels lie, in RAS: it counts towards left and posterior."""
    image = sitk.ReadImage(str(path))
    corners = [(0, 0, 0), *np.diag(np.array(image.GetSize()) - 1).tolist()]
    return np.array([image.TransformIndexToPhysicalPoint(corner) for corner in corners]) * (-1, -1, 1), image


@pytest.mark.parametrize("storage", STORAGES)
def test_every_storage_is_written_as_it_was_byte_for_byte(tmp_path, storage):
    path = save_oblique(tmp_path / "a.nii", block(), storage)
    _, _, made = written(path, tmp_path / "b.nii.gz")
    assert made == path.read_bytes()


@pytest.mark.parametrize("storage", STORAGES[::5])
def test_a_part_lies_where_it_was_and_all_else_is_background(tmp_path, storage):
    path = save(tmp_path / "a.nii", block((12, 14, 10), 0), storage=storage)
    volume = read_volume(path)
    part = slice(2, 9), slice(1, 14), slice(3, 5)
    grid_of(path, volume).write(tmp_path / "b.nii.gz", part, volume.voxels[part])
    again = read_volume(tmp_path / "b.nii.gz").voxels
    expected = np.zeros_like(volume.voxels)
    expected[part] = volume.voxels[part]
    assert np.array_equal(again, expected)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("number_type", ["uint8", "int16", "uint16", "int32", "float32", "float64", "int8", "int64"])
@pytest.mark.parametrize("big", [False, True])
def test_every_type_and_byte_order_is_written_as_it_was(tmp_path, kind, number_type, big):
    path = save_oblique(tmp_path / "a.nii.gz", block().clip(0, 120).astype(number_type), "PIL", kind, big=big)
    _, grid, made = written(path, tmp_path / "b.nii.gz")
    assert made == bytes_of(path)
    assert grid.number_type.newbyteorder("=") == np.dtype(number_type)


def test_odd_fields_of_a_header_stay_and_its_extensions_go(tmp_path):
    image = nib.Nifti1Image(block(), np.diag([2, 2, 2, 1]))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe, born 1950"))
    nib.save(image, tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    header["descrip"], header["aux_file"], header["cal_max"], header["slice_end"] = b"as it was", b"none", 180, 9
    header["qform_code"], header["quatern_b"], header["qoffset_x"] = 3, 0.70710677, -7.25  # differs from sform
    header["pixdim"][0], header["xyzt_units"], header["scl_slope"], header["scl_inter"] = -1, 10, 0.5, 0
    header["regular"], header["glmax"], header["intent_name"] = b"r", 32767, b"weight"
    content[:348] = header.binaryblock
    (tmp_path / "a.nii").write_bytes(content)
    _, _, made = written(tmp_path / "a.nii", tmp_path / "b.nii.gz")
    header["vox_offset"] = 352
    assert made[:352] == header.binaryblock + bytes(4)
    assert b"Jane" not in made
    assert made[352:] == bytes(content[-block().nbytes:])


@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair])
def test_a_pair_becomes_one_file(tmp_path, kind):
    save(tmp_path / "a.hdr", block(), (1, 2, 3), "LSP", kind)
    volume, _, made = written(tmp_path / "a.img", tmp_path / "b.nii.gz")
    header, single = kind.header_class((tmp_path / "a.hdr").read_bytes()[:kind.header_class.template_dtype.itemsize]), (
        nib.Nifti1Header if kind is nib.Nifti1Pair else nib.Nifti2Header)
    header["magic"], header["vox_offset"] = single.single_magic, single.single_vox_offset
    assert made == header.binaryblock + bytes(4) + (tmp_path / "a.img").read_bytes()
    assert np.array_equal(read_volume(tmp_path / "b.nii.gz").voxels, volume.voxels)


def test_one_volume_of_a_series_is_one_volume(tmp_path):
    path = save_series(tmp_path / "a.nii.gz", 1, 2, 3)
    written(path, tmp_path / "b.nii.gz", number=1)
    again = nib.load(tmp_path / "b.nii.gz")
    assert again.shape == (12, 14, 10)
    assert np.array_equal(again.dataobj, block(seed=2))


@pytest.mark.parametrize("write", [save_analyze, lambda path, *more: save(path.with_suffix(".mgz"), *more,
                                                                         kind=nib.MGHImage)])
@pytest.mark.parametrize("storage", ["RAS", "LAS", "PIR", "SAL"])
def test_other_formats_get_a_header_that_says_how_they_were_read(tmp_path, write, storage):
    path = write(tmp_path / "a.img", block().astype(np.float32), (1, 1.5, 2), storage)
    volume, _, _ = written(path, tmp_path / "b.nii.gz", assumed=storage)
    again = nib.load(tmp_path / "b.nii.gz")
    assert nib.aff2axcodes(again.affine) == tuple(storage) == tuple(volume.orientation)
    assert np.allclose(again.get_qform(), again.get_sform(), atol=1e-4)
    assert np.array_equal(again.dataobj, nib.load(path).dataobj)
    assert again.get_data_dtype() == np.float32
    assert again.header.get_xyzt_units()[0] == "mm"
    if path.suffix == ".mgz":
        assert np.allclose(again.affine, nib.load(path).affine, atol=1e-4)
        assert (again.header["sform_code"], again.header["qform_code"]) == (1, 1)
    else:
        middle = nib.affines.apply_affine(again.affine, (np.array(again.shape) - 1) / 2)
        assert np.allclose(middle, 0)
    assert np.array_equal(read_volume(tmp_path / "b.nii.gz").voxels, volume.voxels)


def test_values_go_through_the_scale_and_are_rounded_and_clipped(tmp_path):
    image = nib.Nifti1Image(block(), np.eye(4))
    image.header.set_slope_inter(0.25, -16)
    nib.save(image, tmp_path / "a.nii")
    path = tmp_path / "a.nii"
    grid = grid_of(path, read_volume(path))
    assert grid.number_type == np.int16
    assert grid.stored(np.array([-16, 0, 0.1, 0.13, 1e9, -1e9])).tolist() == [0, 64, 64, 65, 32767, -32768]


@pytest.mark.parametrize(("kind", "value", "expected"), [
    ("uint8", 260.4, 255), ("uint8", -3, 0), ("int64", 1e30, 2**63 - 1024), ("int64", -1e30, -2**63),
    ("uint64", 1e30, 2**64 - 2048), ("float32", 1e300, np.finfo(np.float32).max), ("float64", 0.1, 0.1)])
def test_each_type_holds_what_it_can(tmp_path, kind, value, expected):
    path = save_oblique(tmp_path / "a.nii", block().clip(0, 120).astype(kind))
    assert grid_of(path, read_volume(path)).stored(np.array([value]))[0] == expected


def test_the_background_is_the_scans_own_number(tmp_path):
    shifted = tmp_path / "shifted.nii"
    image = nib.Nifti1Image((block() - 1024).astype(np.int16), np.eye(4))
    image.header.set_slope_inter(1, 1024)
    nib.save(image, shifted)
    scored = save(tmp_path / "scored.nii", np.where(block() > 0, block() / 50 - 3, -1.5).astype(np.float32))
    none = tmp_path / "none.nii"
    image = nib.Nifti1Image((block((12, 14, 10), 0) - 100).astype(np.uint8), np.eye(4))
    image.header.set_slope_inter(1, 100)  # 0 would be -100, which uint8 lacks
    nib.save(image, none)
    assert [grid_of(path, read_volume(path)).background for path in (shifted, scored, none)] == [-1024, -1.5, 0]


def test_a_map_of_another_type_has_the_grid_and_nothing_of_what_the_numbers_meant(tmp_path):
    path = save_oblique(tmp_path / "a.nii", block(), "ASL", big=True)
    header = nib.Nifti1Header(path.read_bytes()[:348], check=False)
    header["scl_slope"], header["scl_inter"], header["cal_max"], header["intent_code"] = 0.5, 3, 100, 5
    path.write_bytes(header.binaryblock + path.read_bytes()[348:])
    volume = read_volume(path)
    part = tuple(slice(1, length - 1) for length in volume.voxels.shape)
    grid_of(path, volume).write(tmp_path / "b.nii.gz", part, np.full((10, 12, 8), 0.25, np.float32), background=-1)
    again = nib.load(tmp_path / "b.nii.gz")
    assert (again.header.endianness, again.get_data_dtype().kind, again.header["intent_code"]) == (">", "f", 0)
    assert np.array_equal(again.affine, nib.load(path).affine)
    assert (again.header["cal_max"], again.dataobj.slope, again.dataobj.inter) == (0, 1, 0)
    values = np.asarray(again.dataobj)
    assert np.unique(values).tolist() == [-1, 0.25]
    assert (values == 0.25).sum() == 10 * 12 * 8
    assert np.array_equal(again.header["srow_x"], header["srow_x"])


def test_bytes_depend_on_numbers_alone(tmp_path):
    path = save(tmp_path / "a.nii", block())
    for name in ("b.nii.gz", "a name that is longer.nii.gz"):
        written(path, tmp_path / name)
    assert (tmp_path / "b.nii.gz").read_bytes() == (tmp_path / "a name that is longer.nii.gz").read_bytes()


def test_without_isal_it_is_the_same_file_packed_otherwise(tmp_path, monkeypatch):
    path = save_oblique(tmp_path / "a.nii", block(), "IAR")
    monkeypatch.setattr(nifti, "GzipFile", gzip.GzipFile)
    assert written(path, tmp_path / "b.nii.gz")[2] == path.read_bytes()


class TestSimpleITK:
    """Another library, with a reader of its own, finds the same places and values."""

    @pytest.fixture
    def sitk(self):
        return pytest.importorskip("SimpleITK")

    @pytest.mark.parametrize("storage", STORAGES)
    def test_positions_and_values_are_those_of_the_scan(self, tmp_path, sitk, storage):
        path = save_oblique(tmp_path / "a.nii", block(), storage)
        written(path, tmp_path / "b.nii.gz")
        places, image = positions(tmp_path / "b.nii.gz", sitk)
        corners = [(0, 0, 0), *np.diag(np.array(image.GetSize()) - 1).tolist()]
        assert np.allclose(places, nib.affines.apply_affine(nib.load(path).affine, corners), atol=1e-3)
        assert np.array_equal(sitk.GetArrayFromImage(image).T, nib.load(path).dataobj)

    @pytest.mark.parametrize("codes", [(2, 1), (1, 1), (0, 1), (1, 0), (4, 2)])
    def test_where_two_matrices_differ_each_reader_finds_what_it_finds_in_the_scan(self, tmp_path, sitk, codes):
        image = nib.Nifti1Image(block(), np.eye(4))
        image.set_sform(OBLIQUE, codes[0])
        image.set_qform(np.diag([-2, 2, 2, 1]), codes[1])
        nib.save(image, tmp_path / "a.nii")
        written(tmp_path / "a.nii", tmp_path / "b.nii.gz")
        (before, _), (after, _) = (positions(tmp_path / name, sitk) for name in ("a.nii", "b.nii.gz"))
        assert np.array_equal(before, after)
        assert np.array_equal(*(nib.load(tmp_path / name).affine for name in ("a.nii", "b.nii.gz")))

    @pytest.mark.parametrize("storage", ["LAS", "PIR"])
    def test_other_formats_lie_where_this_project_takes_them_to_lie(self, tmp_path, sitk, storage):
        path = save_analyze(tmp_path / "a.hdr", block() * ellipsoid((12, 14, 10), (5, 6, 4)), (1, 2, 3), storage)
        _, grid, _ = written(path, tmp_path / "b.nii.gz", assumed=storage)
        places, image = positions(tmp_path / "b.nii.gz", sitk)
        directions = np.array(image.GetDirection()).reshape(3, 3) * np.array([-1, -1, 1])[:, None]
        assert nib.aff2axcodes(nib.affines.from_matvec(directions)) == tuple(storage)
        assert np.allclose(places[0], grid.header.get_sform()[:3, 3], atol=1e-4)
