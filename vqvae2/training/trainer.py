"""A model and numbered items -> a trained run in a folder: the loop, as a base class.

Nothing in this file depends on what an item is; to the user it calls them images. It owns epochs, processes, precision,
validation, checkpoints, resume, signals and logs. What a subclass provides is listed in `Trainer`.
"""

import copy
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import nn

from vqvae2.common import distributed, machine, memory, progress, random_numbers
from vqvae2.common.errors import Stopped, expect
from vqvae2.common.folder_lock import Claim, claimed
from vqvae2.runs import log, state, weights, writers
from vqvae2.runs.settings import as_before
from vqvae2.settings.parsing import as_dict, changes
from vqvae2.settings.stored import as_declared
from vqvae2.training.settings import TrainingSettings

SECONDS_BETWEEN_LOOKS = 2.0
"""Seconds, about, between the moments at which all ranks look at the loss, and whether to stop or to save."""
PLACE_IN_RUN = {"epoch": int, "step": int, "step_in_epoch": int, "best": float, "rows": list[dict[str, float]],
                "sums": dict[str, float], "seconds": float}
"""The attributes that say where a run stands, with their types."""
OF_ADAM = {"step", "exp_avg", "exp_avg_sq"}


@dataclass(frozen=True)
class Share:
    """This rank's part of one micro-batch (or of a split, when validating).

    Args:
        items: `[n]`, on the CPU: numbers of the items in the data set; n may be 0 on some ranks.
        positions: `[n]`, on the device: their places in the global batch; in validation, the items themselves.
        global_batch: items in the step over all ranks and micro-batches.
        step: optimiser steps before this one; -1 in the pass without items that comes before all steps.
    """

    items: torch.Tensor
    positions: torch.Tensor
    global_batch: int
    epoch: int
    step: int


class Trainer:
    """Trains a model for some epochs, on any number of processes, and loses no more than --checkpoint-minutes.

    A subclass provides
        kind                      what the run holds, such as "vqvae"; another kind's folder is refused
        build()                   the model, its weights drawn; on the CPU
        count(split)              how many items "train" and "validate" have
        losses(model, share)      {"loss": [n], …}: one value for each item of the share; "loss" is minimised. n may be
                                  0, and "loss" must then still reach every parameter; names are always the same
    and where it wants to
        start()                   what must be ready before the model is built (data), after processes have joined
        describe()                more for config.json
        optimizer(parameters)     another optimiser than Adam; a group's learning rate is multiplied by its "rate"
        parts_to_compile()        parts of the model that torch.compile may make one piece of
        coming(items)             begin to read this rank's training items of the step after this one
        after_step()              what the model updates without gradient, on all ranks
        validate_more()           more figures for the epoch's row, on all ranks; collectives allowed
        may_be_best()             whether this epoch's weights are fit for use
        after_epoch()             what follows an epoch whose row, `rows[-1]`, and state are saved, on all ranks;
                                  collectives allowed. It may end the run by raising the same error on all ranks
        kept(model)               the part of the model whose weights are the result
        check_first(config, flag) raise a UserError if a run of this config is none that this one can begin from; where
                                  `start` takes long, it calls check_init_from() as soon as this can be told
        pictures(epoch)           figures of the run, on rank 0 alone; no collectives
        best_by, ema_decay        the validation figure whose lowest value is best; decay of averaged weights
        headline                  (column, words) of the figures in an epoch's line on the terminal: four at most, for a
                                  line of 100 characters; "best" is the best value of best_by so far, and where the
                                  words are "and", no comma stands before them

    Every value that is reported is a sum over items divided by their number, over all ranks.
    A step's items depend on (seed, epoch) alone: the same global batch on 1 or N processes is the same step.
    """

    kind = "model"
    best_by = "loss"
    ema_decay = 0.0
    headline: tuple[tuple[str, str], ...] = (
        ("train_loss", "loss"), ("validate_loss", "validation loss"), ("best", "best"))

    def __init__(self, settings: TrainingSettings):
        self.settings = settings
        self.folder = settings.folder
        self.epoch = self.step = self.step_in_epoch = 0
        self.best = math.inf
        self.rows: list[dict] = []
        self.sums: dict[str, float] = {}
        self.seconds = 0.0
        self.signals = machine.Signals()
        self.log: log.RunLog | None = None

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

    def parts_to_compile(self) -> list[nn.Module]:
        """Return parts of the model that torch.compile may make one piece of."""
        return []

    def coming(self, items: torch.Tensor) -> None:
        """Begin to read the training items of this rank's next step; the default does nothing."""

    def after_step(self) -> None:
        """Update what has no gradient."""

    def validate_more(self) -> dict[str, float]:
        """Return more figures for the epoch's row."""
        return {}

    def may_be_best(self) -> bool:
        """Return whether this epoch's weights are fit for use."""
        return True

    def after_epoch(self) -> None:
        """Do what follows an epoch that is saved; the default does nothing."""

    def kept(self, model: nn.Module) -> nn.Module:
        """Return the part of `model` whose weights are the run's result, and with which another run can begin."""
        return model

    def check_first(self, config: dict, flag: str) -> None:
        """Raise UserError, which begins with `flag`, if a run of this config has no weights for this one."""
        form = [name for kind in type(self.settings).__mro__ for name in vars(kind).get("FORM", ())]
        own = as_dict(self.settings)
        differ = changes({name: own[name] for name in form}, as_before(config["settings"]))
        expect(not differ, flag, "weights of the same architecture", f"others: {', '.join(differ)}",
               "Give the settings that they were trained with, or begin without --init-from.")

    def pictures(self, epoch: int) -> None:
        """Draw figures of the run."""

    # The loop ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Train from where the run stands to its last epoch. Every rank must call this.

        Raises: UserError if the folder or a setting does not fit; Stopped if a signal came, all being saved.
        """
        writers.check_installed(self.settings.log)
        self.config = state.open_folder(self.folder, self.settings, self.kind)
        self.device = distributed.pick_device()
        # In float64 it does not show in which order, and on how many ranks, figures were added. MPS has none.
        self.sum_type = torch.float32 if self.device.type == "mps" else torch.float64
        machine.set_threads(self.settings.threads)
        machine.keep_memory()
        distributed.start(self.device, self.settings.timeout_minutes)
        held = ExitStack()
        try:
            with self.signals:
                with self.signals.stopping_at_once(self._stopped("while getting ready")):
                    claim = distributed.on_rank_0(lambda: held.enter_context(
                        claimed(self.folder, f"--savename {self.settings.savename}", "--savename")))
                    # Until now another start may have written here.
                    self.config = distributed.together(
                        lambda: state.open_folder(self.folder, self.settings, self.kind))
                    self._prepare(claim)
                while self.epoch < self.settings.epochs:
                    self._train_epoch()
                    self._end_epoch()
        finally:
            if self.log is not None:
                self.log.close(ended_well=sys.exc_info()[1] is None)
            self.wrapped = None  # else leaving the group may hang: see there
            held.close()
            distributed.stop()
        best = f", best {self.best_by} {self.best:.4g} on validation images" if math.isfinite(self.best) else ""
        log.say(f"Done: {self.folder} ({self.epoch} epochs, {self.step} steps{best})")

    def _prepare(self, claim: Claim | None) -> None:
        torch.manual_seed(self.settings.seed)
        self.start()
        expect(self.count("train") > 0, "--data", "at least 1 training image", 0, "Give --split a larger first share.")
        self.global_batch, self.accumulation = state.share_out(self.settings, self.config)
        self.steps_per_epoch = math.ceil(self.count("train") / self.global_batch)
        self.model = self.build()
        data = self._begin_from(self.describe())
        self.model.to(self.device)
        self.average = copy.deepcopy(self.model) if self.ema_decay else None
        self.best_model = self.model if self.average is None else self.average
        with memory.without_collection():  # torch imports its compiler for both, used or not
            self.wrapped = distributed.wrap(self.model, self.device)
            self.stepper = self.optimizer(self.model.parameters())
        self.precision = machine.choose_precision(self.settings.precision, self.device)
        self.config = state.describe(self.settings, self.kind, self.global_batch, data, self.config)
        self._settle_sums()  # before compiling, which would make kernels for a pass without images
        self.compiled = machine.compile_where_it_pays(self.settings.compile, self.device, self.parts_to_compile())
        state.resume_state(self.folder, self.config, self.settings, self._restore)
        self.state_number = state.file_number(self.folder / state.STATE)
        distributed.on_rank_0(lambda: state.begin(claim, self.config))
        self.log = distributed.together(
            lambda: log.RunLog(self.folder, self.epoch, self.settings.log, self.config))
        self.save_at = time.monotonic() + self.settings.checkpoint_minutes * 60
        self.began_at = time.monotonic(), self.step
        self._announce()

    def _begin_from(self, data: dict) -> dict:
        """Load the weights of --init-from, unless a state has later ones; return `data` with what they have seen.

        Raises: UserError if they are of another kind or form, or were trained on people that `data` holds out.
        """
        if self.settings.init_from is None:
            return data
        if self._has_state():
            seen, init_hash = self.config, self.config.get("init_hash", "")
        else:
            loaded = weights.load_into(self.kept(self.model), self.settings.init_from, "--init-from", self.kind,
                                       self.settings.results, lambda config: self._check_init_config(config, data))
            seen, init_hash = loaded.config, loaded.hash
        return data | {"init_hash": init_hash} | {
            name: sorted({*data[name], *(seen.get(name) or ())})
            for name in ("training_images", "training_subjects") if name in data}

    def check_init_from(self, data: Mapping[str, object]) -> None:
        """Raise UserError if the run --init-from is none to begin with; of its files only the config is read.

        Args:
            data: what `describe` will say of the people in the data.
        """
        if self.settings.init_from is not None and not self._has_state():
            weights.check_run(self.settings.init_from, "--init-from", self.kind, self.settings.results,
                              lambda config: self._check_init_config(config, data))

    def _has_state(self) -> bool:
        return bool(self.config) and any((self.folder / name).exists() for name in (state.STATE, state.STATE_BEFORE))

    def _check_init_config(self, config: dict, data: Mapping[str, object]) -> None:
        flag = f"--init-from {self.settings.init_from}"
        self.check_first(config, flag)
        known = set(config.get("training_subjects") or ()) & set(data.get("held_out_subjects", ()))
        told = config.get("training_subjects") is not None or "training_subjects" not in data
        some = ", ".join(sorted(known)[:3]) + ", …" * (len(known) > 3)
        expect((told and not known) or self.settings.allow_leak, flag, "weights that were trained on nobody of "
               "this data's validate and test splits", f"{len(known)} such subject(s), by their names: {some}"
               if told else "some that do not say whom they were trained on", "Give the data and the --split that "
               "they were trained with; if these are other people of the same names, give --allow-leak.")

    def _settle_sums(self) -> None:
        """Let every step, the first after a stop too, add the gradients of the ranks in one and the same order.

        DDP lays gradients out anew after its first pass, as they came in it, and where one lies decides in which
        order gloo adds three or more. So the first pass is always one of the fresh model, without images.
        """
        if distributed.world_size() > 1:
            self.wrapped.train()
            none = torch.zeros(0, dtype=torch.long)
            with self._autocast():
                loss = self.losses(self.wrapped, Share(none, none.to(self.device), 1, self.epoch, -1))["loss"]
            loss.sum().backward()
            self.stepper.zero_grad(set_to_none=True)

    def _train_epoch(self) -> None:
        """Make all steps of the epoch that are still to be made; a resumed epoch goes on where it stopped."""
        self.wrapped.train()
        self.looked = time.monotonic()
        self.began = self.looked - self.seconds
        self.passes, self.passes_to_look = 0, 1
        # The saved sums are those of all ranks; one rank carries them on.
        self.running = {name: torch.tensor(value if distributed.rank() == 0 else 0.0, device=self.device,
                                           dtype=self.sum_type) for name, value in self.sums.items()}
        order = torch.randperm(self.count("train"), generator=random_numbers.generator(
            self.settings.seed, "order of images", self.epoch))
        whole = (self.epoch * self.steps_per_epoch, self.settings.epochs * self.steps_per_epoch)
        with progress.Bar(total=self.steps_per_epoch, initial=self.step_in_epoch, unit="step", of_all=whole,
                 desc=f"epoch {self.epoch + 1}/{self.settings.epochs}", disable=distributed.rank() != 0) as self.bar:
            while self.step_in_epoch < self.steps_per_epoch:
                items, coming = (order[step * self.global_batch:][: self.global_batch]
                                 for step in (self.step_in_epoch, self.step_in_epoch + 1))
                self.coming(coming[distributed.rank()::distributed.world_size()])
                figures = self._train_step(items)
                self.running = {name: self.running.get(name, 0) + value for name, value in figures.items()}
                self.step += 1
                self.step_in_epoch += 1
                self.bar.update()
                if self.step % 100 == 0:
                    distributed.check_same_on_ranks(self.model.state_dict().items())
                self._look_if_due()
            self._look()

    def _train_step(self, items: torch.Tensor) -> dict[str, torch.Tensor]:
        """Make one optimiser step on a global batch; return this rank's sums of the figures."""
        for group in self.stepper.param_groups:
            group["lr"] = self.learning_rate() * group.get("rate", 1)
        self.stepper.zero_grad(set_to_none=True)
        step_sums: dict[str, torch.Tensor] = {}
        for micro_batch in range(self.accumulation):
            if micro_batch:
                self._look_if_due()  # may save and stop: so far this step has changed nothing that is saved
            share = self._share(items, micro_batch)
            is_last = micro_batch == self.accumulation - 1
            with nullcontext() if is_last else distributed.without_gradient_exchange(self.wrapped):
                with self._autocast():
                    figures = self.losses(self.wrapped, share)
                # DDP divides by the number of ranks; the loss is a mean over the *global* batch.
                (figures["loss"].sum() * (distributed.world_size() / len(items))).backward()
            for name, values in figures.items():
                step_sums[name] = step_sums.get(name, 0) + values.detach().sum(dtype=self.sum_type)
        if self.settings.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.stepper.step()
        self.after_step()
        if self.average is not None:
            self._follow()
        return step_sums

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the averaged weights towards the model's; buffers are taken over as they are.

        The average keeps less of its past in the first steps, (1 + step) / (10 + step), so that the weights as they
        were drawn are soon forgotten (as TensorFlow's ExponentialMovingAverage).
        """
        kept = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - kept)
        for ours, theirs in zip(self.average.buffers(), self.model.buffers()):
            ours.copy_(theirs)

    def _share(self, items: torch.Tensor, micro_batch: int) -> Share:
        """Deal the global batch out like cards: ranks and micro-batches get equal shares, give or take one."""
        ranks = distributed.world_size()
        first = micro_batch * ranks + distributed.rank()
        positions = torch.arange(len(items))[first::ranks * self.accumulation]
        return Share(items[positions], machine.to_device(positions, self.device), len(items), self.epoch, self.step)

    def _end_epoch(self) -> None:
        """Validate on all ranks; log, save and draw on rank 0."""
        self._save()  # so that validating, which may take long, can be stopped at any moment
        with self.signals.stopping_at_once(self._stopped()):
            validated = self._validate()
        items = self.count("train")
        row = {"epoch": self.epoch + 1, "step": self.step, "images_seen": (self.epoch + 1) * items,
               "learning_rate": self.learning_rate(), "seconds": round(self.seconds, 2),
               **{f"train_{name}": value / items for name, value in self.sums.items()}, **validated}
        self.epoch, self.step_in_epoch, self.sums, self.seconds = self.epoch + 1, 0, {}, 0.0
        self.rows.append(row)
        value = row.get(f"validate_{self.best_by}", math.nan)
        is_best = self.may_be_best() and (value < self.best or self.count("validate") == 0)
        self.best = min(self.best, value) if is_best and self.count("validate") else self.best
        is_last = self.epoch == self.settings.epochs
        self._save(lambda: self._write_results(is_best, is_last))
        self.after_epoch()
        if distributed.any_rank(self.signals.came, self.device):
            self._stop()
        with self.signals.stopping_at_once(self._stopped()):
            every = self.settings.pictures_every
            distributed.on_rank_0(lambda: self._show(every > 0 and (self.epoch % every == 0 or is_last)))

    def _show(self, with_pictures: bool) -> None:
        if with_pictures:
            self.pictures(self.epoch)
        self.log.end_epoch(self.epoch)

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Evaluate this rank's share, on the bare module; no image counts twice. Return the figures over all ranks."""
        model = self.best_model.eval()
        total = self.count("validate")
        sums: dict[str, float] = {}
        with self._autocast():
            for share in self.shares_of(total):
                for name, values in self.losses(model, share).items():
                    sums[name] = sums.get(name, 0.0) + values.float().sum().item()
            # Rank 0 always holds the first items, so its names are all of them.
            gathered = distributed.gather_objects(sums)
            figures = {f"validate_{name}": sum(own.get(name, 0.0) for own in gathered) / total for name in gathered[0]}
            figures.update(self.validate_more() if total else {})
        self.model.train()
        return figures

    def shares_of(self, total: int) -> Iterator[Share]:
        """Yield this rank's shares of a whole split, in order: items rank, rank + ranks, …"""
        mine = torch.arange(total)[distributed.rank()::distributed.world_size()]
        for items in mine.split(self.settings.batch) if len(mine) else ():
            yield Share(items, machine.to_device(items, self.device), total, self.epoch, self.step)

    def learning_rate(self) -> float:
        """Return this step's rate: a linear rise, then a cosine to 0 over the whole run."""
        total = self.steps_per_epoch * self.settings.epochs
        rise = min(1.0, (self.step + 1) / max(min(self.settings.warmup_steps, total // 5), 1))
        return self.settings.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * min(self.step / total, 1)))

    def _look_if_due(self) -> None:
        """Count a micro-batch; look where all ranks have agreed to, or alone as soon as a signal has come."""
        self.passes += 1
        if self.passes >= self.passes_to_look or (self.signals.came and distributed.world_size() == 1):
            self._look()

    def _look(self) -> None:
        """Sum the figures over ranks; save, or save and stop, on all ranks together where one is to."""
        now, names = time.monotonic(), sorted(self.running)
        seconds = (now - self.looked) / max(self.passes, 1)
        flags = torch.tensor([self.signals.came, distributed.rank() == 0 and now >= self.save_at, seconds],
                             dtype=self.sum_type)
        summed = distributed.sum_over_ranks(torch.cat([
            machine.to_device(flags, self.device), *(self.running[name][None] for name in names)])).tolist()
        signal_came, save, seconds = summed[0] > 0, summed[1] > 0, summed[2] / distributed.world_size()
        self.sums, self.seconds = dict(zip(names, summed[3:])), now - self.began
        self.looked, self.passes = now, 0
        # At most 8 passes: a run that suddenly takes ten times as long still looks within 20 seconds.
        self.passes_to_look = max(1, min(int(SECONDS_BETWEEN_LOOKS / max(seconds, 1e-9)), 8))
        self._check_loss(self.sums.get("loss", 0.0))
        seen = min(self.step_in_epoch * self.global_batch, self.count("train"))
        self.bar.set_postfix_str(", ".join([f"loss {self.sums.get('loss', 0.0) / max(seen, 1):.4f}",
                                            *(f"the whole run: {left}" for left in self._time_left())]), refresh=False)
        if save or signal_came:
            self._save()
        if signal_came:
            self._stop()

    def _stop(self) -> NoReturn:
        distributed.barrier()  # torchrun ends all ranks when the first ends: rank 0 must have saved
        raise Stopped(self._stopped())

    def _check_loss(self, loss: float) -> None:
        kept = "; the last good state of this one is kept" * (self.folder / state.STATE).is_file()
        expect(math.isfinite(loss), f"--learning-rate {self.settings.learning_rate}", "a finite loss",
               f"{loss} at step {self.step}", f"Lower it, or use --precision fp32, under another --savename{kept}.")

    def _save(self, results: Callable[[], None] = lambda: None) -> None:
        """Write results and the state on rank 0, if all ranks have the same, finite parameters.

        Every rank must call this. The state comes last: a kill before it repeats the validation from the older
        state, which is exact.
        """
        distributed.check_same_on_ranks(self.model.state_dict().items())
        if not torch.stack([values.isfinite().all() for values in self.model.parameters()]).all():
            self._check_loss(math.nan)
        distributed.on_rank_0(lambda: self._write_state(results))
        self.save_at = time.monotonic() + self.settings.checkpoint_minutes * 60

    def _write_results(self, is_best: bool, is_last: bool) -> None:
        self.log.write(self.rows, self.epoch_line())
        path = self.folder / weights.WEIGHTS
        if is_best or (is_last and not path.exists()):
            weights.save_weights(path, self.kept(self.best_model).state_dict(), self.config)

    def epoch_line(self) -> str:
        """Return the line of the epoch that has ended: its place in the run, what `headline` names, the time left."""
        row = self.rows[-1] | ({"best": self.best} if math.isfinite(self.best) else {})
        shown = [f"{words} {int(row[name]) if float(row[name]).is_integer() else format(row[name], '.4g')}"
                 for name, words in self.headline if name in row]
        figures = ", ".join([*shown, *self._time_left()]).replace(", and ", " and ")
        return f"epoch {self.epoch}/{self.settings.epochs}: {figures}"

    def _time_left(self) -> list[str]:
        """Return how long the rest of the run takes, such as `43 min left`, by what this start has done so far; nothing
        where that is not known yet, or nothing is left."""
        (moment, step), left = self.began_at, self.steps_per_epoch * self.settings.epochs - self.step
        if self.step == step or left <= 0:
            return []
        return [f"{progress.in_words((time.monotonic() - moment) / (self.step - step) * left)} left"]

    def _write_state(self, results: Callable[[], None]) -> None:
        state.check_alone(self.folder, self.state_number, self.settings)
        results()
        self.state_number = state.save_state(self.folder, {
            "run_id": self.config["run_id"], "model": self.model.state_dict(), "optimizer": self.stepper.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            **{name: getattr(self, name) for name in PLACE_IN_RUN}})

    def _restore(self, saved: dict) -> None:
        """Take over a state. Raises: one of state.MISFIT if it is not one of this model and its optimiser."""
        place = {name: as_declared(saved[name], kind, name) for name, kind in PLACE_IN_RUN.items()}
        if min(place["epoch"], place["step"], place["step_in_epoch"]) < 0 or not all("epoch" in row
                                                                                     for row in place["rows"]):
            raise ValueError("no place in a run")
        for name, model in (("model", self.model), *([("average", self.average)] if self.average is not None else ())):
            for part, ours in model.state_dict().items():
                _check_tensor(f"{name}.{part}", saved[name].get(part, ours), [ours.shape], ours.dtype)
            model.load_state_dict(saved[name])
        self.stepper.load_state_dict({**saved["optimizer"], "param_groups": [
            _options(ours, theirs) for ours, theirs in zip(self.stepper.param_groups,
                                                           saved["optimizer"]["param_groups"])]})
        for parameter, kept in self.stepper.state.items():
            if isinstance(self.stepper, (torch.optim.Adam, torch.optim.AdamW)) and not kept.keys() >= OF_ADAM:
                raise ValueError(f"no {' or '.join(sorted(OF_ADAM - kept.keys()))} of the optimiser")
            for name, value in kept.items():
                if name in OF_ADAM or isinstance(value, torch.Tensor):
                    _check_tensor(f"optimiser {name}", value, [parameter.shape, torch.Size()])
        for name, value in place.items():
            setattr(self, name, value)

    def _stopped(self, when: str | None = None) -> str:
        return (f"Stopped by a signal {when or f'at step {self.step}'}, all saved: {self.folder}. "
                "The same command goes on from here.")

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision[0] == torch.bfloat16)

    def _announce(self) -> None:
        log.say(f"{self.folder}: {self.kind}, {sum(p.numel() for p in self.model.parameters()) / 1e6:.2f} M "
                    f"parameters, {self.count('train')} training and {self.count('validate')} validation images")
        log.say(f"global batch {self.global_batch} = {distributed.world_size()} process(es) x "
                    f"{self.settings.batch} x accumulation {self.accumulation}; "
                    f"{machine.in_words(self.device, self.precision, self.compiled)}")
        if self.epoch >= self.settings.epochs:
            log.say(f"all {self.epoch} epochs are done: nothing to do")
        elif self.step:
            log.say(f"going on at epoch {self.epoch + 1}, step {self.step}")
        for writer in filter(lambda writer: writer.watch, self.log.writers):
            log.say(f"watch it: {writer.watch}")


def _check_tensor(name: str, value: object, shapes: list[torch.Size], kind: torch.dtype | None = None) -> None:
    """Raise ValueError unless a value of a state is a tensor of one of `shapes`, and of the type `kind` if given."""
    if not isinstance(value, torch.Tensor) or value.shape not in shapes or kind not in (None, value.dtype):
        raise ValueError(f"{name}: {list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__}")


def _options(ours: dict, saved: dict) -> dict:
    """Return an optimiser's saved options; those that are no numbers, such as `fused`, are this start's own.

    Raises: ValueError where a saved option is no number, or not as many.
    """
    def form(value: object) -> object:
        if isinstance(value, (tuple, list)):
            return [form(item) for item in value]
        return "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    numbers = {name: form(value) for name, value in ours.items() if name != "params" and form(value) is not None}
    for name, wanted in numbers.items():
        if form(saved.get(name)) != wanted:
            raise ValueError(f"{name} of the optimiser")
    return saved | {name: value for name, value in ours.items() if name not in ("params", *numbers)}
