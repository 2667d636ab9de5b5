"""The same as `vqvae2 train-vqvae`; the manual is the docstring of vqvae2/commands/train_vqvae.py (see --help)."""

from vqvae2.commands import main

if __name__ == "__main__":
    main("train-vqvae")
