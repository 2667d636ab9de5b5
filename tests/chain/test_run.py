"""`vqvae2 run`: the whole chain from scans to the report, at a tiny size, of an installed wheel."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import same_process
from PIL import Image

from vqvae2.commands import demo_brains, run
from vqvae2.commands import steps as chain
from vqvae2.common.errors import UserError
from vqvae2.settings import presets
from vqvae2.slices.splits import own_split, split_subjects

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
    # With the loops that were compiled for the checkout: numba believes them where the source is as old.
    loops, its = (place / "vqvae2" / "priors" / "compiled.py" for place in (ROOT, folder))
    (its.parent / "__pycache__").mkdir(exist_ok=True)
    for path in (loops.parent / "__pycache__").glob("compiled.*.nb?"):
        shutil.copy(path, its.parent / "__pycache__")
    shutil.copystat(loops, its)
    return folder


@pytest.fixture(scope="session")
def tiny_chain(installed, demo_people, tmp_path_factory):
    """The folder and the ended process of a chain in an empty folder, which sees the wheel and not the checkout.

    SLICES_PATH leads astray: the chain must not look at it. OASIS_PATH stands for --scans. The scans are there already.
    """
    folder = tmp_path_factory.mktemp("chain")
    shutil.copytree(demo_people, folder / "scans")
    environment = {**os.environ, "PYTHONPATH": str(installed), "OASIS_PATH": "scans", "SLICES_PATH": "nowhere"}
    for words in (("demo-scans", "--out", "scans", "--subjects", "6"), ("run", "--preset", "smoke", "--out", "out")):
        done = subprocess.run([sys.executable, "-m", "vqvae2", *words], cwd=folder, check=False, text=True,
                              capture_output=True, env=environment)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder / "out", done


def test_the_wheel_has_the_package_with_presets_and_feature_network_and_no_other_module(installed):
    modules = {path.stem for path in installed.iterdir() if path.suffix != ".dist-info" and path.name != "bin"}
    assert modules == {"vqvae2"}
    for data in ("presets", "evaluation/network"):
        own = {path.name for path in (ROOT / "vqvae2" / data).iterdir()}
        assert {path.name for path in (installed / "vqvae2" / data).iterdir()} == own
    assert {"vqvae2-tiny.toml"} < {path.name for path in (installed / "vqvae2" / "presets").iterdir()}


def test_the_chain_leaves_pictures_of_every_part_and_a_report(tiny_chain):
    out, _ = tiny_chain
    for name in ("report/strip.png", "report/reconstructions.png", "report/curves.png", "report/curves_top.png",
                 "report/curves_bottom.png", "report/code_histogram.png", "report/samples.png", "samples/grid.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 100, name
    assert len(list((out / "samples" / "images").glob("*.png"))) == presets.load("smoke", "sample")["count"]


@pytest.mark.parametrize("name", ["vqvae", "top", "bottom"])
def test_each_run_has_made_the_preset_s_epochs_with_its_global_batch(tiny_chain, name):
    folder = tiny_chain[0] / "results" / "oasis" / name
    recipe = presets.load("smoke", "vqvae" if name == "vqvae" else "prior")
    with (folder / "log.csv").open(newline="") as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file)] == list(range(1, recipe["epochs"] + 1))
    assert json.loads((folder / "config.json").read_text())["global_batch"] == recipe["batch"]


def test_the_figures_are_about_unseen_people_and_have_the_keys_of_the_schema(tiny_chain):
    report = json.loads((tiny_chain[0] / "report" / "metrics.json").read_text())
    assert (report["schema"], report["split"], report["seen_in_training"]) == (1, "test", {"images": 0, "subjects": 0})
    assert set(report["codes"]) == {"top", "bottom"}
    assert set(report["priors"]) == {"top", "bottom", "bits_per_pixel", "bits_per_pixel_is"}
    assert report["samples"]["count"] == presets.load("smoke", "evaluate")["samples"]
    assert report["samples"]["features"]  # of the network that came with the wheel


def test_synthetic_scans_are_called_synthetic(tiny_chain):
    out, _ = tiny_chain
    assert json.loads((out / "slices" / "extraction.json").read_text())["synthetic"] is True
    assert "the slices are synthetic" in " ".join(json.loads((out / "report/metrics.json").read_text())["warnings"])
    assert json.loads((out / "results/oasis/vqvae/config.json").read_text())["data"]["synthetic"] is True


def test_each_command_is_printed_and_the_last_lines_say_where_to_look_and_what_comes_next(tiny_chain):
    out, done = tiny_chain
    commands = [line for line in done.stdout.splitlines() if line.startswith("$ ")]
    assert [re.search(r"\bvqvae2 (\S+) ", line)[1] for line in commands] == [
        "extract", "train-vqvae", "train-prior", "train-prior", "train-decoder", "sample", "evaluate"]
    end = done.stdout.splitlines()[-3:]
    assert end == [f"new images: {Path('out/samples/grid.png')}", f"look at: {Path('out/report/index.html')}",
                   "next:    vqvae2 run --preset brain-128 --scans SCANS --out my-brains"]
    assert "epoch 2/2" in (out / "run.log").read_text()


def test_the_same_command_passes_over_what_is_done(tiny_chain, monkeypatch, capfd):
    out, first = tiny_chain
    before = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    monkeypatch.chdir(out.parent)
    with same_process.chains():
        run.main(["--preset", "smoke", "--scans", "scans", "--out", "out", "--processes", "1"])
    assert capfd.readouterr().out.splitlines()[-3:] == first.stdout.splitlines()[-3:]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")} == before


def test_a_step_that_the_user_can_mend_ends_the_chain_with_its_line_and_status_2(tmp_path, capfd):
    steps = [chain.Step("slices", "extract", "--scans no-such-folder --out nowhere")]
    with pytest.raises(SystemExit) as end:
        chain.run_steps(steps, tmp_path / "run.log")
    assert end.value.code == 2
    err = capfd.readouterr().err
    assert err.startswith("--scans no-such-folder: expected a folder")
    assert err.count("\n") == 1
    assert "--scans no-such-folder" in (tmp_path / "run.log").read_text()


def test_a_preset_without_scans_or_a_prior_is_refused():
    with pytest.raises(UserError, match=r"--preset own-images: expected a preset for scans .* Take brain-128"):
        run.main(["--preset", "own-images", "--scans", ".", "--out", "nowhere"])
    with pytest.raises(UserError, match=r"--extract-flags: expected words .* found \"open"):
        run.main(["--preset", "smoke", "--scans", ".", "--out", "nowhere", "--extract-flags", '"open'])
    assert not Path("nowhere").exists()


def slices_of(folder, people, seed=0):
    splits, _ = split_subjects(people, (64, 16, 20), seed)
    folder.mkdir()
    (folder / "manifest.csv").write_text("subject,split\n" + "".join(f"{name},{own}\n" for name, own in splits.items()))
    (folder / "extraction.json").write_text(json.dumps({"settings": {"split": [64, 16, 20]}, "counts": {"subjects": {
        split: list(splits.values()).count(split) for split in ("train", "validate", "test")}}}))
    return folder


class TestPeople:
    """The names of 16 people of whom the default seed puts one into the test split."""

    @pytest.fixture
    def people(self):
        names = list(map(str, range(1, 200)))
        tested = [name for name in names if own_split(name, (64, 16, 20), 0) == "test"]
        return [tested[0], *[name for name in names if name not in tested][:15]]

    def settings(self, **more):
        return run.ChainSettings(preset="smoke", out=Path("out"), **more)

    def test_too_few_to_test_are_a_stop_before_hours_of_training_with_a_seed_that_has_enough(self, people, tmp_path):
        words = (r"16 people: expected at least 2 of them in the test split.* found 1\. Give the same command with "
                 r"--extract-flags=\"--seed \d+\" .* or --allow-few")
        with pytest.raises(UserError, match=words) as refused:
            run.check_people(slices_of(tmp_path / "slices", people), self.settings())
        seed = int(re.search(r"--seed (\d+)", str(refused.value))[1])
        run.check_people(slices_of(tmp_path / "again", people, seed), self.settings())

    def test_whoever_wants_to_goes_on_and_sees_how_many_people_are_where(self, people, tmp_path, capsys):
        folder = slices_of(tmp_path / "slices", people)
        run.check_people(folder, self.settings(allow_few=True))
        out = capsys.readouterr().out
        assert re.search(r"people: train \d+, validate \d+, test 1; look at each scan: ", out)
        assert str(folder / "index.html") in out

    def test_three_people_are_told_that_more_are_needed(self, tmp_path):
        with pytest.raises(UserError, match=r"3 people: .* found 1\. Give more people, or --allow-few"):
            run.check_people(slices_of(tmp_path / "slices", ["a", "b", "c"]), self.settings())


@pytest.mark.parametrize(("name", "steps"), [("brain-128", 7), ("vqvae2-tiny", 6), ("demo", 7)])
def test_a_preset_s_tables_decide_the_steps(name, steps, tmp_path):
    settings = run.ChainSettings(preset=name, out=tmp_path, processes=2)
    made = run.steps_of(settings, Path("scans"))
    assert len(made) == steps
    batches = [re.search(r"--batch (\d+)", step.arguments)[1] for step in made if step.processes == 2]
    assert batches == [str(presets.load(name, *tables)["batch"] // 2) for tables in (
        ("vqvae",), ("prior", "top"), ("prior", "bottom"), ("decoder",))[:steps - 3]]
    assert all(step.minutes > 0 for step in made) == (name != "vqvae2-tiny")


def test_another_chain_in_the_same_folder_is_refused_before_anything_changes(tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "out" / "results").mkdir(parents=True)
    (tmp_path / "out" / "run.json").write_text('{"preset": "smoke", "extract_flags": ""}')
    with pytest.raises(UserError, match=r"its own settings, found --preset brain-64 \(was smoke\)\. Give those again"):
        run.main(["--preset", "brain-64", "--scans", str(tmp_path / "scans"), "--out", str(tmp_path / "out")])
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".lock") == [
        "results", "run.json"]


def test_nothing_is_written_among_the_scans(tmp_path):
    (tmp_path / "scans").mkdir()
    with pytest.raises(UserError, match="Raw scans stay as they are"):
        run.main(["--preset", "smoke", "--scans", str(tmp_path / "scans"), "--out", str(tmp_path / "scans" / "out")])
    assert list((tmp_path / "scans").iterdir()) == []


class TestOverview:
    """Three steps that take 10, 20 and 30 minutes somewhere; the machine here needs twice as long."""

    @pytest.fixture
    def clock(self):
        return [0.0]

    @pytest.fixture
    def overview(self, clock):
        return chain.Overview([10, 20, 30], lambda: clock[0])

    def test_the_speed_of_the_first_step_says_how_long_all_takes(self, overview, clock):
        overview.begin(0)
        assert overview.left(0.0) == (None, None)
        clock[0] = 9.0
        assert overview.left(0.1) == (None, None)
        clock[0] = 600.0
        assert overview.left(0.5) == (600, 2 * (5 + 20 + 30) * 60)

    def test_all_steps_take_no_less_than_the_rest_of_this_one_and_a_share_that_falls_back_changes_nothing(
            self, overview, clock):
        overview.begin(2)
        overview.left(0.0)
        clock[0] = 100.0
        assert overview.left(0.5) == (100, 100)
        clock[0] = 120.0
        assert overview.left(0.3) == (120, 120)

    def test_what_an_earlier_start_has_done_took_no_time_now(self, overview, clock):
        overview.begin(0)
        overview.end()
        overview.begin(1)
        overview.left(0.5)
        clock[0] = 240.0
        assert overview.left(0.6) == (pytest.approx(960), pytest.approx(960 + 2 * 30 * 60))

    def test_without_minutes_only_the_rest_of_the_step_is_known(self, clock):
        overview = chain.Overview([0, 0], lambda: clock[0])
        overview.begin(0)
        overview.left(0.0)
        clock[0] = 100.0
        assert overview.left(0.25) == (300, None)
        assert overview.left(None) == (None, None)


def test_a_failing_step_ends_the_demo_with_its_status_and_says_which(capfd):
    steps = [chain.Step("slices", "extract", "--scans no-such-folder --out nowhere"),
             chain.Step("never", "sample", "--help")]
    with pytest.raises(SystemExit) as end:
        chain.run_steps(steps)
    assert end.value.code == 2
    printed = capfd.readouterr()
    assert "--scans no-such-folder: expected a folder" in printed.err
    assert "Step 1 of 2: slices: vqvae2 extract ended with status 2" in printed.err
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


def test_demo_slices_are_made_once(tmp_path, capfd, monkeypatch):
    pytest.importorskip("nilearn", reason="the synthetic scans are made with nilearn")
    monkeypatch.setattr(demo_brains, "load_atlas", partial(demo_brains.load_atlas, 3))
    monkeypatch.setattr(demo_brains, "make_scan", partial(demo_brains.make_scan, coarseness=4))
    with same_process.chains():
        folder = chain.demo_slices(tmp_path / "a b", 32, subjects=3, per_scan=2)
        assert sum(1 for _ in folder.rglob("*.png")) == 6
        assert "there already" not in capfd.readouterr().out
        assert chain.demo_slices(tmp_path / "a b", 32, subjects=3, per_scan=2) == folder
    assert "synthetic scans: there already" in capfd.readouterr().out
