"""The demo: the whole chain from scans to figures, at a tiny size, as `make demo` runs it, of an installed wheel."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tools import demo
from vqvae2.commands import steps as chain
from vqvae2.common.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def tiny_demo(installed, tmp_path_factory):
    """The finished demo's folder and what it printed, in an empty folder that sees the wheel and not the checkout.

    OASIS_PATH and SLICES_PATH lead astray: the demo must not look at them.
    """
    pytest.importorskip("nilearn", reason="the synthetic scans are made with nilearn")
    folder, program = tmp_path_factory.mktemp("demo"), tmp_path_factory.mktemp("program")
    shutil.copytree(ROOT / "tools", program / "tools")
    done = subprocess.run(
        [sys.executable, "-m", "tools.demo", "--out", "out", "--subjects", "6", "--tiny"], cwd=folder, check=False,
        text=True, capture_output=True, env={**os.environ, "PYTHONPATH": f"{installed}{os.pathsep}{program}",
                                             "OASIS_PATH": "nowhere", "SLICES_PATH": "nowhere"})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder / "out", done


def test_the_wheel_has_the_package_with_presets_and_feature_network_and_no_other_module(installed):
    modules = {path.stem for path in installed.iterdir() if path.suffix != ".dist-info" and path.name != "bin"}
    assert modules == {"vqvae2"}
    for data in ("presets", "evaluation/network"):
        own = {path.name for path in (ROOT / "vqvae2" / data).iterdir()}
        assert {path.name for path in (installed / "vqvae2" / data).iterdir()} == own
    assert {"vqvae2-tiny.toml"} < {path.name for path in (installed / "vqvae2" / "presets").iterdir()}


def test_the_demo_leaves_pictures_of_every_part_of_the_chain(tiny_demo):
    out, _ = tiny_demo
    for name in ("report/strip.png", "report/reconstructions.png", "report/curves.png", "report/curves_top.png",
                 "report/curves_bottom.png", "report/code_histogram.png", "report/samples.png", "samples/grid.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 100, name
    assert len(list((out / "samples" / "images").glob("*.png"))) == demo.TINY.count


@pytest.mark.parametrize(("name", "recipe"), [("vqvae", demo.TINY.vqvae), ("top", demo.TINY.top),
                                              ("bottom", demo.TINY.bottom)])
def test_each_run_has_made_all_its_epochs_on_two_processes(tiny_demo, name, recipe):
    folder = tiny_demo[0] / "results" / "oasis" / name
    epochs = int(recipe.split()[recipe.split().index("--epochs") + 1])
    with (folder / "log.csv").open(newline="") as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file)] == list(range(1, epochs + 1))
    config = json.loads((folder / "config.json").read_text())
    assert (config["global_batch"], config["settings"]["batch"]) == (demo.GLOBAL_BATCH, demo.GLOBAL_BATCH / 2)


def test_the_demos_figures_are_about_unseen_people_and_have_the_keys_of_the_schema(tiny_demo):
    report = json.loads((tiny_demo[0] / "report" / "metrics.json").read_text())
    assert (report["schema"], report["split"], report["seen_in_training"]) == (1, "test", {"images": 0, "subjects": 0})
    assert set(report["codes"]) == {"top", "bottom"}
    assert set(report["priors"]) == {"top", "bottom", "bits_per_pixel", "bits_per_pixel_is"}
    assert report["samples"]["count"] == demo.TINY.count
    assert report["samples"]["features"]  # of the network that came with the wheel


def test_the_demo_prints_each_command_and_ends_with_the_names_of_what_it_left(tiny_demo):
    out, done = tiny_demo
    commands = [line for line in done.stdout.splitlines() if line.startswith("$ ")]
    assert [re.search(r"-m vqvae2 (\S+) ", line)[1] for line in commands] == [
        "demo-scans", "extract", "train-vqvae", "train-prior", "train-prior", "sample", "evaluate"]
    assert sum("--nproc_per_node=2" in line for line in commands) == 3
    end = done.stdout[done.stdout.index("Done in "):]
    for line in end.splitlines()[1:-1]:
        assert (out.parent / line.split(": ")[0].strip()).is_file(), line
    assert str(Path("out") / "report" / "strip.png") in end


def test_a_failing_step_ends_the_demo_with_its_status_and_says_which(capfd):
    steps = [chain.Step("figures", "evaluate", "--vqvae no-such-run --out nowhere"),
             chain.Step("never", "sample", "--help")]
    with pytest.raises(SystemExit) as end:
        chain.run_steps(steps)
    assert end.value.code == 2
    printed = capfd.readouterr()
    assert "--vqvae no-such-run: expected a folder" in printed.err
    assert "Step 1 of 2: figures: vqvae2 evaluate ended with status 2" in printed.err
    assert "Step 2" not in printed.out


def test_a_finished_step_that_would_begin_anew_is_not_run_again_unless_its_command_changes(tmp_path, capfd):
    note = tmp_path / "out" / ".done"
    for arguments in ("", "", "--help"):
        chain.run_steps([chain.Step("version", "version", arguments, note=note)])
    out = capfd.readouterr().out
    assert (out.count("\nvqvae2 0."), out.count("there already")) == (2, 1)


def test_a_step_that_a_signal_ended_has_the_status_that_a_shell_would_give(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    assert chain.run([sys.executable, str(script)], 1) == 137


def test_a_wrong_setting_is_refused_before_anything_is_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--subjects: expected 3 to 100000, found 2\. Each split needs one"):
        demo.main(["--subjects", "2"])
    with pytest.raises(UserError, match=r"--out .*file: expected a folder or nothing, found a file"):
        demo.main(["--out", str(tmp_path / "file")])


def test_demo_slices_are_made_once(tmp_path, capfd):
    pytest.importorskip("nilearn", reason="the synthetic scans are made with nilearn")
    folder = chain.demo_slices(tmp_path / "a b", 32, subjects=3, per_scan=2)
    assert sum(1 for _ in folder.rglob("*.png")) == 6
    assert "there already" not in capfd.readouterr().out
    assert chain.demo_slices(tmp_path / "a b", 32, subjects=3, per_scan=2) == folder
    assert "synthetic scans: there already" in capfd.readouterr().out
