"""Unsigned integers <-> few bytes: LEB128, 7 bits a byte, low ones first, the high bit set but for the last byte."""

MOST_BYTES = 5
"""An integer has at most so many bytes."""


def varint(number: int) -> bytes:
    """Return the bytes of an integer of at most 35 bits."""
    low, high = number & 127, number >> 7
    return bytes([low | 128]) + varint(high) if high else bytes([low])


def read_varint(data: bytes, start: int = 0) -> tuple[int, int]:
    """Return the integer that begins at `start`, and where the next byte is. Raises: ValueError if it does not end."""
    for length, byte in enumerate(data[start:start + MOST_BYTES], 1):
        if byte < 128:
            number = sum((part & 127) << 7 * place for place, part in enumerate(data[start:start + length]))
            return number, start + length
    raise ValueError("a number that does not end")
