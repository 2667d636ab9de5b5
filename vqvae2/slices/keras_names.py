"""The manifest of extracted slices -> the same images once more, in the layout of the OASIS PNG release.

    keras_png_slices_train, _validate, _test    case_001_slice_0.nii.png: links to the images (hard links, which need
                                                no room; copies where the file system has none)
    cases.csv                                   case,subject,split,image,link

A subject is a case; cases are counted in the order of the subjects' names, and slices through all images of a subject
in the manifest's order. So the numbers are the same as long as subjects and images are, and may change with them.

Links can be told from other files by cases.csv alone, and only what it names is ever removed. Links are made anew, all
of them, whenever one of them would change. Meanwhile there is no manifest, and cases.csv is `.cases-before.csv`, which
names the links of before and those to come: first all old links go, and then the new ones come.
"""

import contextlib
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from vqvae2.common.errors import expect
from vqvae2.common.names import CASES_UNFINISHED, KERAS, SPLITS, SUFFIXES
from vqvae2.slices.scan_slices import csv_bytes, put_manifest_aside, read_table, sha256_of, write, writing

CASES = "cases.csv"
COLUMNS = ("case", "subject", "split", "image", "link")
FOLDERS = {split: f"{KERAS}{split}" for split in SPLITS}
LINK_NAME = rf"({'|'.join(FOLDERS.values())})/case_\d{{3,}}_slice_\d+\.nii\.png"


def links_of(manifest: Sequence[dict]) -> list[dict]:
    """Return a link for each row of a manifest, by case and number: the columns of cases.csv, and the image's sha256.

    `image` and `link` are paths relative to the folder of slices.
    """
    rows_of: dict[str, list[dict]] = defaultdict(list)
    for row in manifest:
        rows_of[row["subject"]].append(row)
    digits = max(3, len(str(len(rows_of))))
    return [{"case": (case := f"case_{number:0{digits}d}"), "subject": subject, "split": row["split"],
             "image": row["image"], "link": f"{FOLDERS[row['split']]}/{case}_slice_{index}.nii.png",
             "sha256": row["sha256"]}
            for number, (subject, rows) in enumerate(sorted(rows_of.items()), 1) for index, row in enumerate(rows)]


def refuse_foreign(out: Path) -> None:
    """Raise UserError if there are pictures in the folders of this layout that are not known as links."""
    known = _known_links(out)
    foreign = sorted(f"{folder}/{path.name}" for folder in FOLDERS.values() for path in (out / folder).glob("[!.]*")
                     if (path.suffix.lower() in SUFFIXES or path.is_dir()) and f"{folder}/{path.name}" not in known)
    expect(not foreign, f"--out {out}", f"nothing but its own links, which {CASES} names, in {FOLDERS['train']} and "
           "its like", f"{len(foreign)} other(s), such as {foreign[0] if foreign else ''}",
           "Move them away, or name another folder.")


def link(out: Path, links: Sequence[dict]) -> list[str]:
    """Make these links the only links of this layout in `out`; return the lines for the user.

    Raises: UserError if `out` cannot be written.
    """
    known, table, copies = _known_links(out), csv_bytes(COLUMNS, links), 0
    if not known and not links:
        return []
    with writing(out):
        if not links or hashlib.sha256(table).hexdigest() != sha256_of(out / CASES) or not all(
                sha256_of(out / new["link"]) == new["sha256"] for new in links):
            put_manifest_aside(out)
            names = sorted(known | {new["link"] for new in links})
            write(out / CASES_UNFINISHED, csv_bytes(("link",), [{"link": name} for name in names]))
            (out / CASES).unlink(missing_ok=True)
            for name in known:
                (out / name).unlink(missing_ok=True)
            for folder in FOLDERS.values():
                with contextlib.suppress(OSError):  # not there, or something else is in it
                    (out / folder).rmdir()
                if links:
                    (out / folder).mkdir(exist_ok=True)
            copies = sum(not _make(out, new) for new in links)
            if links:
                write(out / CASES, table)
        (out / CASES_UNFINISHED).unlink(missing_ok=True)
    if not links:
        return [f"removed: {len(known)} links of an earlier --layout keras_png_slices"]
    as_copies = f", {copies} of them copies, as this file system has no hard links" if copies else ""
    return [f"layout: {len(links)} links for {len({new['case'] for new in links})} cases in "
            f"{', '.join(FOLDERS.values())}{as_copies}; who is which: {out / CASES}"]


def _make(out: Path, new: dict) -> bool:
    """Make one link; return whether it is a link, and no copy."""
    try:
        os.link(out / new["image"], out / new["link"])
    except OSError:  # the file system has none, or no more for this file
        write(out / new["link"], (out / new["image"]).read_bytes(), synced=False)
        return False
    return True


def _known_links(out: Path) -> set[str]:
    """Return the names of all links that this or an earlier run has made, or was about to make."""
    return {row["link"] for table in (CASES, CASES_UNFINISHED) for row in read_table(out / table)
            if re.fullmatch(LINK_NAME, row.get("link") or "")}
