"""Scans -> the names, in a BIDS derivative, of what is made from them, and the description of that data set.

A scan that BIDS names keeps its entities, in the order of BIDS; `desc` says what was made. Any other is named after its
subject, session and run, without the characters that BIDS does not allow:

    sub-01_ses-2_acq-mprage_run-1_T1w.nii.gz     sub-01/ses-2/anat/sub-01_ses-2_acq-mprage_run-1_desc-…_T1w.nii.gz
    OAS1_0007_MR1/…/OAS1_0007_MR1_mpr-1.hdr      sub-OAS10007/ses-MR1/anat/sub-OAS10007_ses-MR1_run-1_desc-…_T1w.nii.gz

NOTE A folder stands in .bidsignore without a / behind it, which the validator would not understand
(findings/bids-validator-folder-with-slash.sh).

No path of the machine is in what is described: a source is told by its data set's name and DOI, and by its place in it.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from vqvae2.common.files import read_at_most
from vqvae2.scans.finding import Scan
from vqvae2.scans.identities import stem_of

DESCRIPTION, IGNORED = "dataset_description.json", ".bidsignore"
BIDS_VERSION = "1.10.0"
ORDER = ("sub", "ses", "sample", "task", "acq", "ce", "trc", "stain", "rec", "dir", "run", "mod", "echo", "flip", "inv",
         "mt", "part", "proc", "hemi", "space", "split", "recording", "chunk", "atlas", "seg", "scale", "res", "den",
         "label", "desc")
"""The entities of a name, as BIDS orders them."""
LARGEST_DESCRIPTION = 1 << 20


@dataclass(frozen=True)
class Name:
    """This is what all files that are made from one scan are called."""

    entities: Mapping[str, str]
    suffix: str

    def path(self, desc: str, ending: str, suffix: str | None = None) -> Path:
        """Return the path, below the data set, of the file of this description, such as `reconstruction`."""
        entities = {**self.entities, "desc": desc}
        named = [f"{key}-{entities[key]}" for key in ORDER if key in entities]
        folders = [part for part in named if part.startswith(("sub-", "ses-"))]
        return Path(*folders, "anat", f"{'_'.join(named)}_{suffix or self.suffix}{ending}")


def names_of(scans: Sequence[Scan], suffix: str = "T1w") -> list[Name]:
    """Return a name for each scan, all different, in upper and lower case too.

    Args:
        scans: from `finding.find_scans`, or of files that were named.
        suffix: of those that BIDS does not name.
    Where two would be alike, 8 hex digits of the hash of a scan's path join its `acq`.
    """
    names = [_name_of(scan, suffix) for scan in scans]
    keys = [name.path("", "").as_posix().casefold() for name in names]
    count = Counter(keys)
    return [name if count[key] == 1 else replace(name, entities={**name.entities, "acq": name.entities.get("acq", "")
            + hashlib.sha256(scan.name.encode()).hexdigest()[:8]}) for scan, name, key in zip(scans, names, keys)]


def _name_of(scan: Scan, suffix: str) -> Name:
    stem = stem_of(scan.path.name) or ""
    *parts, last = stem.split("_")
    pairs = dict(part.split("-", 1) for part in parts if "-" in part)
    if "sub" in pairs and last.isalnum():
        return Name({key: label for key in ORDER if (label := _label(pairs.get(key, "")))}, last)
    own = {"sub": scan.subject or stem or "unknown", "ses": scan.session, "run": scan.run}
    return Name({key: label for key, text in own.items() if (label := _label(text))}, suffix)


def _label(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "", text)


def data_set_of(path: Path) -> tuple[Path | None, dict[str, str]]:
    """Return the folder of the BIDS data set that a file or folder lies in, and what SourceDatasets says of it.

    None and {} where it lies in none.
    """
    here = path.resolve()
    for folder in (here, *here.parents):
        if (folder / DESCRIPTION).is_file():
            said = {}
            with suppress(OSError, ValueError):
                said = json.loads(read_at_most(folder / DESCRIPTION, LARGEST_DESCRIPTION))
            said = said if isinstance(said, dict) else {}
            doi = re.sub(r"^(doi:|https?://(dx\.)?doi\.org/)?(?=10\.)", "doi:", str(said.get("DatasetDOI", "")))
            return folder, {key: value for key, value in (("Name", str(said.get("Name", ""))), ("DOI", doi)) if value}
    return None, {}


def description_of(inputs: Sequence[Path], version: str, what: str) -> dict:
    """Return dataset_description.json of what was made.

    Args:
        inputs: files and folders. version: of this software. what: one sentence about what was made.
    """
    sources = []
    for path in inputs:
        _, said = data_set_of(path)
        if said and said not in sources:
            sources.append(said)
    names = " and ".join(source["Name"] for source in sources if "Name" in source)
    return {"Name": f"Reconstructions of {names}" if names else "Reconstructions", "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "vqvae2-brain-mri", "Version": version, "Description": what}],
            **({"SourceDatasets": sources} if sources else {})}


def place_of(path: Path) -> str:
    """Return a scan's place in its BIDS data set, or its name alone."""
    folder, _ = data_set_of(path)
    return path.resolve().name if folder is None else path.resolve().relative_to(folder).as_posix()
