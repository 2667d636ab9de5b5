import csv
import json

import numpy as np
import pytest
from scan_files import ellipsoid, save, volume_of
from scipy import ndimage

from vqvae2.commands import extract as extract_slices
from vqvae2.scans.brain import find_brain
from vqvae2.scans.same_heads import as_text, coarse_head, from_text, likely_same
from vqvae2.slices import extraction

SHAPE, MM = (48, 56, 48), 4.0


def brain(person: int) -> np.ndarray:
    """A stripped brain of 4 mm voxels: an ovoid, dark in places that only this person has."""
    inside = ellipsoid(SHAPE, (17, 21, 16))
    own = ndimage.gaussian_filter(np.random.default_rng(person).normal(size=SHAPE), 2.0)
    all_people = ndimage.gaussian_filter(np.random.default_rng(999).normal(size=SHAPE), 4.0)
    values = 500 + 120 * own / own.std() + 120 * all_people / all_people.std()
    return np.where(inside, np.clip(values, 20, 1000), 0)


def copied(voxels: np.ndarray, seed: int = 0) -> np.ndarray:
    """The same brain turned by 5 degrees, on another scale and curve, with noise and a part cut off."""
    random = np.random.default_rng(seed)
    turned = ndimage.shift(ndimage.rotate(voxels, 5, (0, 1), reshape=False, order=1), (1.5, -2, 1), order=1)
    turned = np.where(turned > 10, 3 * (turned / 1000) ** 0.9 + random.normal(0, 0.08, SHAPE), 0)
    turned[:, :, :9] = 0
    return np.maximum(turned, 0)


def head(voxels: np.ndarray) -> np.ndarray:
    volume = volume_of(voxels.astype(np.float32), (MM,) * 3)
    return coarse_head(volume, find_brain(volume))


def test_the_same_head_under_two_names_is_found_and_no_other():
    heads = [head(brain(person)) for person in range(8)] + [head(copied(brain(3))), head(copied(brain(6), 1))]
    pairs = likely_same(heads, [f"p{number}" for number in range(10)])
    assert {(first, second) for first, second, _ in pairs} == {(3, 8), (6, 9)}
    assert [alike for _, _, alike in pairs] == sorted((alike for _, _, alike in pairs), reverse=True)


def test_two_visits_of_one_subject_are_no_pair_and_two_heads_alone_are_compared():
    heads = [head(brain(1)), head(copied(brain(1)))]
    assert likely_same(heads, ["a", "a"]) == []
    assert [pair[:2] for pair in likely_same(heads, ["a", "b"])] == [(0, 1)]
    assert likely_same([head(brain(1)), head(brain(2))], ["a", "b"]) == []


def test_what_is_too_small_for_a_head_is_not_compared():
    small = head(np.where(ellipsoid(SHAPE, (3, 3, 3)), brain(1), 0))
    assert likely_same([small, small], ["a", "b"]) == []


def test_a_brain_that_the_sample_misses_is_an_empty_head():
    thin = volume_of(np.zeros((60, 60, 50), np.float32), (0.3,) * 3)
    thin.voxels[28:32, 28:32, 24:28] = 1 + np.arange(4)
    assert not coarse_head(thin, find_brain(thin)).any() or coarse_head(thin, find_brain(thin)).max() > 0
    thin.voxels[:] = 0
    thin.voxels[28:30, 28:30, 24:26] = 1
    assert coarse_head(thin, find_brain(thin)).shape == (24, 24, 24)


def test_a_coarse_head_says_nothing_of_scale_and_curve():
    one, other = head(brain(1)), head(7 * brain(1) ** 1.5)
    assert np.abs(one.astype(int) - other).max() <= 3
    bright = volume_of(brain(1).astype(np.float32), (MM,) * 3)
    place = find_brain(bright)
    bright.voxels[24, 28, 24] = 1e6
    assert (np.abs(one.astype(int) - coarse_head(bright, place)) > 3).sum() <= 1  # its own cell
    assert one.max() > 128
    assert not one[0].any()


def test_a_coarse_head_comes_back_from_its_text():
    np.testing.assert_array_equal(from_text(as_text(head(brain(1)))), head(brain(1)))


@pytest.mark.parametrize("text", ["", "no base64!", "eJw=", as_text(np.zeros(5, np.uint8))])
def test_another_text_is_no_coarse_head(text):
    assert from_text(text) is None


def test_an_extraction_says_who_is_likely_the_same_and_asks_only_once(tmp_path, capsys, monkeypatch):
    for person in range(5):
        save(tmp_path / f"scans/sub-0{person}_T1w.nii.gz", brain(person).astype(np.float32), (MM,) * 3)
    save(tmp_path / "scans/sub-77_T1w.nii.gz", copied(brain(2)).astype(np.float32), (MM,) * 3)

    def extract(*more):
        extract_slices.main(["--scans", str(tmp_path / "scans"), "--out", str(tmp_path / "out"), "--size", "32",
                             "--workers", "1", "--split", "50", "0", "50", *more])
        return capsys.readouterr().out

    said = extract()
    splits = {row["subject"]: row["split"] for row in csv.DictReader(
        (tmp_path / "out/manifest.csv").read_text().splitlines())}
    assert (f"likely the same person: 1 pair of scans of two subjects, {int(splits['02'] != splits['77'])} of them in "
            f"two splits, such as sub-02_T1w.nii.gz ({splits['02']}) and sub-77_T1w.nii.gz ({splits['77']});") in said
    [pair] = json.loads((tmp_path / "out/extraction.json").read_text())["likely_same"]
    assert (pair["subjects"], pair["splits"]) == (["02", "77"], [splits["02"], splits["77"]])
    assert pair["correlation"] > 0.87
    page = (tmp_path / "out/index.html").read_text()
    assert "likely the same person: subject 77" in page
    assert "likely the same person: subject 02" in page

    before = (tmp_path / "out/extraction.json").read_bytes()
    monkeypatch.setattr(extraction, "likely_same", None)
    assert "likely the same person: 1 pair" in extract()
    assert (tmp_path / "out/extraction.json").read_bytes() == before
