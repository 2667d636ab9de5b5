"""Nothing -> the settings of extract_slices.py."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vqvae2.common.errors import expect
from vqvae2.scans.archives import BY_NAME
from vqvae2.settings.checks import CUTTING, SAID, SEED, SPLIT, SUBJECT_PATTERN, Checked

Plane = Literal["axial", "coronal", "sagittal"]
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
"""The cores that this process may use, which a batch system may have made fewer."""
MASK_SUFFIXES = ("desc-brain_mask", "brain_mask", "brainmask")
"""How the names of brain masks end in BIDS, FSL and FreeSurfer."""
ONE_OF_EACH_PAIR = str.maketrans("LPI", "RAS")


@dataclass(frozen=True, kw_only=True)
class ExtractSettings(Checked):
    """Settings of extract_slices.py."""

    TABLE = "extract"
    preset: Annotated[str | None, SAID] = None
    """A preset of the list above, or a .toml file of yours: it sets other defaults, and flags override them."""
    scans: Annotated[Path | None, SAID] = None
    """Folder of raw scans, searched to any depth. Without it: OASIS_PATH."""
    out: Annotated[Path | None, SAID] = None
    """Folder that receives the slices and manifest.csv. Without it: SLICES_PATH."""
    planes: Annotated[tuple[Plane, ...], tyro.conf.arg(metavar="{axial,coronal,sagittal} ...")] = ("axial",)
    """One or more anatomical planes."""
    per_scan: Annotated[int | Literal["all"], tyro.conf.arg(metavar="INT|all")] = 1
    """Slices per plane and scan: 1 is the centre of the extent, more are evenly spaced in it, all takes every
    plane."""
    extent: tuple[float, float] = (0.3, 0.8)
    """Part of the brain in which planes are chosen, from 0 (inferior, posterior, left) to 1 (superior, anterior,
    right)."""
    size: int = 256
    """Height and width of a slice in pixels."""
    field_of_view: float = 224
    """Height and width of a slice in mm, centred on the brain; parts beyond are cut off."""
    bits: Literal[8, 16] = 8
    """Bits per pixel of the PNGs."""
    layout: Literal["oasis", "keras_png_slices"] = "oasis"
    """keras_png_slices: the slices also stand in keras_png_slices_train, _validate and _test, as links named
    case_001_slice_0.nii.png; cases.csv lists the subject of each case."""
    split: tuple[float, float, float] = (64, 16, 20)
    """Shares of the subjects for train, validate and test."""
    seed: int = 0
    """Seed of the split by subject."""
    assume_orientation: Annotated[str | None, SAID] = None
    """The directions in which a scan's three indices grow (RAS, LAS, …), if neither its header nor its layout says."""
    trust: Literal["sform", "qform"] = "sform"
    """The matrix of a NIfTI header that counts where both are set."""
    volume: Annotated[int | None, SAID] = None
    """The volume, counted from 0, to take from each file that holds a series. Without it: such files are rejected."""
    suffix: Annotated[tuple[str, ...], SAID, tyro.conf.arg(metavar="STR ...")] = ()
    """The ends of the names of wanted scans (T2w, FLAIR, desc-preproc_T1w, …). Without it: T1-weighted scans."""
    mask_suffix: Annotated[tuple[str, ...], tyro.conf.arg(metavar="STR ...")] = MASK_SUFFIXES
    """The ends of the names of brain masks. The first that lies beside a scan is applied to it; none applies none."""
    archive: Annotated[str | None, SAID] = None
    """How paths below --scans name people: a row of --archives, plain:2 (the second folder is the person), plain:file.
    Without it: the row that fits, or what tells people apart beyond doubt."""
    archives: bool = False
    """Print the table of archives whose paths are known, and end."""
    all_runs: bool = False
    """Use every run of a session, not the first alone."""
    subject_pattern: Annotated[str | None, SAID] = None
    """Regular expression for paths below --scans: group 1 (or subject) is the subject, group 2 (session) its visit."""
    covariates: Annotated[Path | None, SAID] = None
    """Table (csv, tsv) of age, sex and so on. Without it: participants.tsv and OASIS's own, where --scans has them."""
    subject_column: Annotated[str | None, SAID] = None
    """Column of --covariates that names the subject. Without it: participant_id, Subject ID, MRI ID and the like."""
    prune: bool = False
    """Also remove the slices of scans that are no longer there."""
    list: bool = False
    """Print the scans that would be read and their subjects, found by names alone; write nothing."""
    shard: Annotated[str | None, SAID, tyro.conf.arg(metavar="I/N")] = None
    """Do the I-th of N parts, for many machines that share --out; the last machine to finish writes the manifest."""
    merge: bool = False
    """Only write the manifest, if all parts are done but the last part was ended before it wrote the manifest."""
    workers: Annotated[int, tyro.conf.arg(help_behavior_hint="(default: as many as there are cores)")] = CORES
    """Worker processes; their number does not change the slices."""
    strict: bool = False
    """End at the first scan that cannot be used, with exit status 2."""

    RULES = (
        SPLIT, SEED, SUBJECT_PATTERN, *CUTTING,
        ("per_scan workers", lambda value: value == "all" or value >= 1, "at least 1", "Give a larger number."),
        ("assume_orientation", lambda letters: sorted(letters.upper().translate(ONE_OF_EACH_PAIR)) == ["A", "R", "S"],
         "one letter each of R/L, A/P and S/I", "For example RAS, LAS or ASL."),
        ("archive", lambda name: name in BY_NAME or re.fullmatch(r"plain:([1-9]\d?|file)", name) is not None,
         "a row of --archives, plain:N or plain:file", "See vqvae2 extract --archives."),
        ("volume", lambda volume: volume >= 0, "0 or more", "0 is the first volume."),
        ("suffix", lambda suffixes: all(re.search(r"\w", suffix) for suffix in suffixes), "the end of a name",
         "For example T2w."),
        ("mask_suffix", lambda suffixes: suffixes == ("none",) or all(
            re.search(r"[^\W_]", suffix) and ".nii" not in suffix and suffix.lower() != "none" for suffix in suffixes),
         "ends of names without .nii, or none alone", "For example brain_mask."))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.assume_orientation is not None:
            object.__setattr__(self, "assume_orientation", self.assume_orientation.upper())
        expect(self.subject_column is None or self.covariates is not None, "--subject-column", "--covariates beside it",
               f"--subject-column {self.subject_column} alone", "Give --covariates FILE too.")
        expect(not (self.merge and self.shard), "--merge", "no --shard beside it", f"--shard {self.shard}",
               "The parts are known from --out.")
        _ = self.part

    @property
    def mask_suffixes(self) -> tuple[str, ...]:
        """Return the ends of the names of masks that are looked for; empty for --mask-suffix none."""
        return () if self.mask_suffix == ("none",) else tuple(suffix.lstrip("_") for suffix in self.mask_suffix)

    @property
    def part(self) -> tuple[int, int]:
        """Return the part of the work that this run does, (I, N) with 1 <= I <= N; (1, 1) is all of the work."""
        found = re.fullmatch(r"(\d+)/(\d+)", self.shard or "1/1")
        number, parts = map(int, found.groups()) if found else (0, 0)
        expect(0 <= number <= parts > 0, "--shard", "I/N with I from 1 to N (or from 0 to N-1)", self.shard,
               "For example --shard 3/8, or $SLURM_ARRAY_TASK_ID/8.")
        return number or parts, parts  # counted from 0, the parts are 0 to N-1, and 0 stands for N
