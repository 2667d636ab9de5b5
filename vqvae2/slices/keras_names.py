"""The manifest of extracted slices -> the same images once more, in the layout of the OASIS PNG release.

    keras_png_slices_train, _validate, _test    case_001_slice_0.nii.png: links to the images (hard links, which need
                                                no room; copies where the file system has none)
    cases.csv                                   case,subject,split,image,link

A subject is a case; cases are counted in the order of the subjects' names, and slices through all images of a subject
in the manifest's order. So the numbers are the same as long as subjects and images are, and may change with them.

Links can be told from other files by cases.csv alone, and only what it names is ever removed. Before the first link
changes it becomes `.cases-before.csv`, which names the links of before and those to come; it is back, new, when all of
them are there. In between there are only links that are right: first all that are not go, and then the others come.
"""

import contextlib
import csv
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vqvae2.common.names import SPLITS, SUFFIXES
from vqvae2.settings.checks import expect
from vqvae2.slices.journal import writing
from vqvae2.slices.scan_slices import TEMPORARY, csv_bytes, write

KERAS = "keras_png_slices_"
CASES, UNFINISHED = "cases.csv", ".cases-before.csv"
"""The second is there while extract_slices.py --layout keras_png_slices changes its links."""
COLUMNS = ("case", "subject", "split", "image", "link")
FOLDERS = {split: f"{KERAS}{split}" for split in SPLITS}
LINK_NAME = rf"({'|'.join(FOLDERS.values())})/case_\d{{3,}}_slice_\d+\.nii\.png"


@dataclass(frozen=True)
class Link:
    """One image and its name in this layout; paths are relative to the folder of slices."""

    case: str
    subject: str
    split: str
    image: str
    link: str
    sha256: str


def links_of(manifest: Sequence[dict]) -> list[Link]:
    """Return a link for each row of a manifest, by case and number."""
    rows_of: dict[str, list[dict]] = {}
    for row in manifest:
        rows_of.setdefault(row["subject"], []).append(row)
    digits = max(3, len(str(len(rows_of))))
    links = []
    for number, (subject, rows) in enumerate(sorted(rows_of.items()), 1):
        case = f"case_{number:0{digits}d}"
        links += [Link(case, subject, row["split"], row["image"],
                       f"{FOLDERS[row['split']]}/{case}_slice_{index}.nii.png", row["sha256"])
                  for index, row in enumerate(rows)]
    return links


def refuse_foreign(out: Path) -> None:
    """Raise UserError if there are pictures in the folders of this layout that are not known as links."""
    known = _known(out)
    foreign = sorted(f"{folder}/{path.name}" for folder in FOLDERS.values() for path in (out / folder).glob("*")
                     if (path.suffix.lower() in SUFFIXES or path.is_dir()) and not path.name.startswith(".")
                     and f"{folder}/{path.name}" not in known)
    expect(not foreign, f"--out {out}", f"nothing but its own links, which {CASES} names, in {FOLDERS['train']} and "
           "its like", f"{len(foreign)} other(s), such as {foreign[0] if foreign else ''}",
           "Move them away, or name another folder.")


def remove_others(out: Path, links: Sequence[Link]) -> list[str]:
    """Remove every link of earlier runs but those that are among `links` and lead to the right image; return what is to
    be said of it, if there are to be none any more.

    Raises: UserError as `refuse_foreign` if there are to be links, or if `out` cannot be written.
    """
    if links:
        refuse_foreign(out)
    known = _known(out)
    if not known and not links:
        return []
    wanted = {link.link: link for link in links}
    stale = [name for name in sorted(known) if os.path.lexists(out / name)
             and not (name in wanted and _is_right(out, wanted[name]))]
    with writing(out):
        if stale or _table(links) != _read(out / CASES):
            write(out / UNFINISHED, csv_bytes(("link",), [{"link": name} for name in sorted(known | set(wanted))]))
            (out / CASES).unlink(missing_ok=True)
        for name in stale:
            (out / name).unlink(missing_ok=True)
        for folder in FOLDERS.values():
            for left_over in (out / folder).glob(f".*{TEMPORARY}"):
                left_over.unlink(missing_ok=True)
            if not links:
                with contextlib.suppress(OSError):  # not there, or something else is in it
                    (out / folder).rmdir()
        if not links:
            (out / UNFINISHED).unlink(missing_ok=True)
    return [] if links else [f"removed: {len(stale)} links of an earlier --layout keras_png_slices"]


def link(out: Path, links: Sequence[Link]) -> list[str]:
    """Make the links that are missing, after `remove_others`, and then cases.csv; return what is to be said of them.

    Raises: UserError if `out` cannot be written.
    """
    if not links:
        return []
    with writing(out):
        for folder in FOLDERS.values():
            (out / folder).mkdir(exist_ok=True)
        copies = sum(not _make(out, one) for one in links if not os.path.lexists(out / one.link))
    if _table(links) != _read(out / CASES):
        write(out / CASES, _table(links))
    with writing(out):
        (out / UNFINISHED).unlink(missing_ok=True)
    as_copies = f", {copies} of them copies, as this file system has no hard links" if copies else ""
    return [f"layout: {len(links)} links for {len({one.case for one in links})} cases in "
            f"{', '.join(FOLDERS.values())}{as_copies}; who is which: {out / CASES}"]


def _make(out: Path, one: Link) -> bool:
    """Make one link; return whether it is one, and no copy."""
    try:
        os.link(out / one.image, out / one.link)
    except OSError:  # the file system has none, or no more for this file
        write(out / one.link, (out / one.image).read_bytes(), synced=False)
        return False
    return True


def _is_right(out: Path, one: Link) -> bool:
    with contextlib.suppress(OSError):
        return (os.path.samefile(out / one.image, out / one.link)
                or hashlib.sha256((out / one.link).read_bytes()).hexdigest() == one.sha256)
    return False


def _known(out: Path) -> set[str]:
    """Return the names of all links that this or an earlier run has made, or was about to make."""
    names = set()
    for table in (CASES, UNFINISHED):
        with contextlib.suppress(OSError, csv.Error), \
                open(out / table, newline="", encoding="utf-8", errors="surrogateescape") as file:
            names |= {row.get("link") or "" for row in csv.DictReader(file)}
    return {name for name in names if re.fullmatch(LINK_NAME, name)}


def _table(links: Sequence[Link]) -> bytes:
    return csv_bytes(COLUMNS, [{key: value for key, value in asdict(one).items() if key in COLUMNS} for one in links])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
