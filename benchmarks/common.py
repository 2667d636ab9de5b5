"""This machine -> its name in a benchmark's first line, this process's memory; what the benchmarks share."""

import platform
import re
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


def forget_peak() -> int:
    """Let `peak` count from here on; return the bytes of memory that this process has now. Linux only."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak of what was here before exec, which getrusage would count
    return _resident("VmRSS")


def peak() -> int:
    """Return the most bytes of memory that this process has had since `forget_peak`."""
    return _resident("VmHWM")


def _resident(name: str) -> int:
    return 1024 * int(re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])


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
