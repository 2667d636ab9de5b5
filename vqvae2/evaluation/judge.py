"""Models and a split -> `Evaluation`, which every judge of a report gets, and `Judge`, the methods of a judge.

A judge computes figures of one kind, such as the use of the codes. To add a metric, write a class with a name and
`compute`, and add a row to JUDGES in `report.py`: its metrics then appear in metrics.json and in the printed report.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch

from vqvae2.common.progress import Bar
from vqvae2.evaluation import surprise
from vqvae2.evaluation.features import Extractor
from vqvae2.evaluation.settings import EvaluateSettings
from vqvae2.images.dataset import Images, ImageSet
from vqvae2.metrics import context_model, similarity
from vqvae2.models import encoding
from vqvae2.models.autoencoder import TrainedVqvae, code_grids
from vqvae2.models.code_maps import CodeMaps
from vqvae2.priors.base import Prior

CACHED = 16
"""Images of a batch on a CPU, at most."""


@dataclass(frozen=True)
class Evaluation:
    """Models and images that are judged; results that several judges need are computed once, at the first use."""

    settings: EvaluateSettings
    vqvae: TrainedVqvae
    """The VQ-VAE is `vqvae.model`, in eval mode."""
    priors: dict[str, Prior]
    """The priors that were given, by level, in eval mode."""
    data: Images
    """The images of the split, and those of the train split where something is compared with them."""
    trained: ImageSet
    """Those images of the train split that the models were really trained on; empty where that was not read."""
    extractor: Extractor | None
    """The network in whose features samples are compared; None where samples are not judged."""
    draw: Callable[[], torch.Tensor] | None
    """Returns the samples, uint8 `[samples, channels, height, width]`; None where samples are not judged."""
    metrics: dict
    """The content of metrics.json so far: the figures of all judges that have been asked so far."""

    @property
    def out(self) -> Path:
        """The folder of the report."""
        return self.settings.out

    @property
    def images(self) -> ImageSet:
        """The images of the split that is judged."""
        return self.data.splits[self.settings.split]

    @property
    def at_a_time(self) -> int:
        """Images that a model sees together: on a CPU few, whose features fit into its cache, need least time."""
        on_cpu = next(self.vqvae.model.parameters()).device.type == "cpu"
        return min(self.settings.batch, CACHED) if on_cpu else self.settings.batch

    @property
    def has_all_priors(self) -> bool:
        """True if each level of the VQ-VAE has a prior."""
        return set(self.priors) == set(self.vqvae.model.levels)

    @property
    def code_maps(self) -> CodeMaps:
        """The codes of the split's images, int64 `[n, height, width]` for each level."""
        return self._encoded[0]

    @property
    def reconstructions(self) -> torch.Tensor:
        """The images that the codes alone give back, uint8 `[n, channels, height, width]`, on the CPU."""
        return self._encoded[1]

    @cached_property
    def samples(self) -> torch.Tensor | None:
        """The samples; None where samples are not judged."""
        return self.draw and self.draw()

    @cached_property
    def similarity(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return `metrics.similarity.image_figures` of the images and their reconstructions."""
        return similarity.image_figures(self.images.bytes(), self.reconstructions)

    @cached_property
    def code_bits(self) -> dict[str, torch.Tensor]:
        """Return the NLL of each code under its prior, float32 `[n, height, width]` in bits, by level."""
        return self._code_bits(self.priors, self.images.facts)

    @cached_property
    def untold_code_bits(self) -> dict[str, torch.Tensor]:
        """Return `code_bits` under priors that are given no facts about the images."""
        told = {level: prior for level, prior in self.priors.items() if prior.columns}
        return self.code_bits | self._code_bits(told, [{}] * len(self.images))

    @cached_property
    def training_codes(self) -> CodeMaps | None:
        """Return the codes of the train split; None where that split was not read, is empty, or is the split that is
        judged."""
        train = self.data.splits.get("train")
        if not train or self.settings.split == "train":
            return None
        stored = CodeMaps.load(self.vqvae.folder / "codes" / "train.npz", self.vqvae.hash,
                               self.data.describe()["data_hash"], train.names, code_grids(self.vqvae),
                               self.vqvae.model.settings.codebook_size)
        return stored or encoding.extract(self.vqvae.model, train, self.at_a_time)

    @cached_property
    def counting_bits(self) -> dict[str, dict[str, float]]:
        """Return the bits per code of the counting models for each level; {} without `training_codes`."""
        size = self.vqvae.model.settings.codebook_size
        return {} if self.training_codes is None else {
            level: context_model.context_model_bits(codes.numpy(), self.code_maps.levels[level].numpy(), size)
            for level, codes in self.training_codes.levels.items()}

    @cached_property
    def _encoded(self) -> tuple[CodeMaps, torch.Tensor]:
        # A texture decoder takes a second for an image: the bar moves on with each few.
        batch = self.at_a_time if self.vqvae.model.texture is None else min(self.settings.batch, 4)
        with Bar(total=len(self.images), desc="reconstructions", unit="image") as bar:
            return encoding.reconstruct(self.vqvae.model, self.images, batch, bar.update)

    def _code_bits(self, priors: dict[str, Prior], facts: list[dict[str, str]]) -> dict[str, torch.Tensor]:
        with Bar(total=len(priors) * len(self.images), desc="priors", unit="image") as bar:
            return surprise.code_bits(priors, self.code_maps.levels, facts, self.at_a_time, bar.update,
                                      tell_previous=True)


class Judge(Protocol):
    """A metric of a report. A subclass needs only `name` and `compute`."""

    name: str
    """Key of the judge's figures in metrics.json. `samples.probe` is the key `probe` among the figures of `samples`."""
    columns: tuple[str, ...] = ("figure", "value")
    """Head of `table`; () where there is none."""

    def compute(self, evaluation: Evaluation) -> dict | None:
        """Return the figures as JSON values, None where they are not defined.

        A judge may also write pictures here, of results that `picture` does not get, to `evaluation.out`.
        """

    def rows(self, figures: dict, report: dict) -> list[tuple[str, str]]:
        """Return the lines (what, value with its unit) that evaluate.py prints; none by default.

        Args:
            figures: what `compute` returned. report: all of metrics.json.
        """
        return []

    def table(self, figures: dict, report: dict) -> list[tuple[str, ...]]:
        """Return the rows of a table below `columns`, for the notebook and model cards; by default `rows`."""
        return self.rows(figures, report)

    def picture(self, figures: dict, evaluation: Evaluation) -> None:
        """Write pictures to `evaluation.out`; none by default. Call them <name>.png, or <name>_….png."""
