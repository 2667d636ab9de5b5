"""This machine -> its name in a benchmark's first line; what the benchmarks share."""

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


def processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@dataclass(frozen=True)
class CodedSlices:
    """Settings of a benchmark that codes slices."""

    slices: Annotated[Path, tyro.conf.Positional]
    """Folder of slices, of the size that the models were trained on."""
    vqvae: str = "vqvae-128"
    """The VQ-VAE."""
    top: str = "top-128"
    """Its top prior."""
    bottom: str = "bottom-128"
    """Its bottom prior."""
