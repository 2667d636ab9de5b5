"""sample.py as it is run: the same images on any number of processes, after any interruption, and the best of many."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import files_in, on_screen

from vqvae2.commands import sample
from vqvae2.images.dataset import to_bytes
from vqvae2.models.autoencoder import load_vqvae
from vqvae2.models.code_maps import CodeMaps
from vqvae2.priors.pixel_cnn import load_prior
from vqvae2.runs import weights
from vqvae2.sampling import sampler, writing

ROOT = Path(__file__).parents[2]
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc_per_node=2"]
STOPPED, SECONDS = 75, 20


@pytest.fixture(scope="module")
def models(tiny_run):
    return ["--vqvae", str(tiny_run.vqvae), "--top", str(tiny_run.top), "--bottom", str(tiny_run.bottom)]


@pytest.fixture(scope="module")
def vqvae(tiny_run):
    return load_vqvae(str(tiny_run.vqvae), torch.device("cpu"))


@pytest.fixture(scope="module")
def priors(tiny_run, vqvae):
    return {level: load_prior(str(getattr(tiny_run, level)), level, vqvae.hash, torch.device("cpu"))
            for level in ("top", "bottom")}


@pytest.fixture
def draw(models, apart):
    """Run sample.py; return its folder."""
    def run(*more, out="out"):
        sample.main([str(argument) for argument in [*models, "--out", out, *more]])
        return Path(out)
    return run


def process(models, *more, launcher=()):
    """sample.py in a process of its own, and perhaps under torchrun."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, *launcher, str(ROOT / "sample.py"), *models, *map(str, more)],
                            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            start_new_session=True)


def wait_for_images(folder, number, running):
    end = time.monotonic() + 60
    while len(list((folder / "images").glob("0*.png"))) < number:
        assert time.monotonic() < end, "nothing was drawn"
        assert running.poll() is None, running.communicate()[0]
        time.sleep(0.01)


def all_but(files, *names):
    return {name: content for name, content in files.items() if name not in names}


class TestSameImages:
    def test_two_processes_leave_the_same_bytes_as_one(self, draw, models):
        alone = draw("--count", 7, "--batch", 3, "--temperature", 1, 0.9)
        running = process(models, "--count", 7, "--batch", 3, "--temperature", 1, 0.9, "--out", "two/out",
                          launcher=LAUNCHER)
        said = running.communicate(timeout=90)[0]
        assert running.returncode == 0, said
        assert files_in(alone) == files_in(Path("two/out"))
        assert said.count("7 images: two/out/images, all at once: two/out/grid.png") == 1

    def test_the_batch_changes_nothing(self, draw):
        few, many = (draw("--count", 5, "--batch", batch, out=f"by-{batch}") for batch in (1, 16))
        assert all_but(files_in(few), "sample.json") == all_but(files_in(many), "sample.json")

    def test_codes_are_those_of_the_pictures(self, draw, vqvae):
        out = draw("--count", 3)
        maps = CodeMaps.load(out / "codes.npz", vqvae.hash)
        assert maps.names == [f"images/{number:06d}.png" for number in range(3)]
        with torch.no_grad():
            made = to_bytes(vqvae.model.decode(maps.levels))
        shown = writing.SampleFolder(out, {"vqvae_hash": vqvae.hash})
        difference = [made[i].int() - shown.picture(f"{i:06d}").int() for i in range(3)]
        assert torch.stack(difference).abs().max() <= 1  # decoded together, the last bits may differ


class TestGoingOn:
    def test_the_same_command_again_draws_nothing_and_leaves_the_same_bytes(self, draw, monkeypatch, capfd):
        out = draw("--count", 3)
        before = files_in(out)
        monkeypatch.setattr(sampler, "draw_codes", None)
        draw("--count", 3)
        assert files_in(out) == before
        assert "3 of 3 images are there already" in capfd.readouterr().out

    @pytest.mark.parametrize("more", [[], ["--reject", "2"]], ids=["", "rejecting"])
    def test_a_larger_count_adds_images_and_a_smaller_one_removes_them(self, draw, more):
        whole = files_in(draw("--count", 5, *more, out="whole"))
        out = draw("--count", 3, *more)
        dates = {path: path.stat().st_mtime_ns for path in (out / "images").iterdir()}
        draw("--count", 5, *more, "--batch", 1)
        assert {path: path.stat().st_mtime_ns for path in dates} == dates
        assert all_but(files_in(out), "sample.json") == all_but(whole, "sample.json")
        draw("--count", 2, *more)
        assert sorted(path.name for path in (out / "images").iterdir()) == ["000000.png", "000001.png"]
        assert len(np.load(out / "codes.npz")["image"]) == 2

    def test_an_image_that_was_deleted_or_whose_codes_are_gone_is_drawn_again(self, draw):
        out = draw("--count", 3)
        before = files_in(out)
        (out / "images" / "000001.png").unlink()
        draw("--count", 3)
        assert files_in(out) == before
        (out / "codes.npz").unlink()
        draw("--count", 3)
        assert files_in(out) == before

    def test_what_an_earlier_version_left_is_drawn_anew(self, draw):
        out = draw("--count", 3)
        before = files_in(out)
        record = json.loads((out / "sample.json").read_text())
        record["settings"] = {key: value for key, value in record["settings"].items() if not key.startswith("top")}
        (out / "sample.json").write_text(json.dumps(record))
        (out / "images" / "000001.png").write_bytes(b"")
        draw("--count", 3)
        assert files_in(out) == before

    @pytest.mark.parametrize(("more", "found"), [
        (["--seed", "1"], r"--seed 1 \(was 0\)"), (["--top-k", "3"], r"--top-k 3 \(was 0\)"),
        (["--temperature", "1", "0.5", "--top-p", "0.9"], r"--temperature 1\.0 0\.5 \(was 1\.0\), --top-p 0\.9 \(was"),
        (["--reject", "2", "--reject-by", "agreement"], r"--reject 2 \(was 1\), --reject-by agreement \(was likelih")])
    def test_any_other_setting_is_refused_with_both_values(self, more, found, draw, models, refusal):
        before = files_in(draw("--count", 1))
        line = refusal(sample.main, *models, "--count", 1, "--out", "out", *more)
        assert re.search(rf"^--out out: expected the settings .* images were drawn with, found {found}", line), line
        assert line.endswith("Give those again, or choose another --out.")
        assert files_in(Path("out")) == before

    def test_two_equal_values_are_the_same_as_one_for_both_levels(self, draw, capfd):
        draw("--count", 1)
        draw("--count", 1, "--temperature", 1, 1)
        assert "1 of 1 images are there already" in capfd.readouterr().out

    def test_a_prior_that_has_learned_on_since_is_refused(self, draw, tiny_run, refusal, apart):
        shutil.copytree(tiny_run.top, apart / "top")
        arguments = ["--vqvae", tiny_run.vqvae, "--top", "top", "--bottom", tiny_run.bottom, "--count", 1]
        arguments += ["--out", "out"]
        sample.main([str(argument) for argument in arguments])
        tensors, config = weights.load_weights(apart / "top" / weights.WEIGHTS)
        tensors["bias"][0] += 1
        weights.save_weights(apart / "top" / weights.WEIGHTS, tensors, config)
        assert re.search(r"found --top top \(was top, which has changed\)\. Give", refusal(sample.main, *arguments))

    def test_a_record_that_cannot_be_read_is_refused(self, draw, models, refusal):
        (draw("--count", 1) / "sample.json").write_text("{")
        line = refusal(sample.main, *models, "--out", "out")
        assert re.search(r"^out/sample\.json: expected settings that sample\.py wrote, found .*\. Delete the", line)


    @pytest.mark.parametrize("name", ["images/000000.png", "parts/thesis.tex", "codes.npz", "grid.png"])
    def test_a_folder_of_something_else_is_refused_and_all_in_it_stays(self, name, models, refusal, apart):
        path, first = apart / "mine" / name, name.split("/")[0]
        path.parent.mkdir(parents=True)
        path.write_text("precious")
        line = refusal(sample.main, *models, "--count", 1, "--out", "mine")
        assert line == (f"--out mine: expected a folder that sample.py made, or one without {first}, found {first} and "
                        "no sample.json. Choose another --out.")
        assert files_in(apart) == {f"mine/{name}": files_in(path.parent)[path.name]}

    def test_other_files_in_the_folder_are_no_obstacle_and_stay(self, draw, apart):
        (apart / "out").mkdir()
        (apart / "out" / "notes.txt").write_text("precious")
        assert (draw("--count", 1) / "notes.txt").read_text() == "precious"

    @pytest.mark.parametrize("size", [0, 60])
    def test_an_image_that_is_damaged_is_named(self, size, draw, models, refusal):
        out = draw("--count", 2)
        before, path = files_in(out), out / "images" / "000001.png"
        path.write_bytes(path.read_bytes()[:size])
        line = refusal(sample.main, *models, "--count", 2, "--out", "out")
        assert re.search(r"^out/images/000001\.png: expected an image that sample\.py wrote, found .*\. Delete it and "
                         r"run the same command", line), line
        path.unlink()
        draw("--count", 2)
        assert files_in(out) == before

    def test_codes_that_are_damaged_in_any_way_are_drawn_again(self, draw):
        """Bytes 8 and 9 of an entry say how it is packed; with bit 0 of byte 6 it is encrypted."""
        out = draw("--count", 1)
        before, codes = files_in(out), (out / "codes.npz").read_bytes()
        entry = codes.index(b"PK\x01\x02") + 2
        for place, value in ((6, 1), (8, 99)):
            spoiled = bytearray(codes)
            spoiled[entry + place] = value
            (out / "codes.npz").write_bytes(spoiled)
            draw("--count", 1)
            assert files_in(out) == before


def test_guidance_without_anything_known_is_refused(models, refusal, apart):
    line = refusal(sample.main, *models, "--out", "out", "--guidance", 1, 3)
    assert line == ("--guidance: expected --condition beside it, found --guidance 1.0 3.0 alone. Give --condition "
                    "NAME=VALUE too.")
    assert not list(apart.iterdir())


class TestInterruptions:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    def test_finished_images_are_kept_and_the_same_command_goes_on(self, number, draw, models):
        """Some of 400 images are there when it ends; the next run is asked for one more than those."""
        out = Path("out")
        running = process(models, "--count", 400, "--batch", 1, "--out", out)
        wait_for_images(out, 3, running)
        began = time.monotonic()
        running.send_signal(number)
        said = running.communicate(timeout=60)[0]
        assert time.monotonic() - began < SECONDS
        if number != signal.SIGKILL:
            assert running.returncode == STOPPED, said
            assert on_screen(said)[-1] == ("Stopped by a signal, all finished images saved: out. The same command goes "
                                           "on from here.")
        there = {name: content for name, content in files_in(out / "images").items() if not name.startswith(".")}
        draw("--count", len(there) + 1)
        assert there.items() <= files_in(out / "images").items()
        whole = draw("--count", len(there) + 1, out="whole")
        assert all_but(files_in(out), "sample.json") == all_but(files_in(whole), "sample.json")

    def test_all_processes_stop_together_and_rank_0_speaks(self, models, apart):
        out = Path("out")
        running = process(models, "--count", 800, "--batch", 1, "--out", out, launcher=LAUNCHER)
        try:
            wait_for_images(out, 4, running)
            began = time.monotonic()
            running.send_signal(signal.SIGTERM)
            said = running.communicate(timeout=60)[0]
            assert time.monotonic() - began < SECONDS
            assert said.count("Stopped by a signal") == 1, said
        finally:
            with suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
        names = {path.stem for path in (out / "images").glob("0*.png")}
        assert 4 <= len(names) < 800
        assert len(names - {path.stem for path in (out / "parts").glob("0*.npz")}) <= 2  # one for each process


def test_what_one_process_cannot_write_is_told_in_one_line_and_the_others_images_are_kept(draw, models):
    """Image 0 is there; the other process is to draw 2, whose place is taken."""
    out = draw("--count", 1)
    (out / "images" / "000002.png" / "full").mkdir(parents=True)
    running = process(models, "--count", 4, "--out", out, launcher=LAUNCHER)
    said = running.communicate(timeout=90)[0]
    assert running.returncode != 0
    assert said.count("out/images/000002.png: expected to write this file, found Is a directory. Free some") == 1, said
    assert said.count("Traceback") == 1, said  # torchrun's own
    assert sorted(path.stem for path in (out / "parts").iterdir()) == ["000001", "000003"]


@torch.no_grad()
def scores_of(by, vqvae, priors, maps):
    """The score of each candidate is the bits of all its codes, or how many codes come back, by the shortest way."""
    if by == "likelihood":
        shares = {level: priors[level](codes, maps["top"]).log_softmax(1) for level, codes in maps.items()}
        return sum(-shares[level].gather(1, codes[:, None]).sum((1, 2, 3)) / np.log(2) for level, codes in maps.items())
    again = vqvae.model.encode(to_bytes(vqvae.model.decode(maps)) / 255)
    return sum((again[level] == codes).flatten(1).sum(1) for level, codes in maps.items())


class TestRejection:
    @pytest.mark.parametrize(("by", "unit"), [("likelihood", "bits_per_code"), ("agreement", "agreement")])
    def test_the_best_of_the_candidates_is_kept_and_how_it_compares_is_said(self, by, unit, draw, vqvae, priors, capfd):
        """All 4 candidates of 2 images drawn and judged by hand; 16 top and 64 bottom codes."""
        out = draw("--count", 2, "--reject", 4, "--reject-by", by)
        found = CodeMaps.load(out / "codes.npz", vqvae.hash)
        kept, of_all = [], []
        for image in range(2):
            top = sampler.draw_codes(priors["top"], [image] * 4, 0, "top", candidates=range(4))
            maps = {"top": top, "bottom": sampler.draw_codes(priors["bottom"], [image] * 4, 0, "bottom", top_codes=top,
                                                             candidates=range(4))}
            scores = scores_of(by, vqvae, priors, maps) / (16 + 64)
            best = scores.argmin() if by == "likelihood" else scores.argmax()
            for level, codes in maps.items():
                assert torch.equal(found.levels[level][image], codes[best]), level
            kept.append(scores[best].item())
            of_all.append(scores.mean().item())
        report = json.loads((out / "sample.json").read_text())["rejection"]
        assert (report["by"], report["candidates"], report["share_kept"], report["unit"]) == (by, 4, 0.25, unit)
        assert report["mean_kept"] == pytest.approx(np.mean(kept), rel=1e-5)
        assert report["mean_of_all"] == pytest.approx(np.mean(of_all), rel=1e-5)
        said = rf"kept 1 of 4 candidates of each image \(25\.0%\) by {by}: {unit.replace('_', ' ')} [\d.]+, of all "
        assert re.search(said + r"candidates [\d.]+", capfd.readouterr().out)

    def test_an_image_does_not_depend_on_the_others_or_on_the_batch(self, draw):
        """3 candidates in batches of 4: some batches hold parts of two images."""
        few, many = (draw("--count", count, "--reject", 3, "--batch", batch, out=f"{count}")
                     for count, batch in ((2, 1), (5, 4)))
        assert files_in(few / "images").items() <= files_in(many / "images").items()

    def test_completions_are_chosen_by_how_well_they_fit_what_stays(self, draw, vqvae, priors, tiny_slices):
        """Candidate 0 is the completion that is drawn without --reject, so that the kept ones are no less likely."""
        given = ["--inpaint", sorted((tiny_slices / "test").glob("*.png"))[0], "--mask", "upper", "--count", 3]
        plain, chosen = draw(*given, out="plain"), draw(*given, "--reject", 4, out="chosen")
        before, after = (scores_of("likelihood", vqvae, priors, CodeMaps.load(out / "codes.npz", vqvae.hash).levels)
                         for out in (plain, chosen))
        assert (after <= before).all()
        assert after.mean() < before.mean()
        assert np.load(chosen / "codes.npz")["bits_per_code"].tolist() == pytest.approx((after / 80).tolist(), rel=1e-5)
