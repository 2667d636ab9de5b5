"""The modules of docs/extending.md are short, and run as they stand, with the rows that the page gives."""

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_VQVAE

from vqvae2.commands import evaluate, extract, train_vqvae
from vqvae2.models import quantizer, settings
from vqvae2.models.autoencoder import load_vqvae

PAGE = (Path(__file__).parents[2] / "docs/extending.md").read_text(encoding="utf-8")
SECTIONS = {text.partition("\n")[0]: re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
            for text in PAGE.split("\n## ")[1:]}
LONGEST = 40


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a section's module as a user would, import it, and evaluate its row; return both."""
    def made(section):
        source, row = SECTIONS[section]
        name = "extension_" + re.sub(r"\W", "_", section).lower()
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        found = importlib.import_module(name)
        opening, closing = "{}" if row.startswith('"') else "()"
        return found, eval(f"{opening}{row}{closing}", vars(found))
    return made


@pytest.mark.parametrize("section", [section for section, blocks in SECTIONS.items() if blocks])
def test_each_example_is_a_module_of_at_most_40_lines_and_a_row(section):
    source, row = SECTIONS[section]
    assert len([line for line in source.splitlines() if line.strip()]) <= LONGEST
    assert row.count("\n") == 1


def test_a_codebook_rule_trains_and_loads(module, tiny_slices, apart, monkeypatch):
    found, row = module("A codebook rule")
    monkeypatch.setitem(quantizer.QUANTIZERS, *next(iter(row.items())))
    monkeypatch.setattr(settings, "QUANTIZER_NAMES", [*settings.QUANTIZER_NAMES, *row])
    train_vqvae.main(["--data", str(tiny_slices), "--savename", "fixed", *TINY, *TINY_VQVAE, "--epochs", "2",
                      "--quantizer", "fixed"])
    model = load_vqvae("fixed", torch.device("cpu")).model
    for number, level in enumerate(("top", "bottom")):
        fresh = found.FixedQuantizer(16, 8, number)
        assert torch.equal(model.quantizers[level].codebook, fresh.codebook)


def test_a_metric_stands_in_the_report(module, tiny_run, apart, monkeypatch, capsys):
    report = pytest.importorskip("vqvae2.evaluation.report")
    if not hasattr(report, "JUDGES"):
        pytest.skip("this version has no table of judges")
    _, row = module("A metric")
    for name in ("report", "text"):
        monkeypatch.setattr(importlib.import_module(f"vqvae2.evaluation.{name}"), "JUDGES", report.JUDGES + row,
                            raising=name == "report")
    evaluate.main(["--vqvae", str(tiny_run.vqvae), "--split", "validate", "--out", "report"])
    figures = json.loads(Path("report/metrics.json").read_text(encoding="utf-8"))
    assert 0 < figures["sharpness"]["mean"] < 10
    assert "sharpness of reconstructions" in capsys.readouterr().out


def test_a_format_is_found_and_read(module, tmp_path, monkeypatch):
    volumes = pytest.importorskip("vqvae2.scans.volumes")
    _, row = module("A format of scans")
    monkeypatch.setitem(volumes.READERS, *next(iter(row.items())))
    i, j, k = np.mgrid[:40, :48, :44] - np.array([20, 24, 22])[:, None, None, None]
    brain = (np.sqrt(i**2 / 200 + j**2 / 320 + k**2 / 260) < 1) * (100 + i + 2 * j)
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    for subject in range(3):
        path = tmp_path / f"scans/sub-{subject:02d}/anat/sub-{subject:02d}_T1w.npz"
        path.parent.mkdir(parents=True)
        np.savez(path, voxels=(brain + subject).astype(np.float32), affine=affine)
    extract.main(["--scans", str(tmp_path / "scans"), "--out", str(tmp_path / "slices"), "--size", "32",
                  "--workers", "1"])
    manifest = (tmp_path / "slices/manifest.csv").read_text(encoding="utf-8")
    assert manifest.count("_T1w.npz") == 3
