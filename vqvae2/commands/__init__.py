"""The first word after `vqvae2` -> the command of that name; the modules of other commands are not loaded.

A command is a module of this package: its docstring is its manual, its `main` takes the words after its name.
"""

import importlib
import sys

from vqvae2 import __version__
from vqvae2.common import memory, output
from vqvae2.common.errors import UserError, run_script

# Each command and what it turns into what, for --help; its module has _ for -.
COMMANDS = {
    "run": "a folder of scans -> the whole chain, to the report",
    "demo-scans": "synthetic brain scans, to try everything on",
    "extract": "raw brain scans -> slices, their manifest, a split by subject",
    "train-vqvae": "slices -> a hierarchical VQ-VAE-2, or a plain VQ-VAE",
    "train-prior": "a VQ-VAE's codes -> the prior of one level (PixelCNN)",
    "train-decoder": "a VQ-VAE's codes -> a second decoder, which adds likely detail",
    "train-denoiser": "a VQ-VAE and noise -> a denoiser, which keeps its codes",
    "train-features": "slices -> a network whose features judge samples",
    "sample": "a VQ-VAE and its priors -> new images, or completed ones",
    "evaluate": "a VQ-VAE and its priors -> the figures of one split",
    "report": "reports of evaluate -> one page to send, which compares them",
    "predict": "any images or scans -> what a VQ-VAE makes of them",
    "compress": "images and scans -> small files of a VQ-VAE's codes",
    "decompress": "these files -> images and scans",
    "tune": "many short trainings -> the best settings, as a preset",
    "curves": "the logs of several runs -> their curves in one picture",
    "status": "a run's folder -> how far the run is",
    "publish": "a run -> a folder that may be passed on",
}


def main(command: str | None = None) -> None:
    """Run a command, by default the command that the command line names, and exit with its status."""
    run_script(lambda: _run(command))


def _run(command: str | None) -> None:
    word, *arguments = [command, *sys.argv[1:]] if command else sys.argv[1:] or ["--help"]
    if word in ("-h", "--help", "help"):
        output.is_result()
        width = max(map(len, COMMANDS))
        print(f"vqvae2 {__version__}: raw brain scans to slices, a VQ-VAE-2, its priors, new images and figures.\n\n"
              + "\n".join(f"    vqvae2 {name:{width}}  {what}" for name, what in COMMANDS.items())
              + "\n\nvqvae2 COMMAND --help explains a command. Trainings on several GPUs:\n    python -m "
              "torch.distributed.run --standalone --nnodes=1 --nproc_per_node=8 -m vqvae2 train-vqvae …")
    elif word in ("-V", "--version", "version"):
        output.is_result()
        print(f"vqvae2 {__version__}")
    elif word not in COMMANDS:
        raise UserError(f"vqvae2 {word}: expected one of {', '.join(COMMANDS)}, found {word}. See vqvae2 --help.")
    else:
        sys.argv = [sys.argv[0] if command else f"vqvae2 {word}", *arguments]
        with memory.without_collection():
            module = importlib.import_module(f"vqvae2.commands.{word.replace('-', '_')}")
        module.main(arguments)
