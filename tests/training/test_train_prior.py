"""A prior's training: what it is told, dropout of that, copies at the image stage, averaged weights, the best kept."""

import csv
import dataclasses
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_PRIOR, files_in
from ranks import run_on_ranks
from resuming import check_bitwise
from torch.nn import functional

from vqvae2.commands import train_prior
from vqvae2.common import distributed, random_numbers
from vqvae2.common.errors import UserError
from vqvae2.images import augmentation, dataset
from vqvae2.models import encoding
from vqvae2.models.autoencoder import load_vqvae
from vqvae2.models.code_maps import CodeMaps
from vqvae2.priors.conditions import Column
from vqvae2.priors.pixel_cnn import load_prior
from vqvae2.runs import state as run_state
from vqvae2.runs import weights
from vqvae2.settings.parsing import parse
from vqvae2.training.priors import PriorTrainer
from vqvae2.training.settings import TrainPrior
from vqvae2.training.trainer import Share

AGES = {"OAS1_0001": "40", "OAS1_0002": "50", "OAS1_0003": "", "OAS1_0004": "60", "OAS1_0005": "70",
        "OAS1_0006": "80", "OAS1_0007": "45", "OAS1_0008": "n/a"}
CONDITION = ["--condition", "age", "sex", "position_mm"]
CPU = torch.device("cpu")


@pytest.fixture
def told(tiny_run, apart) -> list[str]:
    """Arguments: the tiny slices, with the age and sex of most subjects in their manifest, and a VQ-VAE of them."""
    shutil.copytree(tiny_run.data, apart / "slices")
    shutil.copytree(tiny_run.vqvae, apart / "results" / "oasis" / "tiny")
    write_facts(apart / "slices", AGES)
    return ["--data", "slices", "--vqvae", "tiny", "--savename", "new", "--level", "top", *TINY, *TINY_PRIOR]


def write_facts(folder: Path, ages: dict[str, str]) -> None:
    """Odd subjects are women; of the last ones nothing is known."""
    with (folder / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        number = int(row["subject"][-4:])
        row |= {"age": ages.get(row["subject"], ""), "sex": "" if number > 8 else "MF"[number % 2], "field": "1.5"}
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def trainer_of(*arguments: str) -> PriorTrainer:
    return PriorTrainer(parse(TrainPrior, "", list(arguments)))


def share_of(items: list[int], epoch: int = 0) -> Share:
    return Share(torch.tensor(items, dtype=torch.long), torch.arange(len(items)), len(items), epoch, 0)


class TestTold:
    @pytest.mark.parametrize("level", ["top", "bottom"])
    def test_columns_are_remembered_as_the_training_images_have_them(self, level, told):
        """Ages of the training subjects: 40, 50, 60, 70, 80 in three slices each; validation counts for nothing."""
        train_prior.main([*told, "--level", level, *CONDITION])
        config = weights.read_config(Path("results/oasis/new"))
        age, sex, position = config["columns"]
        assert (age["name"], age["categories"], age["mean"], age["least"], age["most"]) == ("age", [], 60, 40, 80)
        assert age["spread"] == pytest.approx(math.sqrt(200))
        assert (sex["name"], sex["categories"]) == ("sex", ["F", "M"])
        assert (position["mean"], position["least"], position["most"]) == (1, 0, 2)
        prior = load_prior("new", level, config["vqvae_hash"], CPU)
        assert prior.columns[1] == Column("sex", ("F", "M"))
        assert [column.name for column in prior.columns] == ["age", "sex", "position_mm"]

    def test_without_the_flag_a_prior_is_told_nothing(self, tiny_run):
        assert weights.read_config(tiny_run.top)["columns"] == []
        assert not any(name.startswith("known.") for name in weights.load_weights(
            tiny_run.top / weights.WEIGHTS)[0])

    def test_a_stopped_prior_that_is_told_goes_on_as_if_it_had_not_been(self, told):
        check_bitwise(PriorTrainer, TrainPrior, [*told, "--vqvae", "results/oasis/tiny", *CONDITION], Path("runs"),
                      4)

    @pytest.mark.parametrize(("flags", "found"), [
        (["--condition", "age"], r"--condition age \(was age sex position_mm\)"),
        ([], r"--condition \(was age sex position_mm\)"),
        ([*CONDITION, "--condition-dropout", "0.5"], r"--condition-dropout 0\.5 \(was 0\.1\)")])
    def test_other_conditions_than_a_run_began_with_are_refused(self, flags, found, told, refusal):
        train_prior.main([*told, *CONDITION])
        before = files_in(Path("results"))
        line = refusal(train_prior.main, *told, *flags)
        assert re.search(rf"^--savename new: expected the settings that this run began with, found {found}\. Give those"
                         , line), line
        assert files_in(Path("results")) == before

    def test_facts_that_have_changed_since_are_refused_and_those_that_it_is_not_told_are_not(self, told, refusal):
        """A fact of one training image, of one validation image, or everybody's, changes its unit or its words."""
        train_prior.main([*told, *CONDITION])
        before = files_in(Path("results"))
        manifest = Path("slices/manifest.csv")
        text = manifest.read_text()
        months = re.sub(r",(\d0|45),([MF]?),1\.5", lambda found: f",{12 * int(found[1])},{found[2]},1.5", text)
        for changed in (text.replace(",40,", ",41,", 1), text.replace(",45,", ",46,", 1), months,
                        text.replace(",M,", ",male,").replace(",F,", ",female,")):
            assert changed != text
            manifest.write_text(changed)
            line = refusal(train_prior.main, *told, *CONDITION)
            assert re.search(r"^--savename new: expected the facts that this run began with \([0-9a-f]{12}\), found "
                             r"[0-9a-f]{12}\. Choose another --savename", line), line
            assert files_in(Path("results")) == before
        manifest.write_text(text.replace(",1.5", ",3"))
        train_prior.main([*told, *CONDITION, "--epochs", "3"])
        assert run_state.load_state(Path("results/oasis/new/state.pt"))["epoch"] == 3

    def test_a_column_that_the_manifest_lacks_is_refused_before_anything_is_written(self, told, refusal):
        before = files_in(Path())
        line = refusal(train_prior.main, *told, "--condition", "sex", "agee")
        assert re.search(r"^--condition agee: expected a column of the manifest, found none of that name among image, "
                         r".*position_mm, .*age, sex, field\. Correct the name", line), line
        assert files_in(Path()) == before

    def test_a_column_given_twice_is_refused(self, told, refusal):
        line = refusal(train_prior.main, *told, "--condition", "sex", "age", "sex")
        assert re.search(r"--condition: expected each column once, found sex age sex\. For example", line), line


class TestDropoutOfWhatIsTold:
    @pytest.fixture
    def trainer(self, apart) -> PriorTrainer:
        """A thousand images of whom three things are known, without a file."""
        trainer = trainer_of("--vqvae", "x", "--savename", "x", "--level", "top", "--epochs", "1", "--batch", "8",
                             "--condition-dropout", "0.2")
        trainer.columns, trainer.device = tuple(Column(name) for name in ("a", "b", "c")), CPU
        trainer.known = dict.fromkeys(("train", "validate"), torch.arange(3000.0).view(1000, 3))
        return trainer

    def test_what_is_dropped_depends_on_seed_epoch_and_image_alone(self, trainer):
        """However a step is shared out over ranks and micro-batches, an image is told the same in it."""
        whole = trainer._known_facts(share_of(range(40), epoch=3), True)
        for ranks in (1, 2, 3, 8):
            for rank in range(ranks):
                items = list(range(40))[rank::ranks]
                part = trainer._known_facts(share_of(items, epoch=3), True)
                assert torch.equal(part.nan_to_num(-1), whole[items].nan_to_num(-1))
        assert trainer._known_facts(share_of([]), True).shape == (0, 3)
        other_seed = PriorTrainer(dataclasses.replace(trainer.settings, seed=1))
        other_seed.columns, other_seed.device, other_seed.known = trainer.columns, CPU, trainer.known
        for other in (trainer._known_facts(share_of(range(40), epoch=4), True),
                      other_seed._known_facts(share_of(range(40), epoch=3), True)):
            assert not torch.equal(other.isnan(), whole.isnan())

    def test_a_share_of_the_values_and_of_the_images_as_a_whole_is_dropped(self, trainer):
        """0.2 of the images; of the others 0.2 of each value, so that in all 0.36 of each, and 0.2 + 0.8 0.2³ of the
        images have none. 5000 images: four standard errors are 0.027."""
        dropped = torch.cat([trainer._known_facts(share_of(range(1000), epoch), True).isnan() for epoch in range(5)])
        assert dropped.float().mean(0).tolist() == pytest.approx([0.36] * 3, abs=0.027)
        assert dropped.all(1).float().mean().item() == pytest.approx(0.2 + 0.8 * 0.2**3, abs=0.027)

    def test_what_is_not_dropped_is_told_as_it_is_and_validation_drops_nothing(self, trainer):
        told = trainer._known_facts(share_of(range(1000)), True)
        assert torch.equal(told[~told.isnan()], trainer.known["train"][~told.isnan()])
        assert torch.equal(trainer._known_facts(share_of([5, 2]), False), trainer.known["validate"][[5, 2]])


def train_told(arguments: list[str], batch: int, accumulate: int) -> dict:
    """Train a prior that is told some things on this rank."""
    trainer = trainer_of(*arguments, "--savename", f"on-{distributed.world_size()}-{accumulate}", "--batch", str(batch),
                         "--accumulate", str(accumulate), "--dropout", "0.3", "--copies", "1")
    trainer.run()
    return {"state": trainer.model.state_dict(), "rows": trainer.rows}


def test_two_processes_of_two_micro_batches_are_one_process(told, apart):
    """What is told, dropout and copies are each image's own. Adam's first steps enlarge the last bits of sums in
    another order: parameters agree to 1e-4, where learning moves them by 0.01."""
    arguments = [*told, *CONDITION, "--data", str(apart / "slices"), "--results", str(apart / "results")]
    alone = train_told(arguments, 8, 1)
    ranks = run_on_ranks(2, train_told, arguments, 2, 2)
    for name, value in alone["state"].items():
        assert torch.equal(ranks[0]["state"][name], ranks[1]["state"][name]), name
        torch.testing.assert_close(ranks[0]["state"][name], value, atol=1e-4, rtol=1e-4,
                                   msg=lambda text, name=name: f"{name}: {text}")
    for ours, theirs in zip(alone["rows"], ranks[0]["rows"], strict=True):
        for name in set(ours) - {"seconds"}:
            assert theirs[name] == pytest.approx(ours[name], rel=1e-4), name


def test_a_prior_begins_only_with_one_of_the_same_codes_facts_and_heads(told):
    train_prior.main([*told, "--savename", "first", "--epochs", "1"])
    more = [*told, "--epochs", "1", "--init-from", "first"]
    with pytest.raises(UserError, match=r"others: --heads 1 \(was \d\)\. "):  # weights of the same shapes
        train_prior.main([*more, "--savename", "other", "--heads", "1"])
    train_prior.main([*more, "--savename", "second"])
    with pytest.raises(UserError, match=r"--init-from first: expected weights of the same architecture, found others: "
                       r"--condition .+ \(was \)"):
        train_prior.main([*more, "--savename", "third", *CONDITION])
    train_prior.main([*told, "--savename", "of-age", "--epochs", "1", "--condition", "age"])
    with pytest.raises(UserError, match=r"--init-from of-age: expected .*--condition position_mm \(was age\)"):
        train_prior.main([*told, "--savename", "third", "--epochs", "1", "--init-from", "of-age",
                          "--condition", "position_mm"])
    path = Path("results/oasis/first/model.safetensors")
    tensors, config = weights.load_weights(path)
    weights.save_weights(path, tensors, config | {"vqvae_hash": "0" * 64})
    with pytest.raises(UserError, match=r"--init-from first: expected weights that learned the codes of --vqvae tiny"):
        train_prior.main([*more, "--savename", "fourth"])


def test_weights_that_are_none_to_begin_with_are_refused_before_an_image_is_encoded(told, monkeypatch):
    train_prior.main([*told, "--savename", "first", "--epochs", "1"])
    monkeypatch.setattr(encoding, "extract", None)
    shutil.rmtree("results/oasis/tiny/codes")
    more = [*told, "--savename", "second", "--copies", "1", "--init-from"]
    for flags, found in ((["--channels", "4"], r"others: --channels 4 \(was 8\)"),
                         (["--condition", "age"], r"others: --condition age \(was \)")):
        with pytest.raises(UserError, match=rf"--init-from first: expected .* found {found}\. "):
            train_prior.main([*more, "first", *flags])
    with pytest.raises(UserError, match=r"--init-from tiny: expected a top prior, found a vqvae in"):
        train_prior.main([*more, "tiny"])
    path = Path("results/oasis/first/model.safetensors")
    tensors, config = weights.load_weights(path)
    weights.save_weights(path, tensors, config | {"training_subjects": config["held_out_subjects"][:1]})
    with pytest.raises(UserError, match=r"--init-from first: .* found 1 such subject"):
        train_prior.main([*more, "first"])


class TestCopies:
    @pytest.fixture
    def trainer(self, told) -> PriorTrainer:
        trainer = trainer_of(*told, "--copies", "2", "--epochs", "1")
        trainer.run()
        return trainer

    def test_a_copy_has_the_codes_of_the_moved_image_and_is_stored(self, trainer):
        """Codes are never mirrored or shifted themselves: the picture is, before it is encoded."""
        seen = dataclasses.replace(trainer.settings, size=trainer.vqvae.config["settings"]["size"])
        pixels = dataset.load_images(seen).splits["train"].batch(range(18))
        model = load_vqvae("tiny", CPU).model
        for copy in (1, 2):
            draws = random_numbers.uniform(0, f"copy {copy}", np.arange(18)[:, None], np.arange(5)[None])
            with torch.no_grad():
                codes = model.encode(augmentation.moved(pixels, draws))
            stored = CodeMaps.load(Path(f"results/oasis/tiny/codes/train-copy-{copy}-seed-0.npz"), trainer.vqvae.hash)
            for level in ("top", "bottom"):
                assert torch.equal(stored.levels[level], codes[level])
                assert not torch.equal(codes[level], trainer.maps["train"].levels[level].long())

    def test_an_image_or_one_of_its_copies_is_learned_with_both_its_levels_and_never_in_validation(self, trainer):
        sources = [trainer.maps["train"], *trainer.copies]
        counts = torch.zeros(3)
        for epoch in range(30):
            maps = trainer._maps(share_of(range(18), epoch), True)
            same = torch.stack([
                torch.stack([(maps[level] == source.levels[level]).all((1, 2)) for level in maps]).all(0)
                for source in sources])
            assert same.any(0).all()
            counts += (same & (same.sum(0) == 1)).sum(1)
        assert (counts / counts.sum()).tolist() == pytest.approx([1 / 3] * 3, abs=0.1)
        for level, maps in trainer._maps(share_of(range(6)), False).items():
            assert torch.equal(maps, trainer.maps["validate"].levels[level].long())

    def test_a_split_is_held_in_two_bytes_a_code(self, trainer):
        held = [trainer.maps["train"], trainer.maps["validate"], *trainer.copies]
        assert {codes.dtype for maps in held for codes in maps.levels.values()} == {torch.int16}

    def test_copies_do_not_count_as_images(self, trainer):
        assert (trainer.count("train"), trainer.rows[-1]["images_seen"]) == (18, 18)


class TestWeights:
    def test_the_averaged_weights_are_validated_in_bits_and_saved(self, told):
        trainer = trainer_of(*told, *CONDITION, "--ema", "0.8", "--epochs", "1")
        trainer.run()
        prior = load_prior("new", "top", trainer.vqvae.hash, CPU)
        for name, value in prior.state_dict().items():
            assert torch.equal(value, trainer.average.state_dict()[name]), name
        assert not torch.equal(prior.bias, trainer.model.bias)
        codes = trainer.maps["validate"].levels["top"].long()
        # Ages 45 and unknown, a woman and a man, at 0, 1 and 2 mm: standardised by hand.
        position = [index / math.sqrt(2 / 3) for index in (-1, 0, 1)]
        known = torch.tensor([[-15 / math.sqrt(200), 0, place] for place in position] + [
            [math.nan, 1, place] for place in position])
        with torch.no_grad():
            nats = functional.cross_entropy(prior(codes, known=known), codes)
        assert trainer.rows[0]["validate_bits_per_code"] == pytest.approx(nats.item() / math.log(2), rel=1e-5)

    def test_the_weights_of_the_epoch_with_the_fewest_validation_bits_are_kept(self, told):
        class Worse(PriorTrainer):
            """Its validation loss falls and its validation bits are least in the second of four epochs."""

            states: dict = {}  # noqa: RUF012

            def losses(self, model, share):
                figures = super().losses(model, share)
                return figures if model.training else {"loss": figures["loss"] * 0 - self.epoch, "bits_per_code":
                                                       figures["loss"] * 0 + abs(self.epoch - 1)}

            def pictures(self, epoch):
                self.states[epoch] = {name: tensor.clone() for name, tensor in self.best_model.state_dict().items()}

        trainer = Worse(parse(TrainPrior, "", [*told, "--epochs", "4", "--pictures-every", "1"]))
        trainer.run()
        tensors, _ = weights.load_weights(trainer.folder / weights.WEIGHTS)
        assert torch.equal(tensors["table"], trainer.states[2]["table"])
        assert not torch.equal(tensors["table"], trainer.states[4]["table"])

    def test_the_learning_rate_rises_in_a_line_and_falls_by_a_cosine_to_0(self, told):
        trainer = trainer_of(*told, "--epochs", "10", "--learning-rate", "0.01", "--warmup-steps", "5")
        trainer.steps_per_epoch, rates = 10, []
        for trainer.step in range(101):
            rates.append(trainer.learning_rate())
        cosine = [0.005 * (1 + math.cos(math.pi * step / 100)) for step in range(101)]
        assert rates[:5] == pytest.approx([share * factor for share, factor in zip((0.2, 0.4, 0.6, 0.8, 1), cosine)])
        assert rates[5:] == pytest.approx(cosine[5:])
        assert rates[100] == 0
