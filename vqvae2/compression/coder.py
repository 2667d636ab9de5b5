"""Symbols and integer tables of their frequencies <-> bytes: a range coder [1] that any machine reads alike.

The coder is constriction's [2], with words of 32 bits, a state of 64, and tables of 24: a symbol of frequency f costs
24 - log2 f bits. That library takes probabilities as floating-point numbers, from which it makes tables of its own
by a rule that depends on their type. Here it is given whole numbers, frequencies less 1, whose sum 2^24 - K is
the number by which the library would scale them: the scale is then exactly 1, and its table is the one that was meant.

1. Martin 1979, Range encoding: an algorithm for removing redundancy from a digitised message.
2. Bamler 2022, Understanding entropy coding with asymmetric numeral systems: a statistician's perspective.
"""

from types import ModuleType

import numpy as np

from vqvae2.common.errors import UserError

PRECISION = 24
TOTAL = 1 << PRECISION
"""What the frequencies of a table sum up to."""
WORD = np.dtype("<u4")
"""A piece of the coder's output."""


class Encoder:
    """The way from symbols to bytes, some symbols at a time."""

    def __init__(self):
        stream = _constriction().stream
        self._model, self._encoder = stream.model.Categorical(perfect=False), stream.queue.RangeEncoder()

    def encode(self, starts: np.ndarray, ends: np.ndarray) -> None:
        """Go on with m symbols: of TOTAL numbers each owns those from its start up to its end, that one left out.

        Args:
            starts, ends: whole numbers `[m]`, 0 <= start < end <= TOTAL, not both 0 and TOTAL.
        All that the coder makes of a table are these two: any table in which they are a symbol's gives the same bytes.
        """
        first, last = starts == 0, ends == TOTAL
        lower = np.where(first, ends, np.where(last, 1, starts))
        upper = np.where(first, TOTAL - 1, np.where(last, starts, ends))
        tables = np.stack([lower, upper - lower, TOTAL - upper], 1)
        symbols = (1 - first + last).astype(np.int32)
        # Where others own a single number, there are two symbols and not three.
        changes = np.flatnonzero(np.diff(lower == upper)) + 1
        for own, numbers in zip(np.split(tables, changes), np.split(symbols, changes)):
            if len(own) and not own[0, 1]:
                own, numbers = own[:, ::2], numbers // 2
            self._encoder.encode(numbers, self._model, _as_library_wants(own))

    def bytes(self) -> bytes:
        """Return the bytes of all symbols so far."""
        return self._encoder.get_compressed().astype(WORD).tobytes()


class Decoder:
    """The way back from the bytes of `encode`, some symbols at a time.

    Args:
        data: the bytes of `Encoder`; a multiple of 4.
    """

    def __init__(self, data: bytes):
        stream = _constriction().stream
        self._model = stream.model.Categorical(perfect=False)
        self._decoder = stream.queue.RangeDecoder(np.frombuffer(data, WORD).astype(np.uint32))

    def decode(self, frequencies: np.ndarray) -> np.ndarray:
        """Return the next symbols `[m]`, int32, by their tables `[m, K]`, which are those of the encoder.

        Raises: ValueError where the bytes cannot come from these tables. Usually other tables give other symbols
        without any error.
        """
        try:
            return self._decoder.decode(self._model, _as_library_wants(frequencies))
        except AssertionError as error:
            raise ValueError("bytes that the coder has not written") from error


def expect_installed() -> None:
    """Raise UserError where the library of the coder is not installed."""
    _constriction()


def _as_library_wants(frequencies: np.ndarray) -> np.ndarray:
    # Whole numbers up to 2^24 are exact in float32, and so are their sums. The library takes any table's memory for
    # that of one row after the other.
    return np.ascontiguousarray(frequencies - 1, np.float32)


def _constriction() -> ModuleType:
    """Return the library. Raises: UserError where it is not installed."""
    try:
        import constriction
    except ImportError as error:
        raise UserError("compression: expected the package constriction, found that it is not installed. "
                        "Run: pip install 'vqvae2-brain-mri[compress]'.") from error
    return constriction
