"""vqvae2 compress and decompress as they are run: images and scans in, small files, and the same codes out."""

import csv
import json
import random
import shutil
import struct
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import files_in
from PIL import ExifTags, Image
from scan_files import ellipsoid, save
from scipy import ndimage

from vqvae2.commands import compress, decompress, extract, predict
from vqvae2.common.errors import UserError, run_script
from vqvae2.compression import code_streams, exact, models
from vqvae2.compression.container import Chunk, Compressed
from vqvae2.models import encoding
from vqvae2.models.code_maps import read_arrays


@pytest.fixture(scope="module")
def own(tiny_run):
    return models.load(str(tiny_run.vqvae), str(tiny_run.top), str(tiny_run.bottom))


@pytest.fixture
def words(tiny_run):
    return ["--vqvae", str(tiny_run.vqvae), "--top", str(tiny_run.top), "--bottom", str(tiny_run.bottom)]


@pytest.fixture
def small(words, apart, tiny_run):
    """Compress the slices of the tiny test split, or what is given; return the folder."""
    def call(*inputs, out="small", more=()):
        compress.main([*map(str, inputs or [tiny_run.data / "test"]), *words, "--out", out, *more])
        return apart / out
    return call


@pytest.fixture
def again(words, apart):
    def call(*inputs, out="again", more=()):
        decompress.main([*map(str, inputs), *words, "--out", out, *more])
        return apart / out
    return call


@pytest.fixture
def scan(apart):
    """A small head, brighter to the right, the front and the top, stored as LAS; its header has a text."""
    right, front, top = np.indices((24, 28, 22))
    values = (50 + 5 * right + 3 * front + 2 * top).astype(np.int16)
    path = save(apart / "scans" / "sub-01_T1w.nii.gz", values * ellipsoid(values.shape, (8.5, 10.5, 7.5)).astype(
        np.int16), (6.0, 6.0, 7.0), storage="LAS")
    image = nib.load(path)
    image.header["descrip"] = "a scanner"
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header), path)
    return path


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class TestImages:
    def test_what_comes_back_is_what_predict_reconstructs(self, small, again, words, tiny_run, apart):
        folder = small()
        predict.main([str(tiny_run.data / "test"), *words[:2], "--out", "predicted"])
        made = again(folder)
        names = sorted(path.stem for path in (tiny_run.data / "test").glob("*.png"))
        assert sorted(path.stem for path in folder.glob("*.vqmri")) == names
        for name in names:
            one, other = (np.asarray(Image.open(path / f"{name}.png")).astype(int)
                          for path in (made, apart / "predicted" / "reconstructions"))
            assert np.abs(one - other).max() <= 1  # the last bits of a decoded image depend on the batch

    def test_codes_are_those_of_predict(self, small, words, tiny_run, own, apart):
        folder = small()
        predict.main([str(tiny_run.data / "test"), *words[:2], "--out", "predicted"])
        arrays = read_arrays(apart / "predicted" / "codes.npz")
        for number, name in enumerate(arrays["image"]):
            content = Compressed.read(folder / f"{name.split('/')[-1][:-4]}.vqmri")
            [chunk] = [Chunk.unpacked(data, 0) for data in content.chunks]
            levels, _ = code_streams.decode(own.priors, [chunk.stream], torch.zeros(1, 0))
            assert all(np.array_equal(levels[level][0], arrays[level][number]) for level in levels)

    def test_a_file_needs_at_most_64_bytes_more_than_an_ideal_coder(self, small, own, tiny_run):
        from test_code_streams import nll_bits
        for path in small().glob("*.vqmri"):
            [chunk] = [Chunk.unpacked(data, 0) for data in Compressed.read(path).chunks]
            levels, _ = code_streams.decode(own.priors, [chunk.stream], torch.zeros(1, 0))
            [bits] = nll_bits(own.priors, levels, torch.zeros(1, 0)).tolist()
            assert path.stat().st_size <= 1.02 * bits / 8 + 64

    def test_the_table_has_the_size_and_the_quality_of_each_file(self, small):
        folder = small()
        rows = rows_of(folder / "sizes.csv")
        assert {row["file"] for row in rows} == {path.name for path in folder.glob("*.vqmri")}
        for row in rows:
            size = (folder / row["file"]).stat().st_size
            assert (int(row["bytes"]), float(row["bits_per_pixel"])) == (size, size * 8 / 32**2)
            assert 0 < float(row["ssim"]) <= 1

    def test_another_batch_makes_the_same_files(self, small):
        first, second = small(), small(out="other", more=["--batch", "1", "--verify"])
        for path in first.glob("*.vqmri"):
            assert path.read_bytes() == (second / path.name).read_bytes()

    def test_files_that_are_there_are_not_coded_again(self, small, monkeypatch):
        before = files_in(small())
        gone = sorted(name for name in before if name.endswith(".vqmri"))[0]
        (small() / gone).unlink()
        coded, encode = [], code_streams.encode
        monkeypatch.setattr(code_streams, "encode", lambda priors, levels, known, *more, **options: coded.append(
            len(known)) or encode(priors, levels, known, *more, **options))
        assert files_in(small()) == before
        assert sum(coded) == 1

    def test_a_colour_picture_of_another_size_is_made_to_fit(self, small, again, apart):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 40, 3), np.uint8)).save(apart / "photo.png")
        made = again(small("photo.png"))
        assert Image.open(made / "photo.png").size == (32, 32)


    def test_images_of_8_and_16_bits_are_coded_together_as_each_would_be_alone(self, small, apart):
        image = np.random.default_rng(0).integers(0, 255, (32, 32), np.uint8)
        Image.fromarray(image).save(apart / "8.png")
        Image.fromarray(image.astype(np.uint16) * 257).save(apart / "16.png")
        together, alone = small("8.png", "16.png"), small("8.png", out="alone")
        chunks = {path.name: Compressed.read(path).chunks for path in (*together.glob("*.vqmri"), )}
        assert chunks["8.vqmri"] == chunks["16.vqmri"] == Compressed.read(alone / "8.vqmri").chunks


class TestScans:
    def test_a_scan_comes_back_on_its_own_grid(self, small, again, scan):
        made, given = nib.load(again(small(scan)) / "sub-01_T1w.nii.gz"), nib.load(scan)
        assert made.header.binaryblock == given.header.binaryblock

    def test_slices_lie_where_they_were_cut_and_are_as_bright(self, small, again, scan, words, monkeypatch):
        """With a decoder that gives the slices themselves back."""
        extract.main(["--scans", str(scan.parent), "--out", "slices", "--size", "32", "--per-scan", "all", "--extent",
                      "0", "1", "--workers", "1"])
        cut = [np.asarray(Image.open(path)) for path in sorted(scan.parents[1].glob("slices/*/*.png"))]
        monkeypatch.setattr(encoding, "decoded", lambda model, levels, batch: torch.from_numpy(np.stack(cut))[:, None])
        made, given = nib.load(again(small(scan)) / "sub-01_T1w.nii.gz"), nib.load(scan)
        values, back = np.asarray(given.dataobj).astype(int), np.asarray(made.dataobj).astype(int)
        assert 2 * ((values > 0) & (back > 0)).sum() / ((values > 0).sum() + (back > 0).sum()) > 0.9
        both = ndimage.binary_erosion((values > 0) & (back > 0))
        assert np.corrcoef(values[both], back[both])[0, 1] > 0.9
        assert back[both].mean() == pytest.approx(values[both].mean(), rel=0.02)

    def test_planes_can_be_decoded_alone(self, small, again, scan, monkeypatch):
        folder, counted, decode = small(scan), [], code_streams.decode
        monkeypatch.setattr(code_streams, "decode", lambda priors, streams, *more: counted.append(
            len(streams)) or decode(priors, streams, *more))
        made = again(folder / "sub-01_T1w.vqmri", more=["--slices", "3", "5"])
        first = Compressed.read(folder / "sub-01_T1w.vqmri").description["indices"]
        assert {path.name for path in made.glob("*.png")} == {
            f"sub-01_T1w_axial_{first[number]:03d}.png" for number in (3, 5)}
        assert counted == [2]

    def test_a_lost_plane_is_named_and_is_background_and_all_others_are_there(self, small, words, again, scan, apart,
                                                                             refusal):
        path = small(scan) / "sub-01_T1w.vqmri"
        whole = np.asarray(nib.load(again(path, out="whole") / "sub-01_T1w.nii.gz").dataobj)
        content, data = Compressed.read(path), bytearray(path.read_bytes())
        data[len(data) - sum(map(len, content.chunks[4:])) + 12] ^= 16
        path.write_bytes(data)
        line = refusal(decompress.main, path, *words, "--out", "again")
        assert line.startswith("again: expected all files and slices whole, found 1 that cannot be decoded")
        [row] = rows_of(apart / "again" / "damaged.csv")
        assert (row["slice"], row["reason"]) == ("4", "its bytes are damaged")
        back, index = np.asarray(nib.load(apart / "again" / "sub-01_T1w.nii.gz").dataobj), \
            content.description["indices"][4]
        assert not back[:, :, index].any()
        assert np.array_equal(np.delete(back, index, 2), np.delete(whole, index, 2))

    def test_other_planes_are_another_setting(self, small, scan, refusal, words):
        small(scan)
        line = refusal(compress.main, scan, *words, "--planes", "coronal", "--out", "small")
        assert "--planes coronal (was " in line


class TestWithoutLoss:
    NETWORK = str(Path(__file__).parents[2] / "pretrained" / "lossless")

    @pytest.fixture
    def images(self, apart):
        """Grey pictures of 8 and 16 bits and of several sizes, in several formats."""
        draws, found = np.random.default_rng(0), {}
        (apart / "given").mkdir()
        for name, shape, kind in (("a.png", (20, 31), np.uint8), ("b.png", (20, 31), np.uint16),
                                  ("c.tif", (9, 5), np.uint8), ("d.png", (20, 31), np.uint8)):
            found[name] = draws.integers(0, np.iinfo(kind).max, shape).astype(kind)
            Image.fromarray(found[name]).save(apart / "given" / name)
        return found

    def test_every_pixel_comes_back_at_its_own_size_and_depth(self, images, apart):
        compress.main(["given", "--lossless", self.NETWORK, "--out", "exact", "--verify"])
        decompress.main(["exact", "--lossless", self.NETWORK, "--out", "again", "--batch", "3"])
        for name, pixels in images.items():
            back = np.asarray(Image.open(apart / "again" / f"{name[0]}.png"))
            assert back.dtype == pixels.dtype
            assert np.array_equal(back, pixels)

    def test_both_kinds_of_files_are_decoded_at_once(self, images, small, apart, words):
        small()
        compress.main(["given", "--lossless", self.NETWORK, "--out", "exact"])
        decompress.main(["small", "exact", "--lossless", self.NETWORK, *words, "--out", "again"])
        assert len(list((apart / "again").glob("*.png"))) == len(images) + len(list((apart / "small").glob("*.vqmri")))

    def test_files_that_are_there_are_not_coded_again(self, images, apart, monkeypatch):
        compress.main(["given", "--lossless", self.NETWORK, "--out", "exact"])
        before = files_in(apart / "exact")
        (apart / "exact" / "b.vqmri").unlink()
        coded, encode = [], exact.encode
        monkeypatch.setattr(exact, "encode", lambda images, coder, **options: coded.append(len(images)) or encode(
            images, coder, **options))
        compress.main(["given", "--lossless", self.NETWORK, "--out", "exact"])
        assert sum(coded) == 1
        assert files_in(apart / "exact") == before

    def test_damage_costs_the_image_and_no_other_and_never_gives_other_pixels(self, images, apart, capfd):
        """Some bits of a stream's last word matter to no pixel: nothing is lost where one of these is flipped."""
        compress.main(["given", "--lossless", self.NETWORK, "--out", "exact"])
        whole, partly = {path: path.read_bytes() for path in (apart / "exact").glob("*.vqmri")}, 0
        for number in range(40):
            draws = random.Random(number)
            broken = draws.choice(sorted(whole))
            broken.write_bytes(damaged(whole[broken], draws))
            shutil.rmtree(apart / "again", ignore_errors=True)
            with pytest.raises(SystemExit) as end:
                run_script(lambda: decompress.main(["exact", "--lossless", self.NETWORK, "--out", "again"]))
            broken.write_bytes(whole[broken])
            partly += "found 1 that cannot be decoded; all others are there" in capfd.readouterr().err
            for path in (apart / "again").glob("*.png"):
                [own] = [pixels for name, pixels in images.items() if name[0] == path.stem]
                assert np.array_equal(np.asarray(Image.open(path)), own)
            assert {path.stem for path in (apart / "again").glob("*.png")} == {
                path.stem for path in whole if path != broken or end.value.code == 0}
        assert partly > 30

    @pytest.mark.parametrize(("name", "found"), [
        ("colour.png", "mode RGB"), ("transparent.png", "mode LA"), ("fractions.tif", "mode F"), ("two.tif", "2 pages"),
        ("turned.png", "one that is to be turned")])
    def test_what_would_not_come_back_is_refused(self, name, found, refusal, apart):
        grey = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4))
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        {"colour.png": lambda: Image.merge("RGB", [grey, grey, grey.rotate(90)]).save("colour.png"),
         "transparent.png": lambda: Image.merge("LA", [grey, grey]).save("transparent.png"),
         "fractions.tif": lambda: grey.convert("F").point(lambda value: value / 300).save("fractions.tif"),
         "two.tif": lambda: grey.save("two.tif", save_all=True, append_images=[grey]),
         "turned.png": lambda: grey.save("turned.png", exif=exif)}[name]()
        line = refusal(compress.main, name, "--lossless", self.NETWORK, "--out", "exact")
        assert f"{name}: expected a grey picture of 8 or 16 bits and one page, for --lossless, found {found}" in line
        assert not (apart / "exact").exists()

    def test_scans_and_missing_models_are_refused(self, images, scan, small, refusal, apart, words):
        assert "INPUT: expected pictures alone, with --lossless" in refusal(
            compress.main, scan, "--lossless", self.NETWORK, "--out", "exact")
        assert not (apart / "exact").exists()
        assert "--vqvae: expected the models of " in refusal(
            decompress.main, small(), "--lossless", self.NETWORK, "--out", "again")
        assert "--vqvae: expected a VQ-VAE, or --lossless NAME, found neither" in refusal(
            compress.main, "given", "--out", "exact")
        compress.main(["given", "--lossless", self.NETWORK, "--out", "exact"])
        assert "--lossless: expected the models of " in refusal(
            decompress.main, "exact", *words, "--out", "again")


def damaged(data, draws):
    """One of the ways in which bytes go wrong: flipped, cut off, repeated, zeroed, swapped, or more of them."""
    kind, at = draws.randrange(6), draws.randrange(len(data))
    length = draws.randrange(1, 40)
    if kind == 0:
        return data[:at] + bytes([data[at] ^ 1 << draws.randrange(8)]) + data[at + 1:]
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data[:at] + bytes(min(length, len(data) - at)) + data[at + length:]
    if kind == 3:
        return data[:at] + data[at:at + length] + data[at:]
    if kind == 4:
        return data[:at] + draws.randbytes(length) + data[at + length:]
    return data[:at] + data[at + length:]


def test_of_200_damaged_files_each_is_refused_or_restored_but_for_the_slices_that_are_named(
        small, own, scan, tmp_path, tiny_run, words, capsys):
    """The header's damage refuses a file; a chunk's costs its slice alone, and never gives other codes unnoticed."""
    sources = [small(scan) / "sub-01_T1w.vqmri", next(iter(sorted(small(out="images").glob("*.vqmri"))))]
    truth = {}
    for path in sources:
        content = Compressed.read(path)
        chunks = [Chunk.unpacked(data, 0) for data in content.chunks]
        truth[path] = code_streams.decode(own.priors, [chunk.stream for chunk in chunks],
                                          torch.zeros(len(chunks), 0))[0]
    ends = {"refused": 0, "whole": 0, "partly": 0, "none": 0}
    for number in range(200):
        draws, path = random.Random(number), sources[number % 2]
        broken = tmp_path / "broken.vqmri"
        broken.write_bytes(damaged(path.read_bytes(), draws))
        try:
            content = Compressed.read(broken)
        except UserError:  # and by no other exception
            ends["refused"] += 1
            continue
        assert content.description == Compressed.read(path).description
        good = []
        for item, data in enumerate(content.chunks):
            try:
                good.append((item, Chunk.unpacked(data, 0)))
            except ValueError:
                continue
        ends["whole" if len(good) == len(content.chunks) else "partly" if good else "none"] += 1
        if good:
            levels, readable = code_streams.decode(own.priors, [chunk.stream for _, chunk in good],
                                                   torch.zeros(len(good), 0))
            for place, (item, chunk) in enumerate(good):
                assert readable[place]
                assert code_streams.check_of(levels, place) == chunk.check
                assert all(torch.equal(levels[level][place], truth[path][level][item]) for level in levels)
    assert min(ends.values()) > 0, ends
    assert sum(ends.values()) == 200


def test_codes_that_this_machine_decodes_otherwise_are_named(small, words, apart, refusal):
    folder = small()
    path = sorted(folder.glob("*.vqmri"))[0]
    content = Compressed.read(path)
    chunk = Chunk.unpacked(content.chunks[0], 0)
    path.write_bytes(Compressed(content.kind, content.hashes, content.shape, content.bits, [Chunk(
        chunk.check ^ 1, (), chunk.stream).packed()]).packed())
    line = refusal(decompress.main, folder, *words, "--out", "again")
    assert "found 1 that cannot be decoded; all others are there" in line
    [row] = rows_of(apart / "again" / "damaged.csv")
    assert (row["file"], row["reason"]) == (str(path), "this machine decodes other codes than were written")
    assert len(list((apart / "again").glob("*.png"))) == len(list(folder.glob("*.vqmri"))) - 1
    assert not (apart / "again" / f"{path.stem}.png").exists()


class TestRefusals:
    def test_files_of_other_models_are_told_by_the_flag_that_is_wrong(self, small, words, refusal, told_top):
        path = sorted(small().glob("*.vqmri"))[0]
        line = refusal(decompress.main, path, *words[:2], "--top", told_top, *words[4:], "--out", "again")
        assert line.startswith(f"--top {told_top}: expected the model of ")

    def test_files_that_decompress_did_not_make_are_never_replaced(self, small, words, refusal, apart, tiny_run, again):
        folder = small()
        given = shutil.copytree(tiny_run.data / "test", apart / "given")
        before = files_in(given)
        line = refusal(decompress.main, folder, *words, "--out", "given")
        assert line.startswith("--out given: expected a folder without files of these names that vqvae2 decompress did")
        assert files_in(given) == before
        again(folder)
        again(folder)  # what it made itself, it goes on with
        (apart / "slices").mkdir()
        (apart / "slices" / "manifest.csv").write_text("image\n")
        assert "found slices of vqvae2 extract" in refusal(decompress.main, folder, *words, "--out", "slices")

    def test_other_inputs_are_another_setting(self, small, words, refusal, tiny_run, apart):
        folder = small()
        assert "--input" in refusal(compress.main, tiny_run.data / "validate", *words, "--out", "small")
        decompress.main([str(folder), *words, "--out", "again"])
        path = sorted(folder.glob("*.vqmri"))[0]
        assert "--input" in refusal(decompress.main, path, *words, "--out", "again")

    def test_a_later_version_says_so(self, small, words, refusal, apart):
        path = sorted(small().glob("*.vqmri"))[0]
        data = bytearray(path.read_bytes())
        data[4] = 9
        path.write_bytes(data)
        assert "expected versions 1 and 1 of the format and the tables, found 9 and 1. Install" in refusal(
            decompress.main, path, *words, "--out", "again")
        assert not (apart / "again").exists()

    @pytest.mark.parametrize(("name", "content", "said"), [
        ("empty.vqmri", b"", "found another beginning"), ("other.vqmri", b"PK\x03\x04 something else", "beginning"),
        ("short.vqmri", b"\x89VQM\x01\x01\x00", "found another beginning"),
        ("cut.vqmri", b"\x89VQM\x01\x01\x00\x03" + bytes(18), "found damage in it")])
    def test_other_files_are_refused_in_a_line(self, name, content, said, words, refusal, apart):
        (apart / name).write_bytes(content)
        assert said in refusal(decompress.main, name, *words, "--out", "again")

    def test_a_header_of_a_million_slices_takes_no_memory_and_no_time(self, words, refusal, apart):
        body = b"\x89VQM\x01\x01\x00\x03" + bytes(18) + b"\x20\x20\x01\x08\xff\xff\x7f"
        (apart / "large.vqmri").write_bytes(body + struct.pack("<I", zlib.crc32(body)))
        assert "found damage in it" in refusal(decompress.main, "large.vqmri", *words, "--out", "again")

    def test_a_description_of_another_scan_is_refused(self, small, words, scan, refusal):
        path = small(scan) / "sub-01_T1w.vqmri"
        content = Compressed.read(path)
        for change in ({"shape": [10**6, 10**6, 22]}, {"header": "00"}, {"indices": [999] * len(content.chunks)},
                       {"plane": "oblique"}, {"start": [0, 0]}, {"slope": "x"}, {"orientation": "XYZ"},
                       {"header": "ff" * 348}, {"low": None}, {"voxel_size_mm": [0, 1, 1]}, {"slope": 0}):
            path.write_bytes(Compressed(content.kind, content.hashes, content.shape, content.bits, content.chunks,
                                        {**content.description, **change}).packed())
            assert "expected slices and a description that fit the models" in refusal(
                decompress.main, path, *words, "--out", "again")

    def test_priors_of_both_levels_are_needed(self, words, tiny_run, refusal):
        assert refusal(compress.main, tiny_run.data / "test", *words[:4], "--out", "small").startswith(
            "--bottom: expected a prior for each level")

    def test_one_kind_of_planes_and_at_least_one_input(self, words, refusal):
        assert "--planes: expected one kind" in refusal(compress.main, "x", *words, "--planes", "axial", "coronal",
                                                        "--out", "small")
        assert "INPUT: expected at least one" in refusal(compress.main, *words, "--out", "small")

    def test_slices_of_an_image_and_beyond_the_last(self, small, words, scan, refusal):
        assert "--slices: expected files of scans" in refusal(
            decompress.main, small(), *words, "--slices", "0", "--out", "again")
        assert "--slices: expected numbers below" in refusal(
            decompress.main, small(scan, out="scan"), *words, "--slices", "400", "--out", "again")

    def test_an_unreadable_scan_in_a_folder_is_a_row_and_named_it_is_an_error(self, small, scan, words, refusal, apart):
        shutil.copy(scan, scan.with_name("sub-02_T1w.nii.gz"))
        scan.write_bytes(scan.read_bytes()[:200])
        folder = small(scan.parent)
        assert [row["input"] for row in rows_of(folder / "rejected.csv")] == [str(scan)]
        assert (folder / "sub-02_T1w.vqmri").is_file()
        refusal(compress.main, scan, *words, "--out", "other")
        assert not (apart / "other").exists()


def test_the_record_says_by_which_models(small, own):
    said = json.loads((small() / "compress.json").read_text())
    assert {name: said[f"{name}_hash"] for name in own.hashes} == own.hashes
