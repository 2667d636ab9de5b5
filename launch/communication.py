"""Default models -> bytes that each process sends in a step, and how long that takes on several networks.

    python -m launch.communication

Nothing is guessed and nothing is sent: gradients are counted from the parameters, and the exchange of the codebooks is
recorded in a forward pass and an update on the CPU, with the collectives replaced by recorders. docs/scale.md has the
printed tables.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch

from vqvae2.models.autoencoder import Vqvae
from vqvae2.models.quantizer import RESTART_EVERY, BatchPlace
from vqvae2.models.settings import VqvaeSettings
from vqvae2.priors.pixel_cnn import PixelCNN
from vqvae2.priors.settings import PriorSettings

GIGABYTES_A_SECOND = {"NVLink 4 (450 GB/s)": 450, "400 Gb/s": 50, "200 Gb/s": 25, "25 Gb/s Ethernet": 3.125}
"""In each direction, through the slowest link that all the traffic of a ring must pass."""
PROCESSES = (8, 256)
IMAGES_HERE = 2
"""Images of the step that are held here; what is sent does not depend on it."""
GLOBAL_BATCH = 512
"""Enough for as many candidates as are ever wanted; a smaller global batch may have fewer."""


@contextmanager
def recorded() -> Iterator[list[int]]:
    """Pretend to be rank 0 of 2; yield the bytes that each collective was given."""
    given: list[int] = []

    def note(tensor: torch.Tensor, *_: object, **__: object) -> None:
        given.append(tensor.numel() * tensor.element_size())

    with mock.patch.multiple("torch.distributed", is_initialized=lambda: True, get_world_size=lambda: 2,
                             get_rank=lambda: 0, all_reduce=note, broadcast=note):
        yield given


def gradient_bytes(model: torch.nn.Module) -> int:
    """Return the bytes that DDP sums over ranks in each step: one gradient of each parameter."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters() if weight.requires_grad)


def codebook_bytes(size: int) -> dict[str, int]:
    """Return what the default VQ-VAE's codebooks exchange, on images of `size` x `size`, in each kind of step."""
    model = Vqvae(VqvaeSettings(), 1, start_steps=1).train()
    pixels, positions = torch.rand(IMAGES_HERE, 1, size, size), torch.arange(IMAGES_HERE)
    found = {}
    for kind, step in {"start": 0, "step": 1, "restart": RESTART_EVERY - 1}.items():
        with recorded() as given, torch.no_grad():
            model(pixels, BatchPlace(positions, GLOBAL_BATCH, step))
            model.update_codebooks()
        found[kind] = sum(given)
    return found


def models() -> dict[str, tuple[int, dict[str, int]]]:
    """Return each default model's bytes of gradients and of codebooks."""
    made = {}
    for size in (128, 256):
        vqvae = Vqvae(VqvaeSettings())
        made[f"VQ-VAE-2, {size}²"] = (gradient_bytes(vqvae), codebook_bytes(size))
        for level, height, top in (("top", size // 8, None), ("bottom", size // 4, size // 8)):
            settings = PriorSettings(level=level)
            book = vqvae.quantizers[level].codebook
            prior = PixelCNN(settings, book, (height, height), top and book, top and (top, top))
            made[f"{level} prior, {size}²"] = (gradient_bytes(prior), {})
    return made


def sent(given: float, processes: int) -> float:
    """Return the bytes that each process sends when `given` bytes are summed over `processes` in a ring."""
    return given * 2 * (processes - 1) / processes


def main() -> None:
    """Print the tables of docs/scale.md."""
    print("| model | gradients | codebooks, each step | more at a restart | more at the start |\n|---|---|---|---|---|")
    counted = models()
    for name, (gradients, books) in counted.items():
        each, restart, start = (books.get(kind, 0) for kind in ("step", "restart", "start"))
        shown = (f"{value / 1e6:.2f} MB" if value else "–" for value in (gradients, each, restart - each, start))
        print(f"| {name} | {' | '.join(shown)} |")
    print(f"\n| model | GPUs | sent by each | {' | '.join(GIGABYTES_A_SECOND)} |\n|---|---|---|" + "---|" * 4)
    for name, (gradients, books) in counted.items():
        each = books.get("step", 0) + (books.get("restart", 0) - books.get("step", 0)) / RESTART_EVERY
        for processes in PROCESSES:
            bytes_sent = sent(gradients + each, processes)
            times = (f"{bytes_sent / speed / 1e6:.2g} ms" for speed in GIGABYTES_A_SECOND.values())
            print(f"| {name} | {processes} | {bytes_sent / 1e6:.1f} MB | {' | '.join(times)} |")


if __name__ == "__main__":
    main()
