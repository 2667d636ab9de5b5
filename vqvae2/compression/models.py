"""Names of a VQ-VAE and its priors -> the models that write and read files, and the hashes by which files know them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from vqvae2.common import distributed
from vqvae2.common.errors import expect
from vqvae2.compression import coder
from vqvae2.compression.container import HASH
from vqvae2.models.autoencoder import TrainedVqvae
from vqvae2.priors.base import Prior
from vqvae2.priors.conditions import Column
from vqvae2.runs import weights
from vqvae2.sampling import sampler


@dataclass(frozen=True)
class Models:
    """These are the models of a file.

    Attributes:
        priors: by level, top first, in float64.
        names: how the user named them, by flag.
        hashes: the beginning of each one's hash, 12 hex digits, by flag.
    """

    vqvae: TrainedVqvae
    priors: Mapping[str, Prior] = field(repr=False)
    names: Mapping[str, str]
    hashes: Mapping[str, str]

    @property
    def columns(self) -> tuple[Column, ...]:
        """Return the columns of which the priors are told, each once."""
        return tuple(dict.fromkeys(column for prior in self.priors.values() for column in prior.columns))

    def expect_own(self, what: str, hashes: Sequence[str]) -> None:
        """Raise UserError unless a file's hashes are those of the models. `what`: the file."""
        expect(len(hashes) == len(self.hashes), what, f"a file of {len(self.hashes)} models, as are named",
               f"one of {len(hashes)}", "Name those with which it was made.")
        for (name, own), found in zip(self.hashes.items(), hashes):
            expect_equal(f"{name} {self.names[name]}", own, found, what)


def expect_equal(flag: str, own: str, found: str, what: str) -> None:
    """Raise UserError unless a model's hash is the one that is found in a file, `what`."""
    expect(own == found, f"--{flag}", f"the model of {what}, whose hash begins with {found}",
           f"one that begins with {own}", "Name the models with which it was made.")


def load(vqvae: str, top: str, bottom: str | None, results: Path = Path("results")) -> Models:
    """Return the models that are named.

    Raises: UserError if one is missing, or they do not belong together.
    """
    coder.expect_installed()
    device = distributed.pick_device()
    device = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
    loaded, priors = sampler.load_models(vqvae, top, bottom, device, results)
    missing = [level for level in loaded.model.levels if level not in priors]
    expect(not missing, f"--{missing[0] if missing else 'top'}", f"a prior for each level of --vqvae {vqvae}", "none",
           "Name it.")
    hashes = {"vqvae": loaded.hash, **{level: weights.weights_hash(prior.state_dict())
                                       for level, prior in priors.items()}}
    return Models(loaded, sampler.in_float64(priors), {"vqvae": vqvae, "top": top, "bottom": bottom or ""},
                  {name: own[:2 * HASH] for name, own in hashes.items()})
