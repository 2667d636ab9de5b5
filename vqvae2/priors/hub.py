"""The config and weights in a folder -> a prior: `Prior.from_pretrained` and `save_pretrained`."""

from collections.abc import Mapping

import torch

from vqvae2.priors import conditions
from vqvae2.priors.settings import PriorSettings
from vqvae2.runs.hub import Pretrained
from vqvae2.settings.parsing import from_dict


class PretrainedPrior(Pretrained):
    """The part of `Prior` that reads it from, and writes it to, folders and the Hugging Face hub."""

    kind = "prior"

    @classmethod
    def _from_config(cls, config: dict, tensors: Mapping[str, torch.Tensor]) -> Pretrained:
        # Weights may be stored in 16 bit; the model is built in 32.
        table, *top_table = (tensors[name].float() for name in ("table", "conditioner.table") if name in tensors)
        return cls(from_dict(PriorSettings, config["settings"]), table, config["shape"], *top_table,
                   **({"top_shape": config["top_shape"]} if top_table else {}),
                   columns=conditions.from_json(config.get("columns", [])))
