"""The same as `vqvae2 evaluate`; the manual is the docstring of vqvae2/commands/evaluate.py (see --help)."""

from vqvae2.commands.evaluate import main
from vqvae2.common.errors import run_script

if __name__ == "__main__":
    run_script(main)
