"""The same as `vqvae2 extract`; the manual is the docstring of vqvae2/commands/extract.py (see --help)."""

from vqvae2.commands import main

if __name__ == "__main__":
    main("extract")
