"""The same as `vqvae2 demo-scans`; the manual is the docstring of vqvae2/commands/demo_scans.py (see --help)."""

from vqvae2.commands import main

if __name__ == "__main__":
    main("demo-scans")
