"""Codes of a VQ-VAE -> a trained prior of one level, by the trainer's loop."""

import hashlib
import math

import numpy as np
import torch
from torch import nn

from vqvae2.common import distributed, machine, random_numbers
from vqvae2.common.errors import expect
from vqvae2.images.dataset import ImageSet
from vqvae2.metrics import coding, context_model
from vqvae2.models import encoding
from vqvae2.models.code_maps import CodeMaps
from vqvae2.plots import charts
from vqvae2.priors import conditions
from vqvae2.priors.pixel_cnn import PixelCNN
from vqvae2.runs.log import say
from vqvae2.training import neighbours
from vqvae2.training.after_vqvae import AfterVqvae
from vqvae2.training.neighbours import Neighbours
from vqvae2.training.settings import TrainPrior
from vqvae2.training.trainer import Share


class PriorTrainer(AfterVqvae):
    """Trains p(code | codes before it), of the top level, or of the bottom given the top; loss in nats per code."""

    best_by = "bits_per_code"
    neighbours: dict[str, Neighbours] | None = None
    """The neighbours of the slices of each split, for a prior that is told the previous slice's codes."""
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
        self.columns = conditions.fit(facts["train"], self.settings.columns)
        if self.settings.told_previous:
            self.neighbours = {split: Neighbours(rows) for split, rows in facts.items()}
            self.columns = (*self.columns, self.neighbours["train"].column())
        self.known = {split: conditions.numbers(self.columns, rows) for split, rows in facts.items()}
        self.check_init_from(self.data)
        self.maps = {"train": self.codes_of("train", loaded.splits["train"])}
        for warning in encoding.check_codebook_use(encoding.code_figures(
                self.vqvae.model, loaded.splits["train"], self.maps["train"], self.settings.batch,
                with_shuffle_drop=False), self.settings.vqvae):
            say(warning)
        self.maps["validate"] = self.codes_of("validate", loaded.splits["validate"])
        self.copies = [self._copy(loaded.splits["train"], number) for number in range(1, self.settings.copies + 1)]
        self._report_references()

    def _copy(self, split: ImageSet, number: int) -> CodeMaps:
        """Return the codes of an augmented copy of the training images; slices that are told each other move alike."""
        alike = self.neighbours["train"].first if self.neighbours else None
        return self.codes_of(f"train-copy-{number}-seed-{self.settings.seed}" + "-by-scan" * (alike is not None), split,
                             number, alike)

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
        told += b"".join(beside.items.tobytes() for beside in (self.neighbours or {}).values())
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
        previous, offsets_mm = self._previous(share, model.training)
        known = self._known_facts(share, model.training, offsets_mm)
        if known is not None and previous is not None:  # a slice that is not told how far away the other lies gets none
            previous = previous.masked_fill(known[:, -1].isnan()[:, None, None], -1)
        given = maps["top"] if self.settings.level == "bottom" else None
        logits = model(maps[self.settings.level], given, known, self._keep(share) if model.training else None, previous)
        nats = nn.functional.cross_entropy(logits.float(), maps[self.settings.level], reduction="none")
        nats = nats.flatten(1).mean(1)
        return {"loss": nats, "bits_per_code": nats.detach() / math.log(2)}

    def _maps(self, share: Share, training: bool) -> dict[str, torch.Tensor]:
        maps = {level: self._codes(level, share, share.items.numpy(), training) for level in self.maps["train"].levels}
        return {level: machine.to_device(codes, self.device).long() for level, codes in maps.items()}

    def _codes(self, level: str, share: Share, items: np.ndarray, training: bool) -> torch.Tensor:
        """Return code maps of `items`; in training each is of the copy that the image at its place in the share has."""
        copies = [self.maps["train" if training else "validate"], *(self.copies if training else ())]
        if len(copies) == 1:
            return copies[0].levels[level][items]
        draws = random_numbers.uniform(self.settings.seed, "copy", share.epoch, share.items.numpy())
        own = [copies[copy].levels[level][item] for copy, item in zip((draws * len(copies)).long().tolist(), items)]
        return torch.stack(own) if own else copies[0].levels[level][:0]

    def _previous(self, share: Share, training: bool) -> tuple[torch.Tensor | None, np.ndarray | None]:
        """Return this level's code maps of the previous slices, -1 where one is unknown, and their offsets in mm."""
        if not self.neighbours:
            return None, None
        beside, items = self.neighbours["train" if training else "validate"], share.items.numpy()
        found, offsets_mm = beside.any(items, self.settings.seed, share.epoch) if training else beside.nearest(items)
        codes = self._codes(self.settings.level, share, found, training)
        codes = codes.masked_fill(torch.from_numpy(found < 0)[:, None, None], -1)
        if training and len(items):
            codes = neighbours.with_codes_hidden(codes, items, self.settings.seed, share.epoch)
        return machine.to_device(codes, self.device).long(), offsets_mm

    def _known_facts(self, share: Share, training: bool, offsets_mm: np.ndarray | None = None) -> torch.Tensor | None:
        """Return the facts that the prior is told; in training some values, and all of some images, are unknown."""
        if not self.columns:
            return None
        known = self.known["train" if training else "validate"][share.items]
        if offsets_mm is not None:
            known[:, -1] = torch.from_numpy(offsets_mm / self.columns[-1].spread)
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
