"""The same as `vqvae2 extract`; the manual is the docstring of vqvae2/commands/extract.py (see --help)."""

from vqvae2.commands.extract import main
from vqvae2.common.errors import run_script

if __name__ == "__main__":
    run_script(main)
