"""Streams of images and what is known of them <-> a .vqmri file, in which each slice can be read alone.

All numbers are unsigned and little-endian; v is a varint (LEB128: 7 bits a byte, low ones first, the high bit set but
for the last byte).

    4 bytes     89 56 51 4d: "VQM" behind a byte that is no letter
    1 byte      version of this format: 1
    1 byte      version of the tables (`frequencies.VERSION`): what the numbers in the streams stand for
    1 byte      what it is: 0 images, 1 planes of a scan; plus 2 if pixels come back exactly
    1 byte      number of models
    6 bytes     for each model the beginning of its hash, in the order VQ-VAE, top prior, bottom prior; of
                exact images that of the network of pixels
    v v v       height, width and channels of a slice
    v           bits of a pixel
    v           number of slices
    v …         for each slice the bytes of its chunk
    v, bytes    length of the description, and the description: JSON, packed by zlib. None (length 0) for an image
    4 bytes     CRC-32 of all before

and then a chunk for each slice:

    4 bytes     CRC-32 of the chunk's other bytes
    4 bytes     CRC-32 of what it stands for: its codes as 16-bit integers, top first; or its pixels, if they come back
    4 n bytes   float32: what is known of the slice, a number for each column of the priors, NaN where it is not
    …           its stream

The first checksum of a chunk tells that the file was damaged, the second that this machine computed other codes than
the one that wrote them. Either costs that slice alone.
"""

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vqvae2.common.errors import UserError, expect
from vqvae2.common.files import in_brief, open_regular
from vqvae2.compression import frequencies
from vqvae2.compression.varints import read_varint, varint

SUFFIX = ".vqmri"
MAGIC, VERSION = b"\x89VQM", 1
IMAGES, SCAN, EXACT = 0, 1, 2
HASH = 6
"""Bytes of a model's hash."""
LARGEST = 1 << 31
"""Bytes of a file: a whole brain at 256 by 256 pixels has 2^18."""
LARGEST_DESCRIPTION = 1 << 20
MOST_SLICES, LARGEST_SIDE = 1 << 16, 1 << 15


@dataclass(frozen=True)
class Chunk:
    """This is one slice of a file.

    Attributes:
        check: CRC-32 of what the stream stands for.
        known: what is known of the slice, a number for each column of the priors.
        stream: from `code_streams.encode`.
    """

    check: int
    known: tuple[float, ...]
    stream: bytes = field(repr=False)

    def packed(self) -> bytes:
        """Return the bytes of the chunk."""
        rest = struct.pack(f"<I{len(self.known)}f", self.check, *self.known) + self.stream
        return struct.pack("<I", zlib.crc32(rest)) + rest

    @classmethod
    def unpacked(cls, data: bytes, columns: int) -> "Chunk":
        """Return the chunk of so many columns. Raises: ValueError if it is damaged."""
        form = struct.Struct(f"<II{columns}f")
        if len(data) < form.size or zlib.crc32(data[4:]) != int.from_bytes(data[:4], "little"):
            raise ValueError("other bytes than were written")
        _, check, *known = form.unpack_from(data)
        return cls(check, tuple(known), data[form.size:])


@dataclass(frozen=True)
class Compressed:
    """This is a file, whose chunks are not looked into yet.

    Attributes:
        kind: IMAGES or SCAN, plus EXACT.
        hashes: the hashes of the models, 12 hex digits each.
        shape: channels, height and width of a slice.
        bits: of a pixel.
        chunks: the bytes of each slice, from `Chunk.packed`.
        description: of a scan.
    """

    kind: int
    hashes: tuple[str, ...]
    shape: tuple[int, int, int]
    bits: int
    chunks: Sequence[bytes] = field(repr=False)
    description: Mapping = field(default_factory=dict, repr=False)

    @property
    def is_exact(self) -> bool:
        """Return whether pixels come back."""
        return bool(self.kind & EXACT)

    def packed(self) -> bytes:
        """Return the bytes of the file."""
        channels, height, width = self.shape
        said = zlib.compress(json.dumps(self.description).encode(), 9) if self.description else b""
        numbers = (height, width, channels, self.bits, len(self.chunks), *map(len, self.chunks), len(said))
        header = b"".join([MAGIC, bytes([VERSION, frequencies.VERSION, self.kind, len(self.hashes)]),
                           *(bytes.fromhex(each) for each in self.hashes), *map(varint, numbers), said])
        return b"".join([header, struct.pack("<I", zlib.crc32(header)), *self.chunks])

    @classmethod
    def read(cls, path: Path) -> "Compressed":
        """Return the file at `path`.

        Raises: UserError if it cannot be read, is no such file, one of a later version, or its header is damaged. A
            file that ends too early has short or empty chunks in the end.
        """
        try:
            with open_regular(path) as file:
                data = file.read(LARGEST + 1)
        except OSError as error:
            raise UserError(f"{path}: expected a file that can be read, found {in_brief(error)}. Correct the path.") \
                from None
        expect(data[:4] == MAGIC and len(data) >= 8, str(path), f"a {SUFFIX} file", "another beginning",
               "Give a file that vqvae2 compress wrote.")
        expect(data[4:6] == bytes([VERSION, frequencies.VERSION]), str(path), f"versions {VERSION} and "
               f"{frequencies.VERSION} of the format and the tables", f"{data[4]} and {data[5]}",
               "Install the version of this project that wrote it.")
        try:
            return cls._unpacked(data)
        except (ValueError, zlib.error, IndexError, RecursionError):
            raise UserError(f"{path}: expected the header that vqvae2 compress wrote, found damage in it. None of its "
                            "slices can be read: take another copy.") from None

    @classmethod
    def _unpacked(cls, data: bytes) -> "Compressed":
        """Return the file of these bytes. Raises: ValueError, zlib.error or IndexError if its header is damaged."""
        at = 8 + HASH * data[7]
        hashes = tuple(data[start:start + HASH].hex() for start in range(8, at, HASH))

        def number(most: int) -> int:
            nonlocal at
            found, at = read_varint(data, at)
            if found > most:
                raise ValueError("too large")
            return found

        limits = (LARGEST_SIDE, LARGEST_SIDE, 4, 16, MOST_SLICES)
        height, width, channels, bits, slices = map(number, limits)
        lengths = [number(LARGEST) for _ in range(slices)]
        length = number(LARGEST_DESCRIPTION)
        end = at + length
        if zlib.crc32(data[:end]) != int.from_bytes(data[end:end + 4], "little") or len(data) < end + 4:
            raise ValueError("other bytes than were written")
        unpacking = zlib.decompressobj()
        description = json.loads(unpacking.decompress(data[at:end], LARGEST_DESCRIPTION)) if length else {}
        chunks, at = [], end + 4
        for length in lengths:
            chunks.append(data[at:at + length])
            at += length
        return cls(data[6], hashes, (channels, height, width), bits, chunks, description)
