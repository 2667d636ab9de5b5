"""Training of a feature network: what a picture becomes, on one rank or two; stopped and gone on; what it leaves."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from ranks import run_on_ranks
from resuming import check_bitwise

from vqvae2.commands import train_features
from vqvae2.evaluation import features
from vqvae2.evaluation.feature_training import FeatureTrainer
from vqvae2.evaluation.features import HARMS, PROVED_ON, FeatureSettings, load_extractor
from vqvae2.runs import weights
from vqvae2.settings.parsing import parse
from vqvae2.training.trainer import Share

CPU = torch.device("cpu")
SMALL = [*TINY, "--pictures-every", "10", "--epochs", "2", "--channels", "4", "--dims", "4"]


def arguments(data: Path, *more: str) -> list[str]:
    return ["--data", str(data), "--savename", "net", *SMALL, *more]


def ready(data: Path, *more: str) -> FeatureTrainer:
    trainer = FeatureTrainer(parse(FeatureSettings, "", arguments(data, *more)))
    trainer.device = CPU
    trainer.start()
    return trainer


def share_of(items: list[int], epoch: int = 0) -> Share:
    return Share(torch.tensor(items, dtype=torch.long), torch.arange(len(items)), len(items), epoch, 0)


@pytest.fixture(scope="module")
def run(tiny_slices, tmp_path_factory) -> Path:
    results = tmp_path_factory.mktemp("features") / "results"
    train_features.main(arguments(tiny_slices, "--results", str(results)))
    return results / "oasis" / "net"


def test_a_run_is_an_extractor_whose_training_features_are_white(run, tiny_slices):
    extractor = load_extractor(str(run), CPU)
    trainer = ready(tiny_slices)
    made = extractor(trainer.images.splits["train"].bytes())
    assert made.shape == (18, 4)
    assert made.mean(0) == pytest.approx(np.zeros(4), abs=0.05)  # kept in float32
    tensors, config = weights.load_weights(run / "model.safetensors")
    values = np.linalg.eigvalsh(tensors["covariance"].double().numpy())
    expected = values / (values + features.LEAST_VARIANCE * values.mean())
    assert np.linalg.eigvalsh(np.cov(made, rowvar=False, ddof=0)) == pytest.approx(np.sort(expected), abs=1e-2)
    assert config["kind"] == "features"
    assert (len(config["training_images"]), len(config["training_subjects"])) == (18, 6)


def test_it_leaves_curves_and_a_table_of_what_it_notices(run):
    assert (run / "losses.png").is_file()
    with (run / "harms.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["harm", "strength", "mmd", "frechet", "power", "edges"]
    assert {row["harm"] for row in rows} == {"none", *PROVED_ON}
    assert {(row["mmd"], row["frechet"]) for row in rows} == {("", "")}  # of two subjects neither half has a pair


def test_what_becomes_of_a_picture_depends_on_seed_epoch_and_number_only(tiny_slices):
    trainer = ready(tiny_slices)
    pictures, harms = trainer._harmed(share_of([3, 5, 9]), True)
    alone, its_harms = trainer._harmed(share_of([5]), True)
    assert alone[0].equal(pictures[1])
    assert its_harms[0].equal(harms[1])
    assert not trainer._harmed(share_of([5], epoch=1), True)[1].equal(its_harms)
    assert not ready(tiny_slices, "--seed", "1")._harmed(share_of([5]), True)[1].equal(its_harms)


def test_validation_harms_alike_in_every_epoch(tiny_slices):
    trainer = ready(tiny_slices)
    first, second = (trainer._harmed(share_of([0, 1, 2], epoch), False) for epoch in (0, 1))
    assert first[0].equal(second[0])
    assert first[1].equal(second[1])


def test_harms_come_as_often_and_as_much_as_said(tiny_slices):
    """A quarter of the pictures has each; strengths are even in 0…1, of intensity in -1…1: mean squares 1/12."""
    trainer = ready(tiny_slices)
    harms = torch.cat([trainer._harmed(share_of(list(range(18)), epoch), True)[1] for epoch in range(40)])
    assert (harms != 0).float().mean(0).numpy() == pytest.approx(np.full(6, 0.25), abs=0.07)
    assert harms.square().mean().item() == pytest.approx(1 / 12, rel=0.15)
    intensity = HARMS.index("intensity")
    assert (harms.min(0).values < 0).nonzero().flatten().tolist() == [intensity]


def test_the_loss_is_the_error_of_the_harms_and_of_the_small_picture(tiny_slices):
    """A network that always says 0 errs by the harms' and the pixels' own squares."""
    trainer = ready(tiny_slices, "--redraw", "2")
    model = trainer.build()
    for parameter in model.parameters():
        parameter.data.zero_()
    share = share_of([0, 4])
    figures = trainer.losses(model.train(), share)
    pictures, harms = trainer._harmed(share, True)
    small = pictures[:, 0].view(2, 32, 4, 32, 4).mean((2, 4)).flatten(1)
    torch.testing.assert_close(figures["loss"], harms.square().mean(1) + 2 * small.square().mean(1))


def test_a_stopped_training_goes_on_as_if_it_had_not_been(tiny_slices, apart):
    check_bitwise(FeatureTrainer, FeatureSettings, arguments(tiny_slices), Path("runs"), 4)


def train_on_rank(data: str, results: str) -> dict:
    train_features.main(arguments(Path(data), "--results", results, "--batch", "4"))
    return weights.load_weights(Path(results) / "oasis/net/model.safetensors")[0]


def test_two_processes_learn_what_one_does(tiny_slices, run, tmp_path):
    ours = run_on_ranks(2, train_on_rank, str(tiny_slices), str(tmp_path / "results"))[0]
    alone = weights.load_weights(run / "model.safetensors")[0]
    for name, tensor in alone.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
