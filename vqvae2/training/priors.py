"""Codes of a VQ-VAE -> a trained prior of one level, by the trainer's loop."""

import hashlib
import math

import numpy as np
import torch
from torch import nn

from vqvae2.common import distributed, machine, random_numbers
from vqvae2.common.errors import expect
from vqvae2.metrics import coding, context_model
from vqvae2.models import encoding
from vqvae2.plots import charts
from vqvae2.priors import conditions
from vqvae2.priors.pixel_cnn import PixelCNN
from vqvae2.runs.log import say
from vqvae2.training.after_vqvae import AfterVqvae
from vqvae2.training.settings import TrainPrior
from vqvae2.training.trainer import Share


class PriorTrainer(AfterVqvae):
    """Trains p(code | codes before it), of the top level, or of the bottom given the top; loss in nats per code."""

    best_by = "bits_per_code"
    headline = (("train_bits_per_code", "bits per code"), ("validate_bits_per_code", "validation"), ("best", "best"))

    def __init__(self, settings: TrainPrior):
        super().__init__(settings)
        self.kind = f"{settings.level} prior"
        self.ema_decay = settings.ema

    def start(self) -> None:
        """Load the VQ-VAE, and the codes of its images, extracting them if that has not been done."""
        loaded = self.load()
        levels = self.vqvae.model.levels
        expect(self.settings.level in levels, f"--level {self.settings.level}",
               f"a level of --vqvae {self.settings.vqvae}", "one level, called top", "Use --level top.")
        facts = {split: loaded.splits[split].facts for split in ("train", "validate")}
        self.columns = conditions.fit(facts["train"], self.settings.condition)
        self.known = {split: conditions.numbers(self.columns, rows) for split, rows in facts.items()}
        self.check_init_from(self.data)
        self.maps = {"train": self.codes_of("train", loaded.splits["train"])}
        for warning in encoding.check_codebook_use(encoding.code_figures(
                self.vqvae.model, loaded.splits["train"], self.maps["train"], self.settings.batch,
                with_shuffle_drop=False), self.settings.vqvae):
            say(warning)
        self.maps["validate"] = self.codes_of("validate", loaded.splits["validate"])
        self.copies = [self.codes_of(f"train-copy-{number}-seed-{self.settings.seed}", loaded.splits["train"], number)
                       for number in range(1, self.settings.copies + 1)]
        self._report_references()

    def _report_references(self) -> None:
        size = self.vqvae.model.settings.codebook_size
        self.references = {}
        if self.count("validate") and distributed.rank() == 0:
            self.references = context_model.context_model_bits(
                *(self.maps[split].levels[self.settings.level].numpy() for split in ("train", "validate")), size)
            say("reference models on the validation images, bits per code: " +
                ", ".join(f"{name} {bits:.3f}" for name, bits in self.references.items()) +
                f"; a blind guess {math.log2(size):.3f}")

    def describe(self) -> dict:
        """Return what a prior must remember: its VQ-VAE, the shapes, the references."""
        shapes = {level: list(maps.shape[1:]) for level, maps in self.maps["train"].levels.items()}
        # The hash of all facts, the validation images' too, since they choose the best weights.
        told = "".join(map(repr, self.columns)).encode() + b"".join(
            self.known[split].numpy().tobytes() for split in ("train", "validate"))
        return {**self.data, "vqvae_hash": self.vqvae.hash, "shape": shapes[self.settings.level],
                "top_shape": shapes["top"], "columns": conditions.as_json(self.columns),
                "facts_hash": hashlib.sha256(told).hexdigest(), "reference_bits_per_code": self.references}

    def check_first(self, config: dict, flag: str) -> None:
        """Raise UserError if the weights of --init-from learned other codes, or were told other facts."""
        super().check_first(config, flag)
        own, other = ([[column["name"], column["categories"]] for column in columns or ()]
                      for columns in (conditions.as_json(self.columns), config.get("columns")))
        expect(own == other, flag, f"a prior that is told {own or 'nothing'}", other or "nothing",
               "Give the same --condition, or begin without --init-from.")

    def count(self, split: str) -> int:
        """Return the number of code maps; augmented copies stand in for their image and do not count."""
        return len(self.maps[split].names)

    def build(self) -> nn.Module:
        """Return the prior of this level."""
        books = {level: rule.codebook.detach().cpu() for level, rule in self.vqvae.model.quantizers.items()}
        shapes = {level: tuple(maps.shape[1:]) for level, maps in self.maps["train"].levels.items()}
        top = (books["top"], shapes["top"]) if self.settings.level == "bottom" else (None, None)
        prior = PixelCNN(self.settings, books[self.settings.level], shapes[self.settings.level], *top, self.columns)
        maps = self.maps["train"].levels[self.settings.level]
        # At first the prior predicts the frequencies of the codes everywhere.
        counts = coding.code_counts(maps, prior.codebook_size) + 1
        prior.bias.data.copy_((counts / counts.sum()).log())
        return prior

    def optimizer(self, parameters: object) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(parameters, lr=self.settings.learning_rate, betas=(0.9, 0.98),
                                 weight_decay=self.settings.weight_decay, fused=self.device.type != "mps")

    def losses(self, model: nn.Module, share: Share) -> dict[str, torch.Tensor]:
        """Return each map's mean NLL, in nats ("loss") and in bits per code."""
        maps = self._maps(share, model.training)
        given = maps["top"] if self.settings.level == "bottom" else None
        logits = model(maps[self.settings.level], given, self._known_facts(share, model.training),
                       self._keep(share) if model.training else None)
        nats = nn.functional.cross_entropy(logits.float(), maps[self.settings.level], reduction="none")
        nats = nats.flatten(1).mean(1)
        return {"loss": nats, "bits_per_code": nats.detach() / math.log(2)}

    def _maps(self, share: Share, training: bool) -> dict[str, torch.Tensor]:
        maps = self.maps["train" if training else "validate"].levels
        chosen = {level: codes[share.items] for level, codes in maps.items()}
        if training and self.copies:
            number = random_numbers.uniform(self.settings.seed, "copy", share.epoch, share.items.numpy())
            number = (number * (len(self.copies) + 1)).long() - 1
            for level, codes in chosen.items():
                for i in (number >= 0).nonzero()[:, 0].tolist():
                    codes[i] = self.copies[number[i]].levels[level][share.items[i]]
        return {level: machine.to_device(codes, self.device).long() for level, codes in chosen.items()}

    def _known_facts(self, share: Share, training: bool) -> torch.Tensor | None:
        """Return the facts that the prior is told; in training some values, and all of some images, are unknown."""
        if not self.columns:
            return None
        known = self.known["train" if training else "validate"][share.items]
        if training:
            draws = random_numbers.uniform(self.settings.seed, "condition", share.epoch, share.items.numpy()[:, None],
                                           np.arange(len(self.columns) + 1)[None])
            dropped = draws < self.settings.condition_dropout
            known = known.masked_fill(dropped[:, 1:] | dropped[:, :1], torch.nan)
        return machine.to_device(known, self.device)

    def _keep(self, share: Share) -> torch.Tensor | None:
        """Return the dropout of whole channels, by numbers of each image's own: the same on any number of ranks."""
        if not self.settings.dropout:
            return None
        shape = (self.settings.layers, 2, self.settings.channels)
        numbers = random_numbers.uniform(self.settings.seed, "dropout", share.epoch, share.items.numpy()[:, None],
                                         np.arange(math.prod(shape))[None])
        kept = (numbers >= self.settings.dropout).float() / (1 - self.settings.dropout)
        return machine.to_device(kept.view(-1, *shape), self.device)

    def pictures(self, epoch: int) -> None:
        """Draw the curves, beside what models need that only count."""
        title = f"{self.settings.savename}, {self.kind}: epoch {epoch} of {self.settings.epochs}"
        charts.curves(self.rows, self.folder / "losses.png", title=title, references=self.references)
