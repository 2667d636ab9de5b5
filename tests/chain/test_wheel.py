"""A wheel is the whole program: unpacked apart, it runs the chain without the checkout."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODEL = "--batch 4 --threads 1 --precision fp32 --pictures-every 30 --data slices --size 32"
VQVAE = ("--epochs 25 --channels 16 --embedding-dim 8 --residual-channels 8 --codebook-size 16 --start-steps 10 "
         "--learning-rate 0.01 --savename vqvae")
PRIOR = "--vqvae vqvae --epochs 1 --channels 8 --layers 2 --heads 2"
CHAIN = ("demo-scans --out scans --subjects 6", "extract --scans scans --out slices --size 32 --per-scan 4",
         f"train-vqvae --preset vqvae2-tiny {MODEL} {VQVAE}", f"train-prior --level top {MODEL} {PRIOR} --savename top",
         f"train-prior --level bottom {MODEL} {PRIOR} --savename bottom",
         "sample --vqvae vqvae --top top --bottom bottom --count 2 --out new",
         "evaluate --vqvae vqvae --top top --bottom bottom --samples 4 --out report")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that a wheel of this checkout was installed into."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    # With the neighbours of the package, which must not get into the wheel.
    for name in ("vqvae2", "tests", "tools"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for script in ROOT.glob("*.py"):
        shutil.copyfile(script, source / script.name)
    done = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
                           "--no-index", "--disable-pip-version-check", "--target", str(folder), str(source)],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def run(installed, folder, *words):
    """Run `python -m vqvae2 …` in a folder, of the installed package alone; return what it printed."""
    environment = {name: value for name, value in os.environ.items() if name not in ("OASIS_PATH", "SLICES_PATH")}
    done = subprocess.run([sys.executable, "-m", "vqvae2", *words], cwd=folder, capture_output=True, text=True,
                          check=False, env={**environment, "PYTHONPATH": str(installed)})
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stderr[-3000:]}"
    return done.stdout


def test_it_has_the_package_with_presets_and_feature_network_and_no_other_module(installed):
    modules = {path.stem for path in installed.iterdir() if path.suffix != ".dist-info" and path.name != "bin"}
    assert modules == {"vqvae2"}
    for data in ("presets", "evaluation/network"):
        own = {path.name for path in (ROOT / "vqvae2" / data).iterdir()}
        assert {path.name for path in (installed / "vqvae2" / data).iterdir()} == own
    assert {"vqvae2-tiny.toml"} < {path.name for path in (installed / "vqvae2" / "presets").iterdir()}


def test_the_chain_runs_from_scans_to_figures_in_an_empty_folder(installed, tmp_path):
    pytest.importorskip("nilearn", reason="the synthetic scans are made with nilearn")
    for command in CHAIN:
        run(installed, tmp_path, *command.split())
    assert len(list((tmp_path / "new" / "images").glob("*.png"))) == 2
    report = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert report["seen_in_training"] == {"images": 0, "subjects": 0}
    assert report["samples"]["count"] == 4
    assert report["samples"]["features"]  # of the network that came with the package
