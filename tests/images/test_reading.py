"""A picture's file becomes the pixels that a person would see, or one line says why it does not."""

import io
import os
import stat
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from vqvae2.common.errors import Stopped, UserError
from vqvae2.images import reading
from vqvae2.images.reading import BrokenPicture, pictures_in, read_picture

ROOT = Path(__file__).parents[2]
RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOURS = np.stack([RAMP, RAMP.T, 255 - RAMP], -1)
LOSSLESS = {"png": {}, "tif": {}, "bmp": {}, "webp": {"lossless": True}}


@pytest.fixture
def read(tmp_path):
    """Write a picture (an array, a Pillow image or bytes) to a file and return what is read of it."""
    def read_one(picture, name: str = "a.png", size=None, fit="stretch", colours="auto", **options) -> np.ndarray:
        path = tmp_path / name
        if isinstance(picture, bytes):
            path.write_bytes(picture)
        else:
            (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(path, **options)
        return read_picture(path, size, fit, colours)
    return read_one


def png(values: np.ndarray, kind: int, extra: bytes = b"") -> bytes:
    """A PNG of 16 bits of a colour type that Pillow does not write: 2 is RGB, 4 grey and alpha, 6 RGBA."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join([chunk(b"IHDR", header), extra, chunk(b"IDAT", zlib.compress(rows)),
                                            chunk(b"IEND", b"")])


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


class TestFormats:
    @pytest.mark.parametrize("ending", LOSSLESS)
    def test_grey_and_colours_are_the_same_pixels_whatever_the_format(self, ending, read):
        assert np.array_equal(read(RAMP, f"a.{ending}", **LOSSLESS[ending]), RAMP[None])
        assert np.array_equal(read(COLOURS, f"b.{ending}", **LOSSLESS[ending]), COLOURS.transpose(2, 0, 1))

    def test_jpeg_is_near_and_cmyk_becomes_colours(self, read):
        flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
        made = read(flat, "a.jpg", quality=95).astype(int)
        assert np.abs(made - flat.transpose(2, 0, 1)).max() <= 3
        # Without black ink a colour is 255 less its ink: 255 - 55, 255 - 155, 255 - 205.
        ink = Image.merge("CMYK", [Image.new("L", (16, 16), value) for value in (55, 155, 205, 0)])
        assert np.array_equal(read(ink, "ink.tif"), flat.transpose(2, 0, 1))

    def test_a_picture_of_1_bit_is_black_and_white(self, read):
        bits = Image.fromarray(RAMP > 100)
        assert bits.mode == "1"
        assert np.array_equal(read(bits), np.where(RAMP > 100, 255, 0)[None])

    def test_a_palette_is_the_colours_that_it_names(self, read):
        picture = Image.new("P", (3, 1))
        picture.putpalette([255, 0, 0, 0, 255, 0, 7, 8, 9])
        picture.putdata([2, 0, 1])
        assert read(picture).transpose(1, 2, 0).tolist() == [[[7, 8, 9], [255, 0, 0], [0, 255, 0]]]

    @pytest.mark.parametrize("ending", ["gif", "png", "webp", "tif"])
    def test_of_an_animation_or_of_pages_the_first_is_taken(self, ending, read):
        frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (40, 240, 140)]
        options = {"lossless": True} if ending == "webp" else {}
        made = read(frames[0], f"a.{ending}", save_all=True, append_images=frames[1:], **options)
        assert np.array_equal(made, np.full((1, 8, 8), 40))

    @pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
    def test_a_photograph_is_turned_as_its_camera_was(self, ending, read):
        """Orientation 6: the top of the scene is at the right of the pixels, which must be turned clockwise."""
        pixels = np.zeros((16, 32), np.uint8)
        pixels[:, :16] = 250
        exif = Image.Exif()
        exif[0x0112] = 6
        made = read(pixels, f"a.{ending}", exif=exif)
        assert made.shape == (1, 32, 16)
        assert (made[0, 0].min() > 240, made[0, -1].max() < 10) == (True, True)

    def test_a_picture_is_turned_before_it_is_resized(self, read):
        pixels = np.tile(np.repeat([10, 90], 16).astype(np.uint8), (16, 1))
        exif = Image.Exif()
        exif[0x0112] = 6
        assert read(pixels, "a.png", size=2, exif=exif).tolist() == [[[10, 10], [90, 90]]]

    def test_other_files_and_hidden_ones_are_no_pictures(self, tmp_path):
        for name in ("b.GIF", "a.tiff", "deep/c.bmp", ".a.png", "notes.txt", ".cache/d.png"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        assert [path.name for path in pictures_in(tmp_path)] == ["a.tiff", "b.GIF", "c.bmp"]

    def test_they_are_sorted_as_paths_are(self, tmp_path):
        for name in ("a.png", "a/b.png", "a-b/c.png", "a/B.png", "b.png/d.png"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        assert pictures_in(tmp_path) == sorted(tmp_path / name for name in (
            "a.png", "a/b.png", "a-b/c.png", "a/B.png", "b.png/d.png"))


def odd_files(folder: Path) -> dict[str, str]:
    """Make what has a picture's name and is none; return why it is not read."""
    os.mkfifo(folder / "pipe.png")
    os.mknod(folder / "socket.png", stat.S_IFSOCK | 0o600)
    for name, target in (("device.png", "/dev/zero"), ("dangling.png", "nothing"), ("circle.png", "circle.png"),
                         ("up", "."), ("above.png", "..")):
        (folder / name).symlink_to(target)
    return {"above.png": "a link to a folder", "circle.png": "too many levels of symbolic links", "dangling.png":
            "a link to a file that is not there", "device.png": "a device", "pipe.png": "a named pipe", "socket.png":
            "a socket", "up": "a link to a folder"}


class TestOddFiles:
    """A named pipe that nobody writes to would keep whoever opens it waiting for ever."""

    def test_they_are_not_read_and_one_line_says_so(self, tmp_path, capsys):
        reasons = odd_files(tmp_path)
        (tmp_path / "good.png").touch()
        assert reading.find_pictures(tmp_path) == ([tmp_path / "good.png"],
                                                   {tmp_path / name: why for name, why in reasons.items()})
        assert pictures_in(tmp_path) == [tmp_path / "good.png"]
        assert capsys.readouterr().out == (
            f"images: 7 in {tmp_path} not read, such as above.png (a link to a folder)\n")

    def test_one_that_is_named_is_a_broken_picture(self, tmp_path):
        for name, why in odd_files(tmp_path).items():
            with pytest.raises(BrokenPicture, match=rf"{name}: expected .*, found .*\. ") as caught:
                read_picture(tmp_path / name)
            expected = "not there" if name == "dangling.png" else why.replace("a link to a folder", "a folder")
            assert caught.value.why.lower().removeprefix("not a regular file but ") == expected

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
    def test_a_folder_that_cannot_be_read_is_told(self, tmp_path):
        (tmp_path / "closed").mkdir(mode=0)
        assert reading.find_pictures(tmp_path) == ([], {tmp_path / "closed": "permission denied"})


class TestBits:
    VALUES = np.array([[0, 257, 65535], [1000, 30000, 128]], np.uint16)

    @pytest.mark.parametrize("ending", ["png", "tif"])
    def test_grey_of_16_bits_keeps_all_of_them(self, ending, read):
        made = read(self.VALUES, f"a.{ending}")
        assert made.dtype == np.uint16
        assert np.array_equal(made[0], self.VALUES)

    @pytest.mark.parametrize(("kind", "channels"), [(2, 3), (4, 2), (6, 4)])
    def test_of_colours_and_transparency_in_16_bits_the_upper_8_are_read(self, kind, channels, read):
        values = np.repeat(self.VALUES[..., None], channels, -1)
        if channels % 2 == 0:
            values[..., -1] = 65535
        made = read(png(values, kind))
        assert made.dtype == np.uint8
        assert made.tolist() == [[[0, 1, 255], [3, 117, 0]]]  # the values divided by 256, rounded down

    def test_floating_point_pixels_in_0_to_1_become_16_bits(self, read):
        made = read((self.VALUES / 65535).astype(np.float32), "a.tif")
        assert made.dtype == np.uint16
        assert np.array_equal(made[0], self.VALUES)

    @pytest.mark.parametrize(("values", "said"), [
        (np.float32([[0, 255]]), r"floating-point pixels from 0 to 255, whose range is not known \(0…1 is\)\. Delete"),
        (np.float32([[-0.5, 1]]), r"floating-point pixels from -0\.5 to 1, whose range"),
        (np.float32([[0, np.nan]]), r"floating-point pixels that are infinite or not a number\. Delete"),
        (np.int32([[0, 65536]]), r"whole numbers from 0 to 65536, where 0 to 65535 are 16 bits\. Delete"),
        (np.int32([[-7, 9]]), r"whole numbers from -7 to 9, where")])
    def test_other_ranges_are_refused_with_what_was_found(self, values, said, read):
        with pytest.raises(UserError, match=rf"a\.tif: expected a readable image, found {said}"):
            read(values, "a.tif")


class TestTransparency:
    """Transparent pixels are black; pixels of half opacity are half as bright."""

    OPACITY = np.array([[255, 128, 0, 51]], np.uint8)

    @pytest.mark.parametrize("ending", ["png", "webp", "tif"])
    def test_colours_and_grey_are_laid_on_black(self, ending, read):
        pixels = np.array([[[200, 100, 50]] * 4], np.uint8)
        options = {"lossless": True, "exact": True} if ending == "webp" else {}
        made = read(np.dstack([pixels, self.OPACITY]), f"a.{ending}", **options)
        # 200 x 128 / 255 is 100.4, 100 and 50 likewise; 51 is a fifth of 255.
        assert made.transpose(1, 2, 0).tolist() == [[[200, 100, 50], [100, 50, 25], [0, 0, 0], [40, 20, 10]]]

    def test_grey_stays_one_channel(self, read):
        picture = Image.merge("LA", [Image.new("L", (4, 1), 200), Image.fromarray(self.OPACITY)])
        assert read(picture).tolist() == [[[200, 100, 0, 40]]]

    @pytest.mark.parametrize("ending", ["png", "gif"])
    def test_a_colour_of_a_palette_that_is_transparent_is_black(self, ending, read):
        picture = Image.new("P", (2, 1))
        picture.putpalette([255, 0, 0, 0, 255, 0])
        picture.putdata([1, 0])
        assert read(picture, f"a.{ending}", transparency=1).transpose(1, 2, 0).tolist() == [[[0, 0, 0], [255, 0, 0]]]

    @pytest.mark.parametrize("kind", [np.uint8, np.uint16])
    def test_a_grey_that_is_named_transparent_is_black(self, kind, read):
        made = read(np.array([[5, 6, 250]], kind), transparency=250)
        assert (made.dtype, made.tolist()) == (kind, [[[5, 6, 0]]])


class TestSize:
    def test_a_crop_is_the_middle_of_what_a_resize_of_the_shorter_side_gives(self, read):
        for shape in ((16, 48), (48, 16)):
            pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
            square = pixels[16:32] if shape[0] > 16 else pixels[:, 16:32]
            expected = square.reshape(8, 2, 8, 2).astype(float).mean((1, 3))
            # Pillow rounds 8-bit pixels after each direction: twice a half.
            np.testing.assert_allclose(read(pixels, size=8, fit="crop")[0], expected, atol=1)

    def test_a_small_picture_is_enlarged_and_cropped_likewise(self, read):
        pixels = np.tile(np.array([0, 0, 80, 160, 240, 240], np.uint16), (2, 1))
        made = read(pixels, size=4, fit="crop")
        # The middle two columns twice as large, linear between pixel centres: quarters of 80.
        np.testing.assert_allclose(made[0], [[60, 100, 140, 180]] * 4, atol=1)

    @pytest.mark.parametrize("fit", ["stretch", "crop"])
    def test_a_picture_that_has_the_size_is_left_as_it_is(self, fit, read):
        assert np.array_equal(read(RAMP, size=16, fit=fit), RAMP[None])


class TestColours:
    def test_auto_is_one_channel_unless_there_are_colours(self, read):
        assert read(np.dstack([RAMP] * 3)).shape == (1, 16, 16)
        assert read(COLOURS).shape == (3, 16, 16)

    def test_grey_is_luma(self, read):
        expected = COLOURS @ np.array([0.299, 0.587, 0.114])
        np.testing.assert_allclose(read(COLOURS, colours="grey")[0], expected, atol=0.51)

    @pytest.mark.parametrize("pixels", [RAMP, RAMP.astype(np.uint16) * 200])
    def test_rgb_repeats_grey(self, pixels, read):
        assert np.array_equal(read(pixels, colours="rgb"), np.stack([pixels] * 3))


class TestBroken:
    @pytest.mark.parametrize(("width", "height"), [(8193, 8192), (13000, 13000), (40000, 40000)])
    def test_a_bomb_is_refused_before_anything_is_decoded(self, width, height, read, tmp_path):
        """Pillow itself would decode the first, warn about the second and refuse the third."""
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        content = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
        said = r"67108864 \(8192 by 8192\) are the most" if width < 40000 else "could be decompression bomb"
        with pytest.raises(BrokenPicture, match=rf"found .*{said}.*\. Delete it"):
            read(content)
        script = f"from vqvae2.images.reading import *; read_picture(Path({str(tmp_path / 'a.png')!r}))"
        alone = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
        assert "BrokenPicture" in alone.stderr
        assert "Warning" not in alone.stderr

    def test_the_largest_that_is_read_is_as_large_as_is_said(self, read, monkeypatch):
        monkeypatch.setattr(reading, "MOST_PIXELS", 256)
        assert read(RAMP).shape == (1, 16, 16)
        with pytest.raises(UserError, match=r"found 16 by 17 pixels, where 256 .* are the most"):
            read(np.zeros((17, 16), np.uint8))

    @pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp", "bmp", "gif"])
    @pytest.mark.parametrize("share", [0.01, 0.5, 0.95])
    def test_a_torn_file_is_refused_whatever_the_format(self, ending, share, read):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        content = io.BytesIO()
        Image.fromarray(noise).save(content, Image.registered_extensions()[f".{ending}"])
        torn = content.getvalue()[:int(content.tell() * share)]
        with pytest.raises(BrokenPicture, match=rf"a\.{ending}: expected a readable image, found .+\. Delete it"):
            read(torn, f"a.{ending}")

    @pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp", "bmp", "gif"])
    def test_damage_at_random_gives_a_picture_or_a_refusal_and_no_other_error(self, ending, read, recwarn):
        content = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        options = {"exif": exif} if ending in ("png", "jpg", "tif", "webp") else {}
        Image.fromarray(COLOURS).save(content, Image.registered_extensions()[f".{ending}"], **options)
        random = np.random.default_rng(0)
        refused = 0
        for _ in range(100):
            damaged = np.frombuffer(content.getvalue(), np.uint8).copy()
            places = random.integers(0, min(len(damaged), random.choice([40, 10**6])), random.integers(1, 9))
            damaged[places] = random.integers(0, 256, len(places))
            try:
                assert read(damaged.tobytes(), f"a.{ending}").ndim == 3
            except BrokenPicture as error:
                refused += "expected a readable image" in str(error) and bool(error.why)
        assert refused > 10

    @pytest.mark.parametrize("content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"P5 1 1 255 a",
                                         b"\x00\x00\x00\x0cjP  \r\n\x87\n"], ids=["PostScript", "PGM", "JPEG 2000"])
    def test_what_else_pillow_reads_is_refused_whatever_it_is_called(self, content, read, monkeypatch):
        monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
        with pytest.raises(BrokenPicture, match=r"a\.png: expected a readable image, found cannot identify image file"):
            read(content)

    def test_an_error_of_whatever_class_is_one_broken_picture_and_a_stop_is_a_stop(self, read, monkeypatch):
        for error in (RuntimeError("odd"), AssertionError("odd"), MemoryError("odd"), ZeroDivisionError("odd"),
                      type("Odd", (Exception,), {})("odd")):
            monkeypatch.setattr(reading, "_decoded", mock.Mock(side_effect=error))
            with pytest.raises(BrokenPicture, match=r"found odd\. Delete it"):
                read(RAMP)
        for stop in (Stopped("now"), KeyboardInterrupt()):
            monkeypatch.setattr(reading, "_decoded", mock.Mock(side_effect=stop))
            with pytest.raises(type(stop)):
                read(RAMP)

    def test_a_file_that_is_larger_than_any_picture_is_not_read(self, tmp_path):
        with (tmp_path / "a.png").open("wb") as file:
            file.truncate(2**40)
        with pytest.raises(BrokenPicture, match=r"found 1,099,511,627,776 bytes, where 536,870,912 are the most"):
            read_picture(tmp_path / "a.png")

    def test_a_few_words_say_why_without_the_path(self, read, tmp_path):
        with pytest.raises(BrokenPicture) as caught:
            read(b"no picture", "a.png")
        assert caught.value.why == "cannot identify image file"
        with pytest.raises(BrokenPicture, match=r"expected an image, found nothing") as caught:
            read_picture(Path(tmp_path, "b.png"))
        assert caught.value.why == "not there"
