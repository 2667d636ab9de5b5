"""The same as `vqvae2 evaluate`; the manual is the docstring of vqvae2/commands/evaluate.py (see --help)."""

from vqvae2.commands import main

if __name__ == "__main__":
    main("evaluate")
