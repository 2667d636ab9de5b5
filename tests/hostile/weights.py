"""Models of strangers: a field of the config, a tensor or the file itself is another than it should be.

A try ends as "refused", in one UserError, or as "same": the change is one that harms nothing, and the model computes
what it did.
"""

import json
import random
from pathlib import Path

import torch
from hostile.part import Part, with_one_change
from tiny_models import SIDE, check_line, write_prior, write_vqvae

from vqvae2.common.errors import UserError
from vqvae2.models.autoencoder import load_vqvae
from vqvae2.runs import weights
from vqvae2.sampling.sampler import load_models

CPU = torch.device("cpu")
VALUES = (None, True, False, 0, 1, -1, 2, 3, 7, 2**31, -2**63, 10**30, 0.5, -0.0, 1e300, "", "x", "ema", "128", "\0",
          "\ud800", [], [1], [[]], [1, 2, 3], ["a", "a"], [0, 0], [1e9, 4], {}, {"a": 1}, {"train": "x"})


def prepare(folder: Path) -> None:
    write_vqvae(folder / "vqvae")
    vqvae = load_vqvae(str(folder / "vqvae"), CPU)
    for level in ("top", "bottom"):
        write_prior(folder / level, vqvae.hash, level)


def other_tensors(tensors: dict[str, torch.Tensor], chance: random.Random) -> dict[str, torch.Tensor]:
    changed, name = dict(tensors), chance.choice(sorted(tensors))
    tensor = changed.pop(name)
    changed |= chance.choice([
        lambda: {}, lambda: {name[:-1]: tensor}, lambda: {name: tensor, "another": tensor},
        lambda: {name: tensor[None]}, lambda: {name: torch.cat([tensor.flatten(), tensor.flatten()])},
        lambda: {name: tensor.to(chance.choice([torch.int64, torch.bool, torch.int8]))},
        lambda: {name: torch.full_like(tensor.float(), chance.choice([torch.nan, torch.inf, -torch.inf, 1e30]))},
        lambda: {name: tensor.double() * 1e30 + 1e30}, lambda: {name: tensor.double()}])()
    return changed


def other_bytes(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    kind, at = chance.randrange(4), chance.randrange(len(content))
    if kind == 0:
        content = content[:at]
    elif kind == 1:
        content[at] ^= 1 << chance.randrange(8)
    elif kind == 2:
        content[at:at + 64] = chance.randbytes(64)
    else:
        content[:8] = chance.choice([2**63, 2**40, 0, 7, len(content)]).to_bytes(8, "little")
    path.write_bytes(content)


@torch.no_grad()
def output(folder: Path) -> list[torch.Tensor]:
    """What the models in a folder make of one picture, and of no codes."""
    vqvae, priors = load_models(*(str(folder / name) for name in ("vqvae", "top", "bottom")), CPU)
    picture = torch.linspace(0, 1, SIDE**2).view(1, 1, SIDE, SIDE)
    codes = vqvae.model.encode(picture)
    known = torch.tensor([[0.5, 1.0]])
    return [vqvae.model.decode(codes), *codes.values(), priors["top"](codes["top"], None, known),
            priors["bottom"](codes["bottom"], codes["top"], known)]


def try_one(number: int, folder: Path, prepared: Path) -> str:
    chance = random.Random(number)
    for name in ("vqvae", "top", "bottom"):
        (folder / name).mkdir()
        (folder / name / weights.WEIGHTS).write_bytes((prepared / name / weights.WEIGHTS).read_bytes())
    path = folder / chance.choice(["vqvae", "top", "bottom"]) / weights.WEIGHTS
    tensors, config = weights.load_weights(path)
    kind = number % 4
    if kind < 2:
        path.unlink()
        weights.save_weights(path, tensors, with_one_change(config, VALUES, chance))
    elif kind == 2:
        path.unlink()
        weights.save_weights(path, other_tensors(tensors, chance), config)
    else:
        other_bytes(path, chance)
    try:
        found = output(folder)
    except UserError as error:
        check_line(error)
        return "refused"
    changed = weights.load_weights(path)
    assert kind != 3 or json.dumps(changed[1]) == json.dumps(config), "a damaged file was believed"
    expected = output(prepared)
    for ours, theirs in zip(found, expected):
        if not torch.equal(ours, theirs):
            # Another model than it was: the config's own say, such as another decay or mean of a column.
            assert kind < 2, "other tensors were believed"
            assert ours.isfinite().all(), "numbers that are not finite"
            return "different"
    return "same"


PART = Part("weights", "models whose config, tensors or bytes are changed", 3000, try_one, prepare, in_suite=40)
