"""The same as `vqvae2 predict`; the manual is the docstring of vqvae2/commands/predict.py (see --help)."""

from vqvae2.commands import main

if __name__ == "__main__":
    main("predict")
