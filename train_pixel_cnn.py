"""The same as `vqvae2 train-prior`; the manual is the docstring of vqvae2/commands/train_prior.py (see --help)."""

from vqvae2.commands.train_prior import main
from vqvae2.common.errors import run_script

if __name__ == "__main__":
    run_script(main)
