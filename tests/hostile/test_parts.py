"""The first tries of each part of `make soak`."""

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile.part import Part

PARTS: list[Part] = [importlib.import_module(f"hostile.{path.stem}").PART
                     for path in sorted(Path(__file__).parent.glob("*.py"))
                     if path.stem not in ("part", "soak", "__init__") and not path.stem.startswith("test_")]


@pytest.fixture(scope="module")
def prepared() -> dict[Callable, Path]:
    """The folders that parts have prepared so far, by the function that fills them: some parts have one together."""
    return {}


@pytest.mark.parametrize(("part", "number"), [(part, number) for part in PARTS for number in range(part.in_suite)],
                         ids=lambda value: value.name if isinstance(value, Part) else str(value))
def test_a_hostile_input_ends_in_one_word(part, number, prepared, tmp_path, tmp_path_factory):
    if part.prepare not in prepared:
        prepared[part.prepare] = tmp_path_factory.mktemp(part.name)
        part.prepare(prepared[part.prepare])
    word = part.try_one(number, tmp_path, prepared[part.prepare])
    assert len(word.split()) == 1
