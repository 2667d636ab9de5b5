"""A manifest may be a stranger's: what it says is checked before it is used, and takes a bounded time and memory."""

import csv
import os
import pickle
import tracemalloc
from pathlib import Path

import pytest
from conftest import edit_manifest, write_slices

from vqvae2.common.errors import UserError
from vqvae2.images import manifest
from vqvae2.images.dataset import hashes_of, load_images
from vqvae2.images.settings import DataSettings

HEADER = "image,split,subject,sha256"


@pytest.fixture
def slices(tmp_path) -> Path:
    return write_slices(tmp_path / "slices")


def load(folder: Path):
    return load_images(DataSettings(data=folder))


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "manifest.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


class TestPlaces:
    @pytest.mark.parametrize("name", ["../x.png", "/etc/x.png", "train/../../x.png", "train/..", "", "train//a.png",
                                      "./train/a.png", "train/", "a\0b.png"])
    def test_a_name_that_is_no_plain_path_below_the_folder_is_refused(self, name, slices):
        edit_manifest(slices, lambda rows: rows[0].update(image=name))
        with pytest.raises(UserError, match=r"manifest\.csv: expected (paths of images inside its folder, found '|a "
                                            r"readable manifest, found line contains NUL).*\. Run extract_slices"):
            load(slices)

    def test_names_with_dots_in_them_are_names(self, slices):
        (slices / "train" / "OAS1_0001_axial070.png").rename(slices / "train" / "..a..b.png")
        edit_manifest(slices, lambda rows: rows[0].update(image="train/..a..b.png"))
        assert load(slices).splits["train"].names[0] == "train/..a..b.png"

    def test_a_link_that_leaves_the_folder_is_refused(self, slices, tmp_path):
        path = slices / "train" / "OAS1_0001_axial070.png"
        path.rename(tmp_path / "secret.png")
        path.symlink_to(tmp_path / "secret.png")
        with pytest.raises(UserError, match=r"OAS1_0001_axial070\.png: expected a readable image, found a link that "
                                            r"leaves the folder\. "):
            load(slices)

    def test_a_folder_that_is_a_link_and_leaves_the_folder_is_refused(self, slices, tmp_path):
        (slices / "train").rename(tmp_path / "elsewhere")
        (slices / "train").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(UserError, match=r"images inside its folder, found train, a link to .*elsewhere\. Copy"):
            load(slices)

    def test_links_inside_the_folder_are_followed_and_the_folder_may_be_a_link_itself(self, slices, tmp_path):
        before = load(slices).describe()
        (slices / "train").rename(slices / "really")
        (slices / "train").symlink_to("really")
        path = slices / "test" / "OAS1_0009_axial070.png"
        path.rename(slices / "a.png")
        path.symlink_to("../a.png")
        (tmp_path / "link").symlink_to(slices)
        for folder in (slices, tmp_path / "link"):
            assert load(folder).describe() | {"data": 0} == before | {"data": 0}


class TestRows:
    def test_a_row_that_is_there_twice_is_refused(self, slices):
        edit_manifest(slices, lambda rows: rows.insert(5, rows[3]))
        with pytest.raises(UserError, match=r"expected one row for each image, found two for train/OAS1_0002_axial070"):
            load(slices)

    @pytest.mark.parametrize(("one", "other"), [("a.png", "A.png"), ("é.png", "e\u0301.png")])
    def test_two_spellings_are_one_image_where_the_file_system_holds_them_to_be(self, one, other, slices):
        path = slices / "train" / "OAS1_0001_axial070.png"
        path.rename(slices / one)
        (slices / other).hardlink_to(slices / one)
        edit_manifest(slices, lambda rows: (rows[0].update(image=one), rows[3].update(image=other)))
        with pytest.raises(UserError, match=rf"two for one file, {one} and {other}\. Run"):
            load(slices)
        (slices / other).unlink()
        (slices / "train" / "OAS1_0002_axial070.png").rename(slices / other)
        assert load(slices).splits["train"].names[3] == other

    @pytest.mark.parametrize("text", ["0" * 64, "0", "a" * 63, "g" * 64, "not computed"])
    def test_a_hash_that_is_none_is_refused_and_an_empty_cell_is_not(self, text, slices):
        edit_manifest(slices, lambda rows: rows[2].update(sha256=text))
        with pytest.raises(UserError, match=rf"64 hexadecimal digits, or nothing in the column sha256, found '{text}'"):
            load(slices)
        edit_manifest(slices, lambda rows: rows[2].update(sha256=""))
        assert len(load(slices).files) == 33

    def test_facts_are_all_cells_of_the_row_and_short_rows_have_empty_ones(self, tmp_path):
        path = write(tmp_path, f"{HEADER},age,none\n\na.png,train,s1,,70\nb.png,test,s2,{'1' * 64},71,x,y\n")
        first, second = manifest.read_manifest(path)
        assert dict(first.facts) == {"image": "a.png", "split": "train", "subject": "s1", "sha256": "", "age": "70",
                                     "none": ""}
        assert (second.facts["none"], second.sha256, second.facts.get("more", "-")) == ("x", "1" * 64, "-")
        assert pickle.loads(pickle.dumps(second)).facts == second.facts

    def test_many_values_of_a_column_are_kept(self, tmp_path):
        path = write(tmp_path, f"{HEADER},a,b\n" + "".join(
            f"{i}.png,train,s{i % 9},,{i % 300},{i}\n" for i in range(66_000)))
        rows = manifest.read_manifest(path)
        assert all((row.facts["a"], row.facts["b"]) == (str(i % 300), str(i)) for i, row in enumerate(rows))

    def test_the_data_hash_is_the_one_that_older_runs_have(self, tiny_slices):
        with (tiny_slices / "manifest.csv").open(newline="") as file:
            text = "\n".join(f"{row['image']} {row['split']} {row['subject']} {row['sha256']}"
                             for row in csv.DictReader(file))
        rows = manifest.read_manifest(tiny_slices / "manifest.csv")
        found = hashes_of(rows, dict.fromkeys(("train", "validate", "test"), ()), [])
        assert found["data_hash"] == manifest.hashlib.sha256(text.encode()).hexdigest()


class TestBounds:
    @pytest.mark.parametrize(("text", "found"), [
        (",".join(map(str, range(10**5))), r"at most 1,000 columns, found 100,000\."),
        (f"{HEADER}\n" + "a" * 200_000, r"a readable manifest, found field larger than field limit \(131072\)\."),
        (f"{HEADER}\n" + "a," * 2**20, r"a readable manifest, found a line of 1,048,576 characters or more\."),
        (f"{HEADER}\n" + "\0" * 99, r"found line contains NUL\.|splits train, .*, found nothing\."),
        (f"{HEADER}\n" + "".join(f"{i}.png,split {i},,\n" for i in range(1000)),
         r"validate, test, found split 0.{,150}\. R"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), r"a readable manifest, found .*can't decode")])
    def test_what_is_too_much_or_no_table_is_one_line(self, text, found, tmp_path):
        with pytest.raises(UserError, match=found) as caught:
            load(write(tmp_path, text).parent)
        assert len(str(caught.value)) < 500

    def test_a_row_takes_a_few_hundred_bytes_however_many_columns_repeat(self, tmp_path):
        path = write(tmp_path, f"{HEADER},{','.join(f'c{i}' for i in range(26))}\n" + "".join(
            f"train/subject-{i // 100:05d}_axial{i % 100:03d}.png,train,subject-{i // 100},{i + 1:064x},"
            f"{','.join(f'value {i // 100}' for _ in range(26))}\n" for i in range(3000)))
        tracemalloc.start()
        try:
            rows = manifest.read_manifest(path)
            assert tracemalloc.get_traced_memory()[0] / len(rows) < 400
        finally:
            tracemalloc.stop()

    def test_a_manifest_that_is_no_file_is_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "manifest.csv")
        with pytest.raises(UserError, match=r"expected a readable manifest, found .*a named pipe"):
            manifest.read_manifest(tmp_path / "manifest.csv")
