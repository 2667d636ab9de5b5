"""MNI152 template -> synthetic T1 scans of different people, in folders like those of OASIS-3, without any download.

    vqvae2 demo-scans --out demo_scans
    vqvae2 demo-scans --out demo_scans --subjects 60 --seed 1

24 subjects (28 scans, since every sixth subject has two sessions) take about a minute on two cores and 90 MB. The
folders follow OASIS-3 in BIDS, so `vqvae2 extract --scans demo_scans` reads them like the real OASIS-3:

    demo_scans/dataset_description.json  README  participants.tsv (participant_id, age, sex)
    demo_scans/sub-OAS30001/ses-d0189/anat/sub-OAS30001_ses-d0189_T1w.nii.gz

The scans are synthetic and good for trying the software only: nothing about people can be learned from them. Each scan
is the template that nilearn contains (`pip install -e .[demo]`), bent by its own diffeomorphism, with its own folds,
ventricles, atrophy, contrast, bias field and noise, and stored with one of several axis orders, data types and voxel
sizes. Equal seeds give equal files, and a subject does not depend on --subjects. The same command goes on after a stop.
"""

import gzip
import importlib
import os
import re
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import nibabel
import numpy as np
from tqdm.contrib.concurrent import thread_map

from vqvae2.commands import endings
from vqvae2.common import files
from vqvae2.common.errors import expect
from vqvae2.common.folder_lock import claimed
from vqvae2.common.progress import Bar
from vqvae2.settings.checks import SEED, Checked
from vqvae2.settings.parsing import parse


@dataclass(frozen=True, kw_only=True)
class DemoScansSettings(Checked):
    """Settings of `vqvae2 demo-scans`."""

    out: Path
    """Folder that receives the BIDS tree."""
    subjects: int = 24
    """Number of subjects; every sixth has two sessions."""
    seed: int = 0
    """Equal seeds give equal scans."""

    RULES = (SEED, ("subjects", lambda subjects: 1 <= subjects <= 10**5, "1 to 100000", "For example 24."))


NAME = "Synthetic demonstration scans (MNI152 template, bent)"
README = """These scans are synthetic. No person was scanned.

make_demo_scans.py of vqvae2-brain-mri bent the MNI152 template (ICBM 2009a, Fonov et al. 2011, in the copy that
nilearn carries) into people that do not exist; names and folders only follow the pattern of OASIS-3. Ages, sexes
and sessions are made up. Use the scans to try the software, and for nothing that is said about people.
"""


class Subject(NamedTuple):
    """A synthetic person, who stays the same between sessions."""

    number: int
    name: str
    age: int
    sex: str
    session_days: tuple[int, ...]


def make_subject(seed: int, number: int) -> Subject:
    """Return subject `number` (from 1): BIDS name, age 42…95 in years, sex M or F, and days of the sessions."""
    generator = np.random.default_rng([seed, number, 0])
    # Names of files depend on the number only, so that another seed overwrites them and leaves nothing stale.
    days = np.random.default_rng(number).integers((0, 700), (400, 2000))[: 2 if number % 6 == 0 else 1]
    return Subject(number, f"sub-OAS3{number:04d}", int(generator.integers(42, 96)),
                   "MF"[int(generator.integers(2))], tuple(days.tolist()))


def check_out(out: Path, subjects: list[Subject], seed: int) -> None:
    """Raise UserError unless `out` is absent, empty, or holds scans of this command and seed, which are made again."""
    files.check_folder(out, "--out")
    found = sorted(path.name for path in out.glob("[!.]*"))
    description = out / "dataset_description.json"
    # Never among real scans: they could not be told apart later.
    text = description.read_text(errors="replace") if description.is_file() else ""
    expect(not found or NAME in text, f"--out {out}", "an empty folder or earlier demo scans", ", ".join(found[:3]),
           "Give --out a new folder.")
    before = re.search(r"--seed (\d+)", text)
    expect(before is None or int(before[1]) == seed, f"--out {out}", f"scans of --seed {seed}",
           f"those of {before and before[0]}", "Give that seed, or --out a new folder.")
    others = sorted({name for name in found if name.startswith("sub-")} - {subject.name for subject in subjects})
    expect(not others, f"--out {out}", f"at most the {len(subjects)} subject(s) to be made",
           f"{', '.join(others[:3])} of an earlier run", "Give a larger --subjects, or another --out.")


def write_scans(settings: DemoScansSettings, subjects: list[Subject],
                make_scan: Callable[[Subject, int], nibabel.Nifti1Image]) -> None:
    """Write the whole BIDS tree into a folder that `check_out` has passed, but for scans that are there and whole.

    Args:
        make_scan: returns the scan of a subject's session, counted from 0.
    """
    # First, so that the folder of a run that was stopped half-way is known as one of this command.
    files.write_json(settings.out / "dataset_description.json", {
        "Name": NAME, "BIDSVersion": "1.8.0", "DatasetType": "raw",
        "GeneratedBy": [{"Name": "make_demo_scans.py", "Description": f"--seed {settings.seed}"}]})
    files.write_text(settings.out / "README", README)
    files.write_text(settings.out / "participants.tsv", "participant_id\tage\tsex\n" + "".join(
        f"{subject.name}\t{subject.age}\t{subject.sex}\n" for subject in subjects))

    def write_scan(subject: Subject, session: int) -> None:
        visit = f"ses-d{subject.session_days[session]:04d}"
        path = settings.out / subject.name / visit / "anat" / f"{subject.name}_{visit}_T1w.nii.gz"
        if _is_whole(path):  # and of this seed: equal to what would be made
            return
        content = gzip.compress(make_scan(subject, session).to_bytes(), compresslevel=1, mtime=0)
        files.write_atomically(path, lambda temporary: temporary.write_bytes(content))

    visits = [(subject, session) for subject in subjects for session in range(len(subject.session_days))]
    # NumPy, torch and zlib let go of the interpreter while they work, so threads are enough.
    thread_map(write_scan, *zip(*visits), max_workers=min(4, os.cpu_count() or 1), total=len(visits),
               desc="demo scans", unit="scan", tqdm_class=Bar)


def _is_whole(path: Path) -> bool:
    """Return whether a gzip file is there and undamaged."""
    with suppress(OSError, EOFError, zlib.error):
        gzip.decompress(path.read_bytes())
        return True
    return False


def main(arguments: list[str] | None = None) -> None:
    """Make the scans that the command line asks for."""
    settings = parse(DemoScansSettings, __doc__, arguments)
    subjects = [make_subject(settings.seed, number) for number in range(1, settings.subjects + 1)]
    with claimed(settings.out, f"--out {settings.out}") as claim:
        check_out(settings.out, subjects, settings.seed)
        claim.remove_left_overs(*(str(path.relative_to(settings.out)) for path in settings.out.glob("sub-*/*/anat")))
        _make(settings, subjects)
    endings.say(None, "run", "--preset", "demo", "--scans", settings.out, "--out", "demo")


def _make(settings: DemoScansSettings, subjects: list[Subject]) -> None:
    # Loads torch, which neither --help nor a wrong flag should wait for.
    brains = importlib.import_module("vqvae2.commands.demo_brains")
    brains.torch.set_num_threads(1)  # scans are made side by side, and sums must not depend on the number of cores
    load_atlas, loading = cache(brains.load_atlas), Lock()

    def make_scan(subject: Subject, session: int) -> nibabel.Nifti1Image:
        with loading:  # by the first scan that is not there yet
            atlas = load_atlas()
        return brains.make_scan(atlas, settings.seed, subject, session)

    write_scans(settings, subjects, make_scan)
