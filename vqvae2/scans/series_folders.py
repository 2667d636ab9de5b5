"""Paths of DICOM folders and what their headers say -> which folder of each path is a series' own, and no person's.

p01/S0002 and p01/S0003 may be two people of a group p01, or two series of a person p01. Two things in the headers tell:
folders side by side are series if the same examination (StudyInstanceUID) is in several of them, or if each of them is
called by no more than the description and the number of its series. Nothing in a header tells people apart: where it is
not plain that a folder is a series' own, its name is judged like any other.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

from vqvae2.scans.dicom import CONTAINERS, Glance, series_level
from vqvae2.scans.words import words_of

NUMBERED = re.compile(r"(?:s|se|ser|series|scan|im|image|acq|srs)?0*(\d+)")
"""A series' folder by its number: 3, S0003, series3."""


def own_levels(found: Sequence[tuple[str, Glance]]) -> list[int | None]:
    """Return for each folder the index of the part of its path that is the series' own; None if none is for certain.

    Args:
        found: the folders' paths below the searched folder, "." for itself, and what their headers say.
    """
    levels = [series_level(PurePosixPath(name).parts) for name, _ in found]
    beside: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, (name, _) in enumerate(found):
        if levels[i] >= 0:
            beside[PurePosixPath(name).parts[:levels[i]]].append(i)
    own: list[int | None] = [None] * len(found)
    for above, folders in beside.items():
        # Echoes and a scan's parts may lie in folders below one of the series' name.
        names = {i: PurePosixPath(found[i][0]).parts[levels[i]] for i in folders}
        studies = Counter(study for study, _ in {(found[i][1].study, names[i]) for i in folders} if study)
        are_numbered = bool(above) and all(_is_called_by_its_series(names[i], found[i][1]) for i in folders)
        for i in folders:
            if are_numbered or studies[found[i][1].study] > 1:
                own[i] = levels[i]
    return own


def _is_called_by_its_series(name: str, glance: Glance) -> bool:
    """Return whether a folder's name holds nothing but words of the series' description, its number, and "DICOM"."""
    known = {*words_of(glance.description), *CONTAINERS}
    rest = [word for word in words_of(name) if word not in known]
    return all((match := NUMBERED.fullmatch(word)) is not None and int(match[1]) == glance.number for word in rest)
