"""A model and numbered items -> a trained run in a folder: the loop, as a base class to build upon.

    from trainer import Share, Trainer

`Trainer`'s docstring lists what a subclass provides; vqvae2/training/ has the loop and the subclasses of this project,
tests/helpers/slow_line.py one that trains a straight line.
"""

from vqvae2.training.trainer import Share, Trainer

__all__ = ["Share", "Trainer"]
