"""Benchmarks that reach into the trainer still run; their figures are not looked at here."""

import csv
import hashlib
import importlib
import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from conftest import COLUMNS, picture_of
from PIL import Image

ROOT = Path(__file__).parents[1]


def test_the_checks_of_a_gpu_that_make_training_steps_one_by_one_run_on_the_cpu(tmp_path):
    checks = ["no-wait", "profile"]
    ended = subprocess.run([sys.executable, ROOT / "benchmarks" / "gpu.py", "--out", tmp_path, "--quick", "--only",
                            *checks], capture_output=True, text=True, timeout=300)
    found = json.loads((tmp_path / "results.json").read_text())["checks"]
    assert [(check["name"], check["status"]) for check in found] == [(name, 0) for name in checks], (
        tmp_path / "log.txt").read_text()
    assert ended.returncode == 0, ended.stdout


def test_formats_without_loss_are_compared_on_the_same_slices(tiny_slices):
    ended = subprocess.run([sys.executable, ROOT / "benchmarks" / "lossless.py", "--data", tiny_slices, "--most", "4"],
                           capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    rows = [line.split(" | ") for line in ended.stdout.splitlines() if line.startswith("| ")][1:]
    assert [row[0] for row in rows[::2]] == ["| ours, 64 together", "| JPEG XL, effort 9", "| JPEG-LS", "| JPEG 2000"]
    assert rows[1][2] == "1.000"
    assert float(rows[0][1]) == pytest.approx(float(rows[1][1]) * float(rows[0][2]), abs=0.01)


class CertainPrior:
    """A masked prior that is certain of each code, its position's number, and notes what is hidden in each pass."""

    shape, codebook_size = (2, 3), 6

    def __init__(self):
        self.hidden = []

    def told(self, top_codes, known):
        return None

    def __call__(self, codes, told):
        self.hidden.append((codes < 0).flatten(1).sum(1).tolist())
        return 1e4 * torch.eye(6).view(1, 2, 3, 6).expand(len(codes), -1, -1, -1)


@pytest.mark.parametrize(("passes", "hidden"), [(1, [6]), (3, [6, 5, 3]), (9, [6, 5, 4, 3, 2, 1])])
@pytest.mark.parametrize("keep", ["confidence", "random", "spread"])
def test_a_masked_prior_keeps_codes_by_a_cosine_and_at_most_one_pass_a_code(keep, passes, hidden, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    masked, prior = importlib.import_module("masked"), CertainPrior()
    settings = masked.DrawSettings(Path(), out=Path(), passes=passes, keep=keep)
    maps = masked.draw_map(prior, [4, 7], "top", settings, None, None)
    assert maps.tolist() == [[[0, 1, 2], [3, 4, 5]]] * 2
    assert prior.hidden == [[count, count] for count in hidden]


class TestVolumes:
    """Five people with 8 planes at 1.5 mm, pixels of 3 mm; two of them in each of the splits that are compared."""

    PLANES, SIDE, MM, PIXEL_MM = 8, 32, 1.5, 3.0

    @pytest.fixture
    def slabs(self):
        return {subject: np.stack([picture_of(subject, plane, self.SIDE) for plane in range(self.PLANES)])
                for subject in range(5)}

    @pytest.fixture
    def slices(self, slabs, tmp_path):
        folder, rows = tmp_path / "slices", []
        for subject, slab in slabs.items():
            split = "test" if subject < 2 else "validate" if subject < 4 else "train"
            for plane, picture in enumerate(slab):
                name = f"{split}/{subject:02d}_axial{plane:03d}.png"
                (folder / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(folder / name)
                digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
                rows.append([name, split, f"{subject:02d}", "", f"{subject}.nii.gz", "axial", plane, self.MM * plane,
                             0.0, 1.0, digest])
        with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *rows])
        (folder / "extraction.json").write_text(json.dumps({"settings": {
            "planes": ["axial"], "extent": [0, 1], "size": self.SIDE, "field_of_view": self.SIDE * self.PIXEL_MM,
            "bits": 8}}))
        return folder

    def volumes(self, folder, slabs, **changes):
        """A slab as NIfTI, in a file that runs from the subject's right to the left."""
        folder.mkdir()
        form = {"pixel_mm": self.PIXEL_MM, "first_mm": 0.0} | changes
        for number, slab in enumerate(slabs):
            affine = np.diag([-form["pixel_mm"], form["pixel_mm"], self.MM, 1])
            affine[:3, 3] = 48, -48, form["first_mm"]
            voxels = slab[:, ::-1].transpose(2, 1, 0)  # posterior first; the picture's left is the subject's right
            nibabel.save(nibabel.Nifti1Image(voxels.copy(), affine), folder / f"{number}.nii.gz")
        return folder

    def run(self, slices, out, *more):
        return subprocess.run([sys.executable, ROOT / "benchmarks" / "volumes.py", "--slices", slices, "--out", out,
                               "--other", "validate", *more], capture_output=True, text=True, timeout=300)

    def test_volumes_are_laid_upon_the_slices_and_compared_with_them(self, slabs, slices, tiny_run, tmp_path):
        """The test people's own volumes have their figures, and a figure of 1; shuffled planes are far off."""
        own = self.volumes(tmp_path / "own", [slabs[0], slabs[1]])
        shuffled = self.volumes(tmp_path / "shuffled", [np.where(np.arange(8)[:, None, None] % 2, *pair)
                                                        for pair in ((slabs[0], slabs[3]), (slabs[2], slabs[1]))])
        ended = self.run(slices, tmp_path / "out", "--vqvae", tiny_run.vqvae, "--drawn", f"own:{own}",
                         f"shuffled:{shuffled}")
        assert ended.returncode == 0, ended.stderr
        found = json.loads((tmp_path / "out" / "volumes.json").read_text())
        assert found["volumes"] == {"real": 2, "other people": 2, "reconstructions": 2, "independent": 2, "own": 2,
                                    "shuffled": 2}
        assert found["planes_mm"] == [self.MM * plane for plane in range(8)]
        for figure, row in found["figures"].items():
            if not figure.startswith("kernel"):
                assert row["own"] == row["real"], figure
        assert found["figures"]["difference of planes 1 apart"]["shuffled"]["within_aim"] is False
        assert ("| real (2) | other people (2) | reconstructions (2) | independent (2) | own (2) | shuffled (2) |" in
                (tmp_path / "out" / "volumes.md").read_text())
        with Image.open(tmp_path / "out" / "volumes.png") as picture:
            assert picture.height > 5 * 2 * self.SIDE  # five rows, at 1.5 mm a pixel

    @pytest.mark.parametrize(("changes", "expected"), [
        ({"pixel_mm": 2.0}, "expected pixels of 3 mm as --slices has them, found 2 mm. Extract slices of that size."),
        ({"first_mm": 40.0}, "--slices: expected 2 scans or more with a plane near each of 40 to 50.5 mm, found 0. ")])
    def test_volumes_of_another_grid_are_refused(self, changes, expected, slabs, slices, tmp_path):
        drawn = self.volumes(tmp_path / "drawn", [slabs[0], slabs[1]], **changes)
        ended = self.run(slices, tmp_path / "out", "--drawn", f"drawn:{drawn}")
        assert ended.returncode == 2
        assert expected in ended.stderr
        assert not (tmp_path / "out").exists()


def test_growth_is_a_table_with_a_row_for_each_thing_that_grows():
    rows = ["load", "nearest", "draw bottom", "planes"]
    ended = subprocess.run([sys.executable, ROOT / "benchmarks" / "growth.py", "--quick", "--only", *rows],
                           capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    table = [line.strip("| ").split(" | ") for line in ended.stdout.splitlines() if line.startswith("| ")][2:]
    assert [(row[0], row[1]) for row in table] == [("load", "40, 80"), ("nearest", "40, 80"), ("draw bottom", "16, 32"),
                                                   ("planes", "1, 3")]
    for _, _, times, _, growth, straight in table:
        first, last = map(float, times.partition(" (")[0].rsplit(" ", 1)[0].split(", "))
        assert float(growth.removesuffix("x")) == pytest.approx(last / first, rel=0.02)
        assert straight.partition(":")[0] in ("yes", "better" if last < first else "no")
