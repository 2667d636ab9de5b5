"""Codes that are written here -> how many of them are decoded wrongly with other threads, batches and kernels.

    python benchmarks/elsewhere.py slices-64 --vqvae vqvae-64 --top top-64 --bottom bottom-64 --images 640

The slices of all splits are encoded once, in this process. Then each setting of SETTINGS decodes them in a process of
its own, and compares every code. Priors are told a random position, and for each third slice none. Threads count in the
decoder too, which computes on one in the product.
"""

import os
import pickle
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from common import CodedSlices, processor

from vqvae2.common import random_numbers, statistics
from vqvae2.common.names import SPLITS
from vqvae2.common.progress import Bar
from vqvae2.compression import code_streams, models
from vqvae2.images import dataset
from vqvae2.images.settings import DataSettings
from vqvae2.models import encoding

SSE = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"}
SETTINGS = ((1, 64, {}), (1, 8, {}), (1, 1, {}), (2, 64, {}), (1, 48, AVX2), (1, 64, SSE), (1, 8, SSE),
            (1, 32, {"MKL_CBWR": "COMPATIBLE"}))
"""Threads, batch, environment."""


@dataclass(frozen=True)
class Given(CodedSlices):
    """Settings of the benchmark."""

    images: int = 240
    """Slices of all splits, evenly chosen."""
    decode: tuple[str, ...] = ()
    """With which the benchmark starts itself: what was written, threads, batch."""


def written(given: Given, own: models.Models) -> tuple[dict[str, torch.Tensor], torch.Tensor, list[bytes]]:
    """Return the codes of the slices, what the priors are told, and the streams."""
    found = dataset.load_images(DataSettings(data=given.slices), SPLITS).splits
    levels = {level: torch.cat([encoding.extract(own.vqvae.model, found[split], 32).levels[level] for split in SPLITS])
              for level in own.priors}
    items = statistics.evenly(len(levels["top"]), given.images)
    levels = {level: codes[items] for level, codes in levels.items()}
    draws = random_numbers.generator(0, "what priors are told")
    known = torch.randn(len(items), len(code_streams.columns_of(own.priors)), generator=draws)
    known[::3] = torch.nan
    with Bar(total=len(items), desc="coding", unit="slice") as bar:
        return levels, known, code_streams.encode(own.priors, levels, known, 32, bar.update)


def decoded(own: models.Models, path: Path, threads: int, batch: int) -> str:
    """Return how many codes there are, how many are wrong, and the name of torch's kernels."""
    torch.set_num_threads(threads)
    levels, known, streams = pickle.loads(path.read_bytes())
    decode = code_streams.decode if threads == 1 else code_streams.decode.__wrapped__  # without `one_thread`
    wrong = total = 0
    for items in torch.arange(len(streams)).split(batch):
        found, readable = decode(own.priors, [streams[item] for item in items], known[items])
        for level, codes in found.items():
            wrong += int(((codes != levels[level][items]) | ~torch.tensor(readable)[:, None, None]).sum())
            total += codes.numel()
    return f"{total} {wrong} {torch.backends.cpu.get_cpu_capability()}"


def main() -> None:
    given = tyro.cli(Given, description=__doc__)
    own = models.load(given.vqvae, given.top, given.bottom)
    if given.decode:
        path, threads, batch = given.decode
        print(decoded(own, Path(path), int(threads), int(batch)))
        return
    print(f"{processor()}, torch {torch.__version__}\n\n| torch's kernels | environment | threads | batch | codes | "
          "wrong |\n|---|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "written"
        path.write_bytes(pickle.dumps(written(given, own)))
        for threads, batch, environment in SETTINGS:
            words = [sys.executable, *sys.argv, "--decode", str(path), str(threads), str(batch)]
            ended = subprocess.run(words, env={**os.environ, **environment}, check=True, stdout=subprocess.PIPE,
                                   text=True)
            total, wrong, kernels = ended.stdout.split()
            said = " ".join(f"{name}={value}" for name, value in environment.items()) or "–"
            print(f"| {kernels} | {said} | {threads} | {batch} | {int(total):,} | {wrong} |", flush=True)


if __name__ == "__main__":
    main()
