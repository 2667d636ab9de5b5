"""JSON that anyone may have written -> values of their declared types, or one line that names the field.

A type is an annotation as the dataclasses of settings have it: bool, int, float, str, Path, dict, `X | None`, Literal,
tuples and lists of such, and dataclasses, whose own rules (checks.Checked) then say which values they take.
"""

import dataclasses
import json
import math
import types
import typing
from pathlib import Path
from typing import TypeVar

from vqvae2.common.errors import UserError, expect
from vqvae2.common.files import in_brief, read_at_most

Settings = TypeVar("Settings")
MOST_BYTES, MOST_VALUES = 32 * 2**20, 1_500_000
"""The most JSON that is read, in bytes and in values: a run on a million images needs less, and no text of this size
takes more than 100 MB in memory."""
LARGEST = 2**53
"""Whole numbers beyond it are none that this project has written: other programs read them as floats."""
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "the name of a file",
         dict: "named values"}
ADVICE = "Copy the file again from where it came, or make it again."


def read_json(path: Path, what: str, advice: str = ADVICE) -> dict:
    """Return the named values in a JSON file. Raises: UserError if it does not hold `what`, such as "a record"."""
    try:
        found = parse(read_at_most(path, MOST_BYTES))
        if not isinstance(found, dict):
            raise ValueError("other JSON")
        return found
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: expected {what}, found {in_brief(error)}. {advice}") from None


def parse(text: bytes | str) -> object:
    """Return the values of JSON text, all of whose numbers are finite.

    Raises: ValueError where it is no JSON, is larger than what this project writes, or a name stands twice.
    """
    text = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    values = text.count(b",") + text.count(b"[") + 4 * text.count(b"{")  # named values take most memory
    if len(text) > MOST_BYTES or values > MOST_VALUES:
        raise ValueError(f"{len(text)} bytes of JSON")
    try:
        found = json.loads(text.decode("utf-8"), object_pairs_hook=_named_once, parse_int=_number,
                           parse_float=_number, parse_constant=_number)
        if b"\\u" in text:  # half of a character, which no file and no terminal takes, unless it is a file name's byte
            json.dumps(found, ensure_ascii=False).encode(errors="surrogateescape")
        return found
    except RecursionError:
        raise ValueError("lists in lists without end") from None


def _named_once(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in found if names.count(name) > 1)[:60]!r} twice")
    return found


def _number(text: str) -> int | float:
    """Return a number of JSON, or of what Python takes for it (NaN, Infinity)."""
    if text.lstrip("-").isdigit() and len(text) < 20:
        return int(text)
    if not math.isfinite(number := float(text)):
        raise ValueError(f"the number {text[:60]}")
    return number


def from_dict(settings: type[Settings], values: dict, where: str = "settings") -> Settings:
    """Return a dataclass from what `parsing.as_dict` made of it; values that this version lacks are left out.

    Args:
        where: the file, and the field in it, for the error message.
    Raises: UserError if a value is missing, of another type than is declared, or against the dataclass's rules.
    """
    kinds = typing.get_type_hints(settings)  # without the remarks of Annotated
    given = {}
    for field in filter(lambda field: field.init, dataclasses.fields(settings)):
        if field.name in values:
            given[field.name] = as_declared(values[field.name], kinds[field.name], f"{where}.{field.name}")
        else:
            has_default = (field.default, field.default_factory) != (dataclasses.MISSING,) * 2
            expect(has_default, f"{where}.{field.name}", WORDS.get(kinds[field.name], "a value"), "nothing", ADVICE)
    try:
        return settings(**given)
    except UserError as error:
        raise UserError(f"{where}: {str(error)[:500]}") from None


def as_declared(value: object, kind: object, where: str) -> object:
    """Return a JSON value as the type `kind`: lists as tuples, text as paths, named values as a dataclass.

    Args and Raises: as for `from_dict`.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):  # only `X | None` is in use
        return None if value is None else as_declared(value, args[0], where)
    if origin is typing.Literal:
        _check(any(value == choice and type(value) is type(choice) for choice in args), where,
               f"one of {', '.join(map(str, args))}", value)
    elif origin in (tuple, list):
        is_open = origin is list or args[-1] is ...
        _check(isinstance(value, (list, tuple)) and (is_open or len(value) == len(args)), where,
               "a list" if is_open else f"a list of {len(args)}", value)
        if is_open and args[0] is str and all(type(item) is str for item in value):
            return origin(value)  # the hashes of a million images
        return origin(as_declared(item, of, f"{where}[{i}]")
                      for i, (item, of) in enumerate(zip(value, args[:1] * len(value) if is_open else args)))
    elif origin is dict or dataclasses.is_dataclass(kind):
        _check(isinstance(value, dict), where, WORDS[dict], value)
        return from_dict(kind, value, where) if origin is None else {
            as_declared(name, args[0], where): as_declared(item, args[1], f"{where}.{name[:60]}")
            for name, item in value.items()}
    elif kind is not object:
        is_kind = isinstance(value, {float: (int, float), Path: (str, Path)}.get(kind, kind))
        _check(is_kind and (kind is bool or not isinstance(value, bool)), where, WORDS[kind], value)
        _check(not isinstance(value, int) or abs(value) <= LARGEST, where, f"at most {LARGEST}", value)
        _check(kind is not Path or "\0" not in str(value), where, WORDS[kind], value)
        return Path(value) if kind is Path else value
    return value


def _check(ok: bool, where: str, rule: str, value: object) -> None:
    if not ok:
        text = f"{len(value)} values" if isinstance(value, (list, tuple, dict)) else json.dumps(
            value, ensure_ascii=False, default=str)
        raise UserError(f"{where}: expected {rule}, found {text if len(text) < 60 else text[:57] + '…'}. {ADVICE}")
