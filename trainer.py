"""A model and numbered items -> a trained run in a folder: the loop, as a base class.

Nothing in this file is about images, codes or codebooks. It owns epochs, processes, precision,
validation, checkpoints, resume, signals and logs. What a subclass provides is listed in `Trainer`.
"""

import copy
import math
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from vqvae2 import checkpoints, distributed, machine, random_numbers
from vqvae2.config import RunSettings, as_dict, changed_settings
from vqvae2.errors import Stopped, UserError

STEPS_BETWEEN_LOOKS = 10
"""Steps between looks at the loss and, with several processes, at whether a signal has come."""


@dataclass(frozen=True)
class Share:
    """This rank's part of one micro-batch (or of a split, when validating)."""

    items: torch.Tensor
    """`[n]`: numbers of the items in the data set; n may be 0 on some ranks."""
    positions: torch.Tensor
    """`[n]`: their places in the global batch."""
    global_batch: int
    """Items in the step over all ranks and micro-batches."""
    epoch: int
    step: int
    """Optimiser steps before this one."""


class Trainer:
    """Trains a model for some epochs, on any number of processes, and never loses more than an epoch.

    A subclass provides
        kind                      what the run holds, such as "vqvae"; another kind's folder is refused
        build()                   the model, its weights drawn; on the CPU
        count(split)              how many items "train" and "validate" have
        losses(model, share)      {"loss": [n], …}: one value for each item of the share; "loss" is minimised
    and where it wants to
        start()                   what must be ready before the model is built (data), after processes have joined
        describe()                more for config.json
        optimizer(parameters)     another optimiser than Adam
        after_step()              what the model updates without gradient, on all ranks
        validate_more()           more figures for the epoch's row, on all ranks; collectives allowed
        may_be_best()             whether this epoch's weights are fit for use
        pictures(epoch)           figures of the run, on rank 0 alone; no collectives
        best_by, ema_decay        the validation figure whose lowest value is best; decay of averaged weights

    Every value that is reported is a sum over items divided by their number, over all ranks.
    A step's items depend on (seed, epoch) alone: the same global batch on 1 or N processes is the same step.
    """

    kind = "model"
    best_by = "loss"
    ema_decay = 0.0

    def __init__(self, settings: RunSettings):
        self.settings = settings
        self.folder = settings.results / settings.dataset / settings.savename
        self.epoch = self.step = self.step_in_epoch = 0
        self.best = math.inf
        self.rows: list[dict] = []
        self.sums: dict[str, float] = {}
        self.signals = machine.SignalsNoted()

    # What a subclass provides -----------------------------------------------------------------

    def build(self) -> nn.Module:
        """Return the model."""
        raise AssertionError("a subclass provides build()")

    def count(self, split: str) -> int:
        """Return how many items a split has."""
        raise AssertionError("a subclass provides count()")

    def losses(self, model: nn.Module, share: Share) -> dict[str, torch.Tensor]:
        """Return figures `[n]` for each item of the share, "loss" among them."""
        raise AssertionError("a subclass provides losses()")

    def start(self) -> None:
        """Make ready what `build` and `count` need."""

    def describe(self) -> dict:
        """Return more for config.json; what ends in _hash must be the same when a run goes on."""
        return {}

    def optimizer(self, parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimiser."""
        return torch.optim.Adam(parameters, lr=self.settings.learning_rate, fused=self.device.type != "mps")

    def after_step(self) -> None:
        """Update what has no gradient."""

    def validate_more(self) -> dict[str, float]:
        """Return more figures for the epoch's row."""
        return {}

    def may_be_best(self) -> bool:
        """Return whether this epoch's weights are fit for use."""
        return True

    def pictures(self, epoch: int) -> None:
        """Draw figures of the run."""

    # The loop ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Train from where the run stands to its last epoch.

        Raises: UserError if the folder or a setting does not fit; Stopped if a signal came, all being saved.
        """
        self._check_folder()
        self.device = distributed.pick_device()
        machine.set_threads(self.settings.threads)
        distributed.start(self.device)
        try:
            self._prepare()
            with self.signals:
                while self.epoch < self.settings.epochs:
                    self._train_epoch()
                    self._end_epoch()
        finally:
            if getattr(self, "board", None):
                self.board.close()
        distributed.stop()
        best = f", best {self.best_by} {self.best:.4g} on validation images" if math.isfinite(self.best) else ""
        self._say(f"Done: {self.folder} ({self.epoch} epochs, {self.step} steps{best})")

    def _prepare(self) -> None:
        torch.manual_seed(self.settings.seed)
        self.start()
        if self.count("train") == 0:
            raise UserError("--data: expected at least 1 training image, found 0. Give --split a larger first share.")
        self._fix_global_batch()
        self.model = self.build().to(self.device)
        self.average = copy.deepcopy(self.model) if self.ema_decay else None
        self.wrapped = distributed.wrap(self.model, self.device)
        self.adam = self.optimizer(self.model.parameters())
        self.precision = machine.choose_precision(self.settings.precision, self.device)
        self._describe_run()
        state = self.folder / checkpoints.STATE
        if state.exists():
            self._restore(checkpoints.load_state(state))
        self._check_that_ranks_agree()
        if distributed.rank() == 0:
            checkpoints.write_json(self.folder / checkpoints.CONFIG, self.config)
        self.board = SummaryWriter(str(self.folder), purge_step=self.epoch + 1) if distributed.rank() == 0 else None
        self._announce()

    def _train_epoch(self) -> None:
        """All steps of the epoch that are still to be made; a resumed epoch goes on where it stopped."""
        self.wrapped.train()
        began = time.monotonic()
        bar = tqdm(total=self.steps_per_epoch, initial=self.step_in_epoch, unit="step", leave=False,
                   desc=f"epoch {self.epoch + 1}/{self.settings.epochs}", disable=distributed.rank() != 0)
        sums = {name: torch.tensor(value, dtype=torch.float32, device=self.device) for name, value in self.sums.items()}
        order = torch.randperm(self.count("train"), generator=random_numbers.generator(
            self.settings.seed, "order of images", self.epoch))
        while self.step_in_epoch < self.steps_per_epoch:
            step_sums = self._train_step(order[self.step_in_epoch * self.global_batch:][: self.global_batch])
            sums = {name: sums.get(name, 0) + value for name, value in step_sums.items()}
            self.step += 1
            self.step_in_epoch += 1
            bar.update()
            alone = distributed.world_size() == 1
            if self.step % STEPS_BETWEEN_LOOKS == 0 or (alone and self.signals.came):
                self._look(sums, bar)
        self._look(sums, bar)
        self.seconds = time.monotonic() - began
        bar.close()

    def _train_step(self, items: torch.Tensor) -> dict[str, torch.Tensor]:
        """One optimiser step on a global batch; return this rank's sums of the figures."""
        for group in self.adam.param_groups:
            group["lr"] = self.learning_rate()
        self.adam.zero_grad(set_to_none=True)
        step_sums: dict[str, torch.Tensor] = {}
        for micro_batch in range(self.accumulation):
            share = self._share(items, micro_batch)
            is_last = micro_batch == self.accumulation - 1
            with nullcontext() if is_last else distributed.without_gradient_exchange(self.wrapped):
                with self._autocast():
                    figures = self.losses(self.wrapped, share)
                # DDP divides by the number of ranks; the loss is a mean over the *global* batch.
                (figures["loss"].sum() * (distributed.world_size() / len(items))).backward()
            for name, values in figures.items():
                step_sums[name] = step_sums.get(name, 0) + values.detach().float().sum()
        if self.settings.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.adam.step()
        self.after_step()
        if self.average is not None:
            _move_towards(self.average, self.model, 1 - min(self.ema_decay, (1 + self.step) / (10 + self.step)))
        return step_sums

    def _share(self, items: torch.Tensor, micro_batch: int) -> Share:
        """Deal the global batch out like cards: ranks and micro-batches get equal shares, give or take one."""
        ranks = distributed.world_size()
        first = micro_batch * ranks + distributed.rank()
        positions = torch.arange(len(items))[first::ranks * self.accumulation]
        return Share(items[positions], positions.to(self.device), len(items), self.epoch, self.step)

    def _end_epoch(self) -> None:
        """Validate on all ranks; log, save and draw on rank 0."""
        items = self.count("train")
        row = {"epoch": self.epoch + 1, "step": self.step, "images_seen": (self.epoch + 1) * items,
               "learning_rate": self.learning_rate(), "seconds": round(self.seconds, 2),
               **{f"train_{name}": value / items for name, value in self.sums.items()}, **self._validate()}
        self.epoch, self.step_in_epoch, self.sums = self.epoch + 1, 0, {}
        self.rows.append(row)
        distributed.check_same_on_ranks(self.model.state_dict().items())
        value = row.get(f"validate_{self.best_by}", math.nan)
        is_best = self.may_be_best() and (value < self.best or self.count("validate") == 0)
        self.best = min(self.best, value) if is_best and self.count("validate") else self.best
        if distributed.rank() == 0:
            self._log(row)
            # Weights first: a kill in between repeats the epoch from the older state, which is exact.
            if is_best or (not (self.folder / checkpoints.WEIGHTS).exists() and self.epoch == self.settings.epochs):
                checkpoints.save_weights(self.folder / checkpoints.WEIGHTS, self.best_model().state_dict(), self.config)
            self._save_state()
            if self.epoch % self.settings.pictures_every == 0 or self.epoch == self.settings.epochs:
                self.pictures(self.epoch)
        distributed.barrier()

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Every rank evaluates its share, on the bare module; no image counts twice."""
        model = self.best_model().eval()
        total = self.count("validate")
        sums: dict[str, float] = {}
        for share in self.shares_of(total):
            with self._autocast():
                figures = self.losses(model, share)
            for name, values in figures.items():
                sums[name] = sums.get(name, 0.0) + values.float().sum().item()
        # Rank 0 always holds the first items, so its names are all of them.
        gathered = distributed.gather_objects(sums)
        figures = {f"validate_{name}": sum(one.get(name, 0.0) for one in gathered) / total for name in gathered[0]}
        with self._autocast():
            figures.update(self.validate_more() if total else {})
        self.model.train()
        return figures

    def shares_of(self, total: int) -> Iterator[Share]:
        """Yield this rank's shares of a whole split, in order: items rank, rank + ranks, …"""
        mine = torch.arange(total)[distributed.rank()::distributed.world_size()]
        for items in mine.split(self.settings.batch) if len(mine) else ():
            yield Share(items, items.to(self.device), total, self.epoch, self.step)

    def best_model(self) -> nn.Module:
        """Return the weights that are validated and saved: averaged where an average is kept."""
        return self.model if self.average is None else self.average

    def learning_rate(self) -> float:
        """Return this step's rate: a linear rise, then a cosine to 0 over the whole run."""
        total = self.steps_per_epoch * self.settings.epochs
        rise = min(1.0, (self.step + 1) / max(min(self.settings.warmup_steps, total // 5), 1))
        return self.settings.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * min(self.step / total, 1)))

    def _look(self, sums: dict[str, torch.Tensor], bar: tqdm) -> None:
        """Sum the figures over ranks; stop all ranks together if the loss is lost or a signal came."""
        names = sorted(sums)
        values = distributed.sum_over_ranks(torch.stack([sums[name].float() for name in names]))
        self.sums = dict(zip(names, values.tolist()))
        if not math.isfinite(self.sums["loss"]):
            bar.close()
            raise UserError(f"--learning-rate {self.settings.learning_rate}: expected a finite loss, found "
                            f"{self.sums['loss']} at step {self.step}. Lower it, or use --precision fp32, under "
                            "another --savename; the last good state of this one is kept.")
        seen = min(self.step_in_epoch * self.global_batch, self.count("train"))
        bar.set_postfix({"loss": f"{self.sums['loss'] / max(seen, 1):.4f}"}, refresh=False)
        if distributed.any_rank(self.signals.came, self.device):
            bar.close()
            if distributed.rank() == 0:
                self._save_state()
            distributed.barrier()
            distributed.stop()
            raise Stopped(f"Stopped by a signal at step {self.step}, all saved: {self.folder}. "
                          "The same command goes on from here.")

    # Folder, config, state ---------------------------------------------------------------------

    def _check_folder(self) -> None:
        """Refuse a folder that holds something else; everything that needs no data, before processes join."""
        self.config: dict = {}
        if not (self.folder / checkpoints.CONFIG).exists():
            checkpoints.check_folder(self.folder, "--savename")
            return
        old = checkpoints.read_config(self.folder)
        name = f"--savename {self.settings.savename}"
        if old.get("kind") != self.kind:
            raise UserError(f"{name}: expected a run of kind {self.kind} in {self.folder}, found {old.get('kind')}. "
                            "Choose another name.")
        if self.settings.resume == "never":
            raise UserError(f"{name}: expected no run in {self.folder}, found one, and --resume is never. "
                            "Choose another name, or drop --resume never to go on.")
        changed = changed_settings(self.settings, old["settings"])
        if changed:
            raise UserError(f"{name}: expected the settings that this run began with, found {', '.join(changed)}. "
                            "Give those again, or choose another --savename.")
        self.config = old

    def _fix_global_batch(self) -> None:
        """The first start fixes the global batch; later ones change the accumulation."""
        per_pass = distributed.world_size() * self.settings.batch
        self.global_batch = self.config.get("global_batch", per_pass * self.settings.accumulate)
        self.accumulation, rest = divmod(self.global_batch, per_pass)
        if rest or self.accumulation == 0:
            raise UserError(f"--batch {self.settings.batch}: expected a divisor of this run's global batch of "
                            f"{self.global_batch}, found {distributed.world_size()} process(es) x "
                            f"{self.settings.batch} = {per_pass}. Change --batch or the number of processes.")
        if self.settings.accumulate not in (1, self.accumulation):
            raise UserError(f"--accumulate {self.settings.accumulate}: expected {self.accumulation} for this run's "
                            f"global batch of {self.global_batch}, found another. Drop --accumulate.")
        self.steps_per_epoch = math.ceil(self.count("train") / self.global_batch)

    def _describe_run(self) -> None:
        """Set what config.json will hold; refuse other data, or another VQ-VAE, than the run began with."""
        described = self.describe()
        for key, value in described.items():
            if key.endswith("_hash") and self.config.get(key, value) != value:
                raise UserError(f"--savename {self.settings.savename}: expected the {key[:-5]} that this run began "
                                f"with ({self.config[key][:12]}), found {value[:12]}. Choose another --savename.")
        self.config = {"kind": self.kind, "settings": as_dict(self.settings), "global_batch": self.global_batch,
                       **described, "versions": checkpoints.versions(),
                       "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}

    def _check_that_ranks_agree(self) -> None:
        """Each rank has read its own disk: on several machines the results folder must be one that all see."""
        found = distributed.gather_objects((self.global_batch, self.accumulation, self.step))
        if len(set(found)) > 1:
            raise UserError(f"--results {self.settings.results}: expected one folder that all machines share, found "
                            f"ranks at steps {', '.join(str(step) for _, _, step in found)}. Put it on a shared disk.")

    def _save_state(self) -> None:
        checkpoints.save_state(self.folder / checkpoints.STATE, {
            "model": self.model.state_dict(), "optimizer": self.adam.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "epoch": self.epoch, "step": self.step, "step_in_epoch": self.step_in_epoch,
            "best": self.best, "rows": self.rows, "sums": self.sums})

    def _restore(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.adam.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.epoch, self.step, self.step_in_epoch = state["epoch"], state["step"], state["step_in_epoch"]
        self.best, self.rows = state["best"], state["rows"]
        # The saved sums are those of all ranks; one rank carries them on.
        self.sums = {name: value if distributed.rank() == 0 else 0.0 for name, value in state["sums"].items()}

    def _log(self, row: dict) -> None:
        checkpoints.write_rows(self.folder / "log.csv", self.rows)
        for name, value in row.items():
            self.board.add_scalar(name.replace("_", "/", 1), value, self.epoch)
        self.board.flush()
        shown = [f"{name} {value:.4g}" for name, value in row.items()
                 if name.startswith(("train_loss", "validate_", "top_", "bottom_"))]
        self._say(f"epoch {self.epoch}/{self.settings.epochs}: " + ", ".join(shown))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision[0] == torch.bfloat16)

    def _announce(self) -> None:
        ranks, name = distributed.world_size(), str(self.precision[0]).removeprefix("torch.")
        self._say(f"{self.folder}: {self.kind}, {sum(p.numel() for p in self.model.parameters()) / 1e6:.2f} M "
                  f"parameters, {self.count('train')} training and {self.count('validate')} validation images")
        self._say(f"global batch {self.global_batch} = {ranks} process(es) x {self.settings.batch} x accumulation "
                  f"{self.accumulation}; {self.device.type}, {name} ({self.precision[1]})")
        if self.epoch or self.step_in_epoch:
            done = self.epoch >= self.settings.epochs
            self._say(f"all {self.epoch} epochs are done: nothing to do" if done else
                      f"going on at epoch {self.epoch + 1}, step {self.step}")

    def _say(self, line: str) -> None:
        if distributed.launched_rank() == 0:
            print(line, flush=True)


@torch.no_grad()
def _move_towards(average: nn.Module, model: nn.Module, share: float) -> None:
    """Move averaged weights by `share` of their distance to the model's; buffers are taken over as they are."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), share)
    for ours, theirs in zip(average.buffers(), model.buffers()):
        ours.copy_(theirs)
