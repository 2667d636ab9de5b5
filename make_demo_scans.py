"""The same as `vqvae2 demo-scans`; the manual is the docstring of vqvae2/commands/demo_scans.py (see --help)."""

from vqvae2.commands.demo_scans import main
from vqvae2.common.errors import run_script

if __name__ == "__main__":
    run_script(main)
