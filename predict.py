"""The same as `vqvae2 predict`; the manual is the docstring of vqvae2/commands/predict.py (see --help)."""

from vqvae2.commands.predict import main
from vqvae2.common.errors import run_script

if __name__ == "__main__":
    run_script(main)
