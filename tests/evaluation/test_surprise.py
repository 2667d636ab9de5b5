"""What each code costs is -log2 of its probability; maps and files hold just that; priors are told what is known."""

import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_prior import CODES, prior
from torch import nn

from vqvae2.commands import evaluate
from vqvae2.evaluation import figures, surprise
from vqvae2.evaluation.judge import Evaluation
from vqvae2.evaluation.settings import EvaluateSettings
from vqvae2.images.dataset import ImageSet
from vqvae2.images.listing import ImageFile
from vqvae2.priors import conditions
from vqvae2.priors.base import Prior
from vqvae2.sampling import sampler

CPU = torch.device("cpu")
PREVIOUS = conditions.Column("previous_mm", (), 0.0, 2.0)


class Table(Prior):
    """A prior that says the same of every code, and keeps what it was told."""

    def __init__(self, probabilities, columns=()):
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(probabilities).log())
        self.columns, self.told = columns, []

    def forward(self, codes, top_codes=None, known=None, keep=None, previous=None):
        self.told.append((top_codes, known))
        return self.bias[None, :, None, None].expand(len(codes), -1, *codes.shape[1:])


def an_image_set(names, size=8):
    files = tuple(ImageFile(name, "test", f"s{number}", "") for number, name in enumerate(names))
    return ImageSet(files, np.random.default_rng(0).integers(0, 256, (len(names), 1, size, size), dtype=np.uint8))


def judged(priors, bits, split, counted, levels=("top", "bottom")):
    """What `PriorsJudge` says of codes that cost these bits, and with these figures of the counting models."""
    vqvae = SimpleNamespace(model=SimpleNamespace(levels=levels))
    data = SimpleNamespace(splits={"test": split})
    evaluation = Evaluation(EvaluateSettings(vqvae="v", out=Path("out")), vqvae, priors, data, None, None, None,
                            {})
    vars(evaluation).update(code_bits=bits, untold_code_bits=bits, counting_bits=counted)
    return figures.PriorsJudge().compute(evaluation)


def test_a_code_of_probability_one_eighth_costs_three_bits():
    codes = torch.tensor([[[0, 1], [2, 3]]])
    found = surprise.code_bits({"top": Table([1 / 2, 1 / 4, 1 / 8, 1 / 8])}, {"top": codes}, [{}], batch=2)["top"]
    torch.testing.assert_close(found, torch.tensor([[[1.0, 2.0], [3.0, 3.0]]]))


@pytest.mark.parametrize("batch", [1, 4])
def test_a_prior_of_slices_is_told_the_codes_of_the_nearest_slice_of_the_same_scan_if_that_is_asked_for(batch):
    model = prior("top", condition=("previous-slice",), columns=(PREVIOUS,)).float()
    codes = torch.randint(CODES, (4, *model.shape))
    facts = [{"scan": scan, "plane": "axial", "position_mm": str(place)} for scan, place in (
        ("a", 3), ("b", 0), ("a", 1), ("a", 6))]
    found = surprise.code_bits({"top": model}, {"top": codes}, facts, batch, tell_previous=True)["top"]
    before = torch.stack([codes[2], torch.full_like(codes[1], -1), codes[0], codes[0]])  # below, none, above, below
    known = torch.tensor([[-1.0], [math.nan], [1.0], [-1.5]])
    with torch.no_grad():
        nats = nn.functional.cross_entropy(model(codes, known=known, previous=before), codes, reduction="none")
    torch.testing.assert_close(found, nats / math.log(2), atol=1e-4, rtol=0)


def test_without_neighbours_nothing_is_told():
    model = prior("top", condition=("previous-slice",), columns=(PREVIOUS,)).float()
    codes, place = torch.randint(CODES, (2, *model.shape)), {"plane": "axial", "position_mm": "1"}
    plain = surprise.code_bits({"top": model}, {"top": codes}, [{}, {}], 2)["top"]
    for facts in ([{}, {}], [{"scan": "a", **place}, {"scan": "b", **place}]):
        found = surprise.code_bits({"top": model}, {"top": codes}, facts, 2, tell_previous=True)["top"]
        assert torch.equal(found, plain)


def test_bits_are_those_of_torch_whatever_the_batch(tiny_run):
    priors = sampler.load_models(str(tiny_run.vqvae), str(tiny_run.top), str(tiny_run.bottom), CPU)[1]
    draw = torch.Generator().manual_seed(0)
    levels = {level: torch.randint(16, (5, side, side), generator=draw) for level, side in (("top", 4), ("bottom", 8))}
    done = []
    found = surprise.code_bits(priors, levels, [{}] * 5, 2, done.append)
    with torch.no_grad():
        logits = priors["bottom"](levels["bottom"], levels["top"])
    expected = nn.functional.cross_entropy(logits, levels["bottom"], reduction="none") / math.log(2)
    torch.testing.assert_close(found["bottom"], expected, rtol=1e-4, atol=1e-5)
    assert done == [2, 2, 1, 2, 2, 1]


def test_each_prior_is_told_the_top_codes_or_not_and_what_the_manifest_says_of_its_images():
    told = (conditions.Column("age", mean=50.0, spread=10.0),)
    priors = {"top": Table([0.5, 0.5]), "bottom": Table([0.5, 0.5], told)}
    levels = {"top": torch.tensor([[[0]], [[1]], [[0]]]), "bottom": torch.zeros(3, 2, 2, dtype=torch.long)}
    surprise.code_bits(priors, levels, [{"age": "70"}, {"age": ""}, {}], batch=2)
    assert priors["top"].told == [(None, None)] * 2
    (first_top, first), (second_top, second) = priors["bottom"].told
    assert torch.cat([first_top, second_top]).flatten().tolist() == [0, 1, 0]
    torch.testing.assert_close(torch.cat([first, second]), torch.tensor([[2.0], [math.nan], [math.nan]]),
                               equal_nan=True)


def test_a_code_fills_the_pixels_of_its_cell():
    levels = {"top": torch.tensor([[[8.0]]]), "bottom": torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])}
    found = surprise.pixel_maps(levels, (4, 4))
    assert (found.dtype, found.shape) == (torch.float32, (1, 2, 4, 4))
    assert found[0, 0].unique().tolist() == [8]
    assert found[0, 1].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]


def test_the_pixels_of_a_cell_share_its_bits():
    """8 bits over 16 pixels, and 1 to 4 bits over 4 pixels each: 18 bits for 16 pixels."""
    levels = {"top": torch.tensor([[[8.0]]]), "bottom": torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])}
    found = surprise.bits_per_pixel_maps(levels, (4, 4))[0]
    assert found[0].tolist() == [0.75, 0.75, 1, 1]
    assert found.mean().item() == pytest.approx(18 / 16)


@pytest.mark.parametrize(("bits", "references", "expected"), [
    (6.0, {"a": 8.0, "b": 9.0}, 0.25), (9.0, {"a": 8.0, "b": None}, -0.125), (6.0, {"a": None}, None), (6.0, {}, None),
    (0.5, {"a": 0.0}, None)])
def test_a_prior_is_so_far_below_the_best_reference(bits, references, expected):
    assert figures.below_best(bits, references) == expected


def test_figures_of_priors_are_means_over_all_codes_and_a_sum_over_levels_only_where_all_have_a_prior():
    split, priors = an_image_set(["a.png", "b.png"]), {"top": Table([1.0]), "bottom": Table([1.0])}
    bits = {"top": torch.tensor([[[2.0]], [[4.0]]]), "bottom": torch.full((2, 2, 2), 5.0)}
    counted = {"bottom": {"context": 8.0, "histogram": 10.0, "position_histogram": 9.0}}
    found = judged(priors, bits, split, counted)
    assert (found["top"]["bits_per_code"], found["top"]["below_best_reference"]) == (3, None)
    assert found["bottom"]["below_best_reference"] == pytest.approx(3 / 8)
    assert found["bits_per_pixel"] == pytest.approx((3 + 4 * 5) / 64)
    assert found["bits_per_pixel_is"] == "upper bound on the code length of the decoded image"
    only_top = judged({"top": priors["top"]}, bits, split, counted)
    assert set(only_top) == {"top"}


def test_maps_are_files_beside_those_of_somebody_else(tmp_path):
    bits = {"top": torch.tensor([[[8.0]], [[2.0]]]),
            "bottom": torch.arange(8.0).view(2, 2, 2)}
    (tmp_path / "mine.png").write_bytes(b"not of a report")
    split = an_image_set(["test/a.png", "test/b.png"])
    surprise.write(tmp_path, split, bits)
    assert {path.name for path in tmp_path.iterdir()} == {"a.npy", "a.png", "b.npy", "b.png", "index.csv", "mine.png"}
    array = np.load(tmp_path / "b.npy")
    assert (array.dtype, array.shape) == (np.float32, (2, 8, 8))
    assert np.unique(array[0]).tolist() == [2]
    assert array[1, ::4, ::4].tolist() == [[4, 5], [6, 7]]
    with (tmp_path / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[1] == {"image": "test/b.png", "subject": "s1", "file": "b", "top_bits_per_code": "2.0",
                       "bottom_bits_per_code": "5.5", "bits_per_pixel": "0.375"}


def test_pictures_of_maps_stand_beside_their_image_in_fixed_colours(tmp_path):
    """The bottom's half scale, 8 bits, is in another report's picture the same colour, whatever else is there."""
    split, colours = an_image_set(["a.png"], size=128), []
    for others in (0.0, 40.0):
        nll = torch.tensor([[[8.0, others], [others, others]]])
        surprise.write(tmp_path, split, {"top": nll})
        with Image.open(tmp_path / "a.png") as picture:
            assert picture.size == (3 * (116 + 128), 128)
            colours.append(picture.getpixel((116 + 128 + 116 + 10, 10)))
    assert colours[0] == colours[1]


class TestEvaluate:
    def test_a_prior_that_is_told_something_is_judged_with_what_is_known(self, tiny_run, told_top):
        vqvae, priors = sampler.load_models(str(tiny_run.vqvae), str(told_top), None, CPU)
        split = an_image_set(["a.png"], size=32)
        codes = {"top": torch.zeros(1, 4, 4, dtype=torch.long)}
        blind, told = (surprise.code_bits(priors, codes, [facts], 1)["top"].sum().item()
                       for facts in ({}, {"position_mm": "2.0"}))
        assert blind != told
        found = judged(priors, {"top": torch.ones(1, 4, 4)}, split, {}, vqvae.model.levels)
        assert (found["top"]["condition"], found["top"]["condition_known"]) == (["position_mm"], 0.0)

    def test_two_flags_give_maps_lesions_and_their_figures(self, tiny_run, told_top, apart, capsys):
        evaluate.main(["--vqvae", str(tiny_run.vqvae), "--top", str(told_top), "--bottom", str(tiny_run.bottom),
                       "--data", str(tiny_run.data), "--samples", "0", "--out", "out", "--likelihood", "--lesions"])
        report = json.loads((apart / "out" / "metrics.json").read_text())
        maps = np.stack([np.load(path) for path in sorted((apart / "out" / "likelihood").glob("*.npy"))])
        assert maps.shape == (9, 2, 32, 32)
        for level, means in zip(("top", "bottom"), maps.mean((0, 2, 3))):
            assert report["priors"][level]["bits_per_code"] == pytest.approx(means, rel=1e-5)
        assert report["priors"]["top"]["condition"] == ["position_mm"]
        assert report["priors"]["top"]["condition_known"] == 1
        assert report["priors"]["top"]["untold_bits_per_code"] != report["priors"]["top"]["bits_per_code"]
        assert report["priors"]["bottom"]["untold_bits_per_code"] is None
        assert report["priors"]["bits_per_pixel_is"].endswith("given what the priors are told")
        assert report["likelihood"] == {"folder": "likelihood", "levels": ["top", "bottom"], "unit": "bits per code"}
        assert {"bright", "dark", "all"} <= set(report["lesions"])
        assert all((apart / "out" / name).is_file() for name in ("likelihood.png", "lesions.png"))
        said = capsys.readouterr().out
        assert "lesions, all: AUROC by likelihood 0." in said
        assert "the best model that counts (neighbours" in said
        assert "told position_mm" in said

    @pytest.mark.parametrize("flag", ["--likelihood", "--lesions"])
    def test_maps_need_a_prior_for_each_level(self, flag, tiny_run, apart, refusal):
        common = ["--vqvae", tiny_run.vqvae, "--data", tiny_run.data, "--out", "out", flag]
        alone, half = refusal(evaluate.main, *common), refusal(evaluate.main, *common, "--top", tiny_run.top)
        assert alone == f"{flag}: expected --top beside it, found {flag} alone. Give --top too."
        assert half == (f"{flag}: expected a prior for each level of --vqvae {tiny_run.vqvae}, found none for bottom. "
                        "Give --bottom.")
        assert not (apart / "out").exists()
