"""The same as `vqvae2 train-vqvae`; the manual is the docstring of vqvae2/commands/train_vqvae.py (see --help)."""

from vqvae2.commands.train_vqvae import main
from vqvae2.common.errors import run_script

if __name__ == "__main__":
    run_script(main)
