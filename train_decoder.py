"""The same as `vqvae2 train-decoder`; the manual is the docstring of vqvae2/commands/train_decoder.py (see --help)."""

from vqvae2.commands import main

if __name__ == "__main__":
    main("train-decoder")
