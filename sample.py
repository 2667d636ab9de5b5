"""The same as `vqvae2 sample`; the manual is the docstring of vqvae2/commands/sample.py (see --help)."""

from vqvae2.commands import main

if __name__ == "__main__":
    main("sample")
