"""The critic prefers images of real slices, and what it chooses depends on nothing that it should not."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import files_in
from scipy import stats

from vqvae2.commands import sample
from vqvae2.models import encoding
from vqvae2.models.autoencoder import load_vqvae
from vqvae2.models.code_maps import CodeMaps
from vqvae2.sampling import critic

ROOT = Path(__file__).parents[2]
FEW = {"DRAWN": 12, "STEPS": 3, "CLASSIFIERS": 2}
SCRIPT = "\n".join(["from vqvae2.commands import sample", "from vqvae2.common.errors import run_script",
                    "from vqvae2.sampling import critic",
                    *(f"critic.{name} = {number}" for name, number in FEW.items()), "run_script(sample.main)"])
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc_per_node=2"]


@pytest.fixture
def few(monkeypatch):
    for name, number in FEW.items():
        monkeypatch.setattr(critic, name, number)


@pytest.fixture
def vqvae(tiny_run):
    return load_vqvae(str(tiny_run.vqvae), torch.device("cpu"))


@pytest.fixture
def command(tiny_run, apart):
    """The arguments of sample.py for a folder, with 2 candidates."""
    def of(out, *more):
        return [str(argument) for argument in [
            "--vqvae", tiny_run.vqvae, "--top", tiny_run.top, "--bottom", tiny_run.bottom, "--out", out, "--reject", 2,
            "--reject-by", "classifier", *more]]
    return of


def test_images_of_real_codes_have_lower_scores_than_images_of_codes_at_random(vqvae, monkeypatch):
    """Codes that neither the critic nor the VQ-VAE has seen: those of the validation images, and others at random."""
    monkeypatch.setattr(critic, "DRAWN", 64)
    monkeypatch.setattr(critic, "STEPS", 60)
    monkeypatch.setattr(critic, "CLASSIFIERS", 1)
    train, real = (CodeMaps.load(vqvae.folder / "codes" / f"{split}.npz", vqvae.hash)
                   for split in ("train", "validate"))
    random = torch.Generator().manual_seed(0)

    def at_random(count):
        size = vqvae.model.settings.codebook_size
        return {level: torch.randint(size, (count, *maps.shape[1:]), generator=random)
                for level, maps in real.levels.items()}

    found = critic.learned(vqvae, train, lambda numbers, _: at_random(len(numbers)), 0, 16)
    of_random, of_real = (found.scores(encoding.decoded(vqvae.model, levels, 16)).numpy()
                          for levels in (at_random(len(real.names)), real.levels))
    assert stats.mannwhitneyu(of_random, of_real).statistic > 0.9 * len(real.names)**2


def test_the_candidate_with_the_lowest_score_is_kept_and_how_it_compares_is_said(command, few, vqvae, monkeypatch,
                                                                                capfd):
    given = []
    scores = critic.Critic.scores

    def spy(self, images):
        given.append(scores(self, images))
        return given[-1]

    monkeypatch.setattr(critic.Critic, "scores", spy)
    sample.main(command("out", "--count", 3, "--batch", 2))
    assert [len(own) for own in given] == [2] * 3
    kept = np.load("out/codes.npz")["critic_score"]
    assert kept.tolist() == [own.min().item() for own in given]
    report = json.loads(Path("out/sample.json").read_text())["rejection"]
    assert (report["by"], report["unit"], report["mean_kept"]) == ("classifier", "critic_score", kept.mean())
    assert "by classifier: critic score" in capfd.readouterr().out


def test_an_image_does_not_depend_on_the_batch_the_count_or_the_number_of_processes(command, few):
    sample.main(command("one", "--count", 5, "--batch", 3))
    sample.main(command("few", "--count", 2, "--batch", 3))
    Path("few_steps.py").write_text(SCRIPT)
    two = command("two/one", "--count", 5, "--batch", 3)
    done = subprocess.run([sys.executable, *LAUNCHER, "few_steps.py", *two], check=False, capture_output=True,
                          text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert files_in(Path("one")) == files_in(Path("two/one"))
    assert files_in(Path("few/images")).items() < files_in(Path("one/images")).items()


def test_nothing_is_learned_where_all_images_are_there(command, few, monkeypatch):
    sample.main(command("out", "--count", 2))
    before = files_in(Path("out"))
    monkeypatch.setattr(critic, "learned", None)
    sample.main(command("out", "--count", 2))
    assert files_in(Path("out")) == before


def test_a_vqvae_without_the_codes_of_its_training_images_is_refused_before_anything_is_drawn(command, tiny_run,
                                                                                             tmp_path, refusal):
    shutil.copytree(tiny_run.vqvae, tmp_path / "published", ignore=shutil.ignore_patterns("codes"))
    line = refusal(sample.main, *command("out"), "--vqvae", tmp_path / "published")
    assert line.startswith("--reject-by classifier: expected the codes of the training images of --top ")
    assert not Path("out").exists()


@pytest.mark.parametrize("change", ["cut", "other images"])
def test_codes_that_are_damaged_or_of_other_images_than_the_prior_learned_are_refused_in_one_line(
        command, tiny_run, tmp_path, refusal, change):
    """Another training with other images may have left its own there since; a critic of these would be another one."""
    path = shutil.copytree(tiny_run.vqvae, tmp_path / "mine") / "codes" / "train.npz"
    if change == "cut":
        path.write_bytes(path.read_bytes()[:200])
    else:
        own = np.load(path)
        CodeMaps(own["image"].tolist(), {level: torch.from_numpy(own[level]) for level in ("top", "bottom")}).save(
            path, str(own["vqvae_hash"]), "other")
    line = refusal(sample.main, *command("out"), "--vqvae", tmp_path / "mine")
    assert line.startswith("--reject-by classifier: expected the codes of the training images of --top ")
    assert not Path("out").exists()
