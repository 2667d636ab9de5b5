"""One brain, stored in every way that a scanner or a converter may choose, gives the same pictures."""

import io
import tempfile
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scan_files import STORAGES, ellipsoid, stored

from vqvae2.scans.finding import Scan
from vqvae2.slices.scan_slices import extract_scan
from vqvae2.slices.settings import ExtractSettings

SHAPE = (16, 20, 14)
TYPES = ["<u1", "<i2", ">i2", "<u2", ">u2", "<i4", ">i4", "<u4", "<i8", "<f4", ">f4", "<f8", ">f8"]
FORMATS = {".nii": nib.Nifti1Image, ".nii.gz": nib.Nifti1Image, ".hdr": nib.Nifti1Pair, ".2.nii": nib.Nifti2Image,
           ".2.nii.gz": nib.Nifti2Image}
MGH_TYPES = [">i2", ">i4", ">f4", "|u1"]
zooms = st.tuples(*3 * [st.sampled_from([0.5, 0.75, 1.0, 1.25, 2.0])])


def asymmetric_brain() -> np.ndarray:
    """An ellipsoid of even values 40…238 in a background of 0, without any symmetry."""
    inside = ellipsoid(SHAPE, (6.3, 8.1, 5.4), (7.0, 10.0, 6.5))
    return np.where(inside, np.random.default_rng(0).integers(20, 120, SHAPE) * 2, 0)


def turned(affine: np.ndarray, angles: tuple[float, float, float]) -> np.ndarray:
    """Turn a scan about the three axes, in radians."""
    result = affine
    for axis, angle in enumerate(angles):
        turn = np.eye(4)
        first, second = (other for other in range(3) if other != axis)
        turn[[first, second], [first, second]] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        result = turn @ result
    return result


def pictures(path: Path) -> dict[str, np.ndarray]:
    """Every picture that is made of a scan, by plane and index."""
    asked = ExtractSettings(planes=("axial", "coronal", "sagittal"), per_scan=2, size=24, field_of_view=24)
    with tempfile.TemporaryDirectory() as folder:
        rows = extract_scan(Scan(path, path.name, "x", prefix="x"), asked, Path(folder), "train")
        assert len(rows) == 6
        return {f"{row['plane']}{row['index']}": np.asarray(Image.open(io.BytesIO((Path(folder) / row["image"])
                                                                                  .read_bytes()))) for row in rows}


@cache
def expected(sizes: tuple[float, float, float]) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        nib.save(nib.Nifti1Image(asymmetric_brain().astype(np.int16), np.diag([*sizes, 1.0])), Path(folder) / "x.nii")
        return pictures(Path(folder) / "x.nii")


def assert_same_pictures(kind: type, extension: str, storage: str, number_type: str, sizes: tuple,
                         angles: tuple = (0, 0, 0), slope: float = 1.0, inter: float = 0.0) -> None:
    """Store the brain so, and compare its pictures with those of the plainest file."""
    voxels, affine = stored(asymmetric_brain(), sizes, storage)
    if kind is nib.MGHImage:  # which is big-endian always
        header = kind.header_class()
        header.set_data_dtype(np.dtype(number_type).newbyteorder("="))
    else:
        header = kind.header_class(endianness=number_type[0])
        header.set_data_dtype(number_type)
    image = kind(((voxels - inter) / slope).astype(number_type), turned(affine, angles), header)
    if (slope, inter) != (1, 0):
        image.header.set_slope_inter(slope, inter)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x{extension}"
        nib.save(image, path)
        assert nib.load(path).get_data_dtype() == number_type
        found = pictures(path)
    assert found.keys() == expected(sizes).keys()
    for name, picture in expected(sizes).items():
        assert len(np.unique(picture)) > 20, "there is a brain to be seen"
        # Sizes from a turned matrix differ in the seventh digit, so that a grey value may be rounded otherwise.
        np.testing.assert_allclose(found[name].astype(int), picture, atol=1 if any(angles) else 0, err_msg=name)


@settings(max_examples=60)
@given(storage=st.sampled_from(STORAGES), number_type=st.sampled_from(TYPES), extension=st.sampled_from(list(FORMATS)),
       sizes=zooms)
def test_order_flips_type_format_and_zooms_change_no_pixel(storage, number_type, extension, sizes):
    assert_same_pictures(FORMATS[extension], extension, storage, number_type, sizes)


@settings(max_examples=40)
@given(storage=st.sampled_from(STORAGES), extension=st.sampled_from([".nii", ".nii.gz"]), sizes=zooms,
       angles=st.tuples(*3 * [st.floats(-0.3, 0.3)]))
def test_an_oblique_scan_is_drawn_along_its_closest_axes(storage, extension, sizes, angles):
    """Up to 17 degrees about each axis: beyond that, which axes are closest may be another question."""
    assert_same_pictures(nib.Nifti1Image, extension, storage, "<i2", sizes, angles)


@settings(max_examples=30)
@given(storage=st.sampled_from(STORAGES), number_type=st.sampled_from(["<i2", ">i4", "<u2", "<f4", "<f8"]),
       slope=st.sampled_from([0.25, 0.5, 2.0]), inter=st.sampled_from([0.0, -16.0]), sizes=zooms)
def test_scale_factors_change_no_pixel(storage, number_type, slope, inter, sizes):
    assert_same_pictures(nib.Nifti1Image, ".nii", storage, number_type, sizes, slope=slope, inter=inter)


@settings(max_examples=20)
@given(storage=st.sampled_from(STORAGES), number_type=st.sampled_from(MGH_TYPES), sizes=zooms,
       extension=st.sampled_from([".mgh", ".mgz"]))
def test_mgh_gives_the_same_pictures(storage, number_type, sizes, extension):
    assert_same_pictures(nib.MGHImage, extension, storage, number_type, sizes)
