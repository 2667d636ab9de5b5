import gzip
import importlib.util
import sys
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqvae2.scans import volumes
from vqvae2.scans.headers import UnusableScan

BYTES = bytes(range(256)) * 3000


@pytest.fixture(params=["isal", "zlib"])
def library(request, monkeypatch):
    """The module as it is with isal installed, and without."""
    if request.param == "isal":
        pytest.importorskip("isal", reason="isal is optional")
    else:
        for name in ("isal", "isal.igzip", "isal.igzip_lib", "isal.isal_zlib"):
            monkeypatch.setitem(sys.modules, name, None)
    spec = importlib.util.spec_from_file_location("volumes_again", volumes.__file__)
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    return again


def read(library, path, size=2**20):
    with library.opened(path, path) as (stream, most):
        content = stream.read(size)
        while stream.read(library.CHUNK):
            pass
    assert most >= len(content)
    return content


@pytest.mark.parametrize("pack", [
    lambda content: content, gzip.compress, lambda content: gzip.compress(content, 1),
    lambda content: gzip.compress(content[:1000]) + gzip.compress(content[1000:]),
    lambda content: gzip.compress(content) + bytes(512)], ids=["plain", "gzip", "level 1", "two members", "padded"])
def test_bytes_are_those_of_the_file(tmp_path, library, pack):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(pack(BYTES))
    assert read(library, path) == BYTES
    assert read(library, path, 100) == BYTES[:100]


@pytest.mark.parametrize("damage", [
    lambda content: content[:2], lambda content: content[: len(content) // 2], lambda content: content[:-1],
    lambda content: content[:-6] + b"\0\0" + content[-4:], lambda content: content[:-4] + b"1234",
    lambda content: content[:40] + bytes([content[40] ^ 255]) + content[41:], lambda content: content + b"more"],
    ids=["begin", "half", "last byte gone", "check sum", "size", "a byte", "trailing"])
def test_damage_is_found_also_behind_what_was_asked_for(tmp_path, library, damage):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(damage(gzip.compress(BYTES)))
    with pytest.raises(UnusableScan, match=r"^a\.nii\.gz: expected a whole gzip file, found one that is cut short or "
                                           r"damaged\. Copy or download it again\.$"):
        read(library, path, 10)


def test_skipping_goes_to_the_place_asked_for_or_to_the_end(tmp_path, library):
    path = tmp_path / "a"
    for content in (BYTES, gzip.compress(BYTES)):
        path.write_bytes(content)
        with library.opened(path, path) as (stream, most):
            stream.seek(600_003)
            assert stream.read(4) == BYTES[600_003:600_007]
            assert min(stream.seek(10**9), most) == len(BYTES)


@given(content=st.binary(max_size=2000), level=st.integers(0, 9))
def test_check_sums_are_zlibs(content, level):
    assert volumes.crc32(content) == zlib.crc32(content)
