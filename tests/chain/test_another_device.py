"""The whole chain on a device that is not the CPU: nothing is left behind on the CPU, and no step waits for the device.

There need be no GPU: helpers/another_device.py has a device of its own, and a CUDA without gradients. A tensor left
behind raises, and then no test here gets its figures. What waits, and how often, is counted.
"""

import csv
import dataclasses
from pathlib import Path

import another_device
import conftest
import pytest
import torch
from ranks import run_on_ranks

from vqvae2.commands import train_features, train_prior, train_vqvae
from vqvae2.common import distributed, machine
from vqvae2.evaluation import distances, features, surprise
from vqvae2.images import dataset
from vqvae2.metrics import similarity
from vqvae2.models import autoencoder, classifier, encoding
from vqvae2.models.quantizer import LearnedCodebook
from vqvae2.priors.conditions import numbers
from vqvae2.sampling import inpainting, sampler
from vqvae2.sampling.settings import SampleSettings
from vqvae2.training.settings import TrainVqvae
from vqvae2.training.trainer import Trainer
from vqvae2.training.vqvae import VqvaeTrainer

pytestmark = pytest.mark.skipif(bool(another_device.why_not()), reason=another_device.why_not())
STEP, PLACING = "a step", "placing the codebooks"
NETWORK = ["--channels", "8", "--embedding-dim", "8", "--residual-channels", "8", "--codebook-size", "16",
           "--restart-every", "2", "--epochs", "1"]
QUANTIZERS = {"ema": ["--augment", "--clip", "1"],
              "gradient": ["--quantizer", "gradient", "--standardise", "--gradient-weight", "0.1", "--norm", "group"],
              "fsq": ["--quantizer", "fsq", "--fsq-levels", "4", "4", "--levels", "1", "--accumulate", "2"]}
PRIOR = ["--channels", "8", "--layers", "2", "--heads", "2", "--attention-every", "2", "--epochs", "1", "--copies", "1",
         "--condition", "position_mm", "plane", "--ema", "0.9"]


@pytest.fixture(scope="module")
def seen(tiny_slices, tmp_path_factory) -> dict:
    """What happened in a process whose device is not the CPU, by the names of its parts."""
    return run_on_ranks(1, the_chain, tiny_slices, tmp_path_factory.mktemp("elsewhere"), seconds=400)[0]


def the_chain(data: Path, folder: Path) -> dict:
    device, seen = another_device.open_elsewhere(), {}
    seen["operations"] = what_is_noted(device)
    distributed.pick_device = lambda: torch.device("cpu")
    train(train_vqvae, data, folder, "on-cpu", *NETWORK, *QUANTIZERS["ema"])
    distributed.pick_device = lambda: device
    waits = another_device.Waits(device)
    waits.watch(Trainer, "_train_step", STEP)
    waits.watch(Trainer, "_look", "a look at the figures, every two seconds")
    waits.watch(LearnedCodebook, "_start", PLACING)
    with waits:
        for quantizer, options in QUANTIZERS.items():
            with waits.during("") as seen[quantizer]:
                train(train_vqvae, data, folder, quantizer, *NETWORK, *options)
        for level in ("top", "bottom"):
            with waits.during("") as seen[level]:
                train(train_prior, data, folder, level, "--level", level, "--vqvae", "ema", *PRIOR)
        with waits.during("") as seen["features"]:
            train(train_features, data, folder, "features", "--epochs", "1", "--channels", "4", "--dims", "4")
        runs = folder / "results" / "oasis"
        seen |= sampled(waits, runs, device) | evaluated(waits, data, runs, device)
    return seen | on_cuda(data, runs) | {
        "steps": waits.times[STEP], "last epochs": [last_row(runs / name) for name in ("on-cpu", "ema")]}


def train(command, data, folder, name, *options):
    command.main(["--data", str(data), "--results", str(folder / "results"), *conftest.TINY, "--savename", name,
                  *options])


def last_row(run: Path) -> dict[str, float]:
    with (run / "log.csv").open() as file:
        row = list(csv.DictReader(file))[-1]
    return {name: float(value) for name, value in row.items() if name != "seconds" and value}


def what_is_noted(device: torch.device) -> dict[str, str]:
    """What is noted of operations that wait, that go on, and that raise."""
    noted = {}
    with another_device.Waits(device) as waits:
        here, there = torch.ones(3), torch.ones(3, device=device)
        for name, operation in {
                "item": lambda: there.sum().item(), "truth": lambda: bool(there.any()), "list": there.tolist,
                "copied back": there.cpu, "copied": lambda: here.to(device), "made of numbers": lambda: torch.tensor(
                    [1.0], device=device), "nonzero": lambda: there.nonzero(), "by a mask": lambda: there[there > 0],
                "set by a mask": lambda: there.masked_select(there > 0), "equal": lambda: torch.equal(there, there),
                "not blocking, not pinned": lambda: there.clone().copy_(here, non_blocking=True),
                "sum": lambda: there + there * 2.0, "by numbers": lambda: there[there.long()],
                "made there": lambda: torch.zeros(3, device=device), "pinned": lambda: machine.to_device(here, device),
                "with a number of the CPU": lambda: there * here[0], "left behind": lambda: there + here,
                "index left behind": lambda: there[here.long()]}.items():
            waits.found.clear()
            try:
                operation()
                noted[name] = ", ".join(wait.operation for wait in waits.found)
            except RuntimeError as error:
                noted[name] = str(error).split(": ")[1]
    return noted


def sampled(waits: another_device.Waits, runs: Path, device: torch.device) -> dict:
    """Codes drawn on both devices, and the waits after the first code of each level."""
    rule, seen = sampler.SamplingRule(temperature=0.9, top_k=8, top_p=0.9, guidance=2.0), {"codes": []}

    def code_follows() -> None:
        waits.part = "a code"
    for place in (device, torch.device("cpu")):
        maps: dict[str, torch.Tensor] = {}
        for level, prior in sampler.in_float64(models_in(runs, place)[1]).items():
            stay = torch.full((2, *prior.shape), 5)  # as where a picture is filled in
            stay[:, 0], stay[:, 1, 1:] = -1, -1
            known = numbers(prior.columns, [{"position_mm": "3", "plane": "axial"}, {"position_mm": "-2"}])
            with waits.during("") as found:
                maps[level] = sampler.draw_codes(prior, [3, 4], 0, level, rule, maps.get("top"), stay, known,
                                                 on_code=code_follows)
            seen["codes"] += found
        seen[f"drawn on {place.type}"] = {level: codes.tolist() for level, codes in maps.items()}
    return seen


def evaluated(waits: another_device.Waits, data: Path, runs: Path, device: torch.device) -> dict:
    """Figures on both devices; how often parts of the work wait for 2 images and for 5; and the same for the probe."""
    seen: dict = {}
    images = dataset.load_images(TrainVqvae(savename="x", epochs=1, batch=8, data=data)).splits
    for place in (device, torch.device("cpu")):
        vqvae, priors = models_in(runs, place)
        extractor = features.load_extractor(None, place)
        codes, made = encoding.reconstruct(vqvae.model, images["test"], 8)
        figures = similarity.image_figures(images["test"].bytes().to(place), made.to(place))
        bits = surprise.code_bits(priors, codes.levels, images["test"].facts, 8)
        judged = distances.judge(made, images["test"], images["train"], extractor, 0)
        seen[f"figures on {place.type}"] = [
            *codes.levels["top"].flatten().tolist(), *figures["brain"]["ms_ssim"].tolist(), judged["mmd"]["value"],
            *bits["bottom"].flatten().tolist(), judged["pairwise_ms_ssim"]]
    vqvae, priors = models_in(runs, device)
    extractor = features.load_extractor(None, device)
    for count in (2, 5):
        for name, work in kinds_of_work(images["train"], count, vqvae, priors, extractor, runs).items():
            with waits.during("") as found:
                work()
            seen.setdefault("waits for 2 and 5 images", {}).setdefault(name, []).append(len(found))
        with waits.during("") as found:
            classifier.trained([images["train"].bytes()] * 2, count, torch.Generator(), device)
        seen.setdefault("waits for 2 and 5 steps", []).append(len(found))
    return seen


def kinds_of_work(images, count, vqvae, priors, extractor, runs):
    """What may wait once for a batch, and not for each image; all of it with one batch of `count` images."""
    few = dataclasses.replace(images, files=images.files[:count], pixels=images.pixels[:count])
    hidden = torch.arange(32)[:, None].expand(32, 32) < 8
    gap = {level: torch.zeros(1, *shape, dtype=torch.long) for level, shape in autoencoder.code_grids(vqvae).items()}
    for codes in gap.values():
        codes[:, 0, 0] = -1
    incomplete = inpainting.IncompleteImages(["one"], gap, hidden[None].float(), few.bytes()[:1], {})

    def candidates(score):
        settings = SampleSettings(vqvae="", top="", out=runs, batch=16, reject=2, reject_by=score)
        requests = [sampler.Request(str(number), number, 0) for number in range(count)]
        return list(sampler.ImageSampler(vqvae, priors, settings, incomplete).draw(requests))

    return {"codes": lambda: encoding.extract(vqvae.model, few, 8),
            "shuffle drop": lambda: encoding.code_figures(vqvae.model, few, encoding.extract(vqvae.model, few, 8), 8),
            "features": lambda: extractor(few.bytes()),
            "visible codes": lambda: inpainting.encode_visible(few.bytes(), hidden, vqvae),
            "likely candidates": lambda: candidates("likelihood"), "agreeing ones": lambda: candidates("agreement")}


def models_in(runs: Path, place: torch.device) -> tuple:
    return sampler.load_models(*(str(runs / name) for name in ("ema", "top", "bottom")), place)


def on_cuda(data: Path, runs: Path) -> dict:
    """Losses of a step with a restart, in fp32 on the CPU and as CUDA computes them; and a sampled code."""
    cuda, seen = another_device.open_cuda(), {}
    for place in (torch.device("cpu"), cuda):
        with another_device.Waits(cuda) as waits, torch.no_grad():
            trainer = VqvaeTrainer(TrainVqvae(savename="cuda", epochs=1, batch=8, data=data, augment=True))
            trainer.device, trainer.accumulation = place, 1
            trainer.start()
            trainer.precision = machine.choose_precision("auto" if place == cuda else "fp32", place)
            vqvae, priors = models_in(runs, place)
            trainer.model = vqvae.model.train()
            trainer.settings = dataclasses.replace(trainer.settings, codebook_size=16)
            with waits.during("") as found, trainer._autocast():
                trainer.step = 1  # embeddings are restarted at every second step
                losses = trainer.losses(trainer.model, trainer._share(torch.arange(8), 0))
                trainer.model.update_codebooks()
                codes = trainer.model.eval()(trainer.images.splits["train"].batch([0, 1], place)).codes
                known = numbers(priors["top"].columns, [{}, {}])
                logits = priors["bottom"](codes["bottom"], codes["top"], machine.to_device(known, place))
                cursor = priors["top"].cursor(2, None, machine.to_device(known, place))
                cursor.tell(0, sampler.choose(cursor.step(0, 0), cursor.step(0, 0)[:, 0].double() * 0,
                                              sampler.SamplingRule()))
            seen[place.type] = {"waits": list(found), "precision": trainer.precision,
                                "logits": str(logits.dtype), "losses": {name: values.float().mean().item() for
                                                                        name, values in losses.items()}}
    return {"cuda": seen}


# What is asked of it ----------------------------------------------------------------------------------------


def test_waits_and_tensors_left_behind_are_noted(seen):
    noted, name = seen["operations"], another_device.NAME
    there, back = f"copy from cpu to {name}", f"copy from {name} to cpu"
    assert noted == {
        "item": "aten._local_scalar_dense", "truth": "aten._local_scalar_dense", "list": back, "copied back": back,
        "copied": there, "made of numbers": there, "nonzero": "aten.nonzero", "by a mask": "aten.index by a mask",
        "set by a mask": "aten.masked_select", "equal": "aten.equal", "not blocking, not pinned": there, "sum": "",
        "by numbers": "", "made there": "", "pinned": "", "with a number of the CPU": "",
        "left behind": "a tensor of shape [3] was left on the CPU",
        "index left behind": "a tensor of shape [3] was left on the CPU"}


@pytest.mark.parametrize("training", ["ema", "gradient", "fsq", "top", "bottom", "features"])
def test_no_step_of_a_training_waits(seen, training):
    assert [wait for wait in seen[training] if wait.part == STEP] == []
    assert seen["steps"] == 3 + 3 + 2 + 3 + 3 + 3  # of the six trainings, on 18 images


@pytest.mark.parametrize(("training", "levels"), [("ema", 2), ("gradient", 2), ("fsq", 0)])
def test_a_training_waits_to_place_each_codebook_once(seen, training, levels):
    """k-means needs the vectors on the CPU, and its centres and counts go back: three copies."""
    assert sum(wait.part == PLACING for wait in seen[training]) == 3 * levels


def test_a_training_elsewhere_is_that_of_the_cpu(seen):
    here, there = seen["last epochs"]
    assert there == pytest.approx(here, rel=1e-4, abs=1e-6)


def test_no_code_that_is_drawn_waits(seen):
    assert [wait for wait in seen["codes"] if wait.part == "a code"] == []
    assert seen[f"drawn on {another_device.NAME}"] == seen["drawn on cpu"]


def test_figures_elsewhere_are_those_of_the_cpu(seen):
    assert seen[f"figures on {another_device.NAME}"] == pytest.approx(seen["figures on cpu"], rel=1e-3, abs=1e-4)


def test_a_batch_waits_as_often_whatever_it_holds(seen):
    waits = seen["waits for 2 and 5 images"]
    assert {name: five for name, (two, five) in waits.items() if two != five} == {}


def test_no_step_of_the_probe_waits(seen):
    two, five = seen["waits for 2 and 5 steps"]
    assert two == five


def test_cuda_computes_the_same_in_bf16_and_waits_for_nothing(seen):
    here, there = seen["cuda"]["cpu"], seen["cuda"]["cuda"]
    assert there["precision"] == (torch.bfloat16, "native on this GPU")
    assert there["waits"] == []
    assert there["losses"] == pytest.approx(here["losses"], rel=0.02)
