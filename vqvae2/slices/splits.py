"""Subjects -> train, validate, test, by a seeded hash of each subject's own name."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable

from vqvae2.common.names import SPLITS


def subject_number(subject: str, seed: int) -> float:
    """Return the subject's own number in [0, 1), the same in every set of subjects."""
    digest = hashlib.sha256(f"{seed}:{subject}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def own_split(subject: str, shares: tuple[float, float, float], seed: int) -> str:
    """Return the split that the subject's number lies in, whoever else is there."""
    number = subject_number(subject, seed)
    return next(split for split, (_, end) in _intervals(shares).items() if number < end)


def split_subjects(subjects: Iterable[str], shares: tuple[float, float, float],
                   seed: int) -> tuple[dict[str, str], dict[str, str]]:
    """Return each subject's split, and where the subjects came from that are lent to a split which would be empty.

    Adding subjects moves nobody, except back those who were lent. A split of share 0 stays empty; train
    is filled first, and no other split takes a split's last subject. The subject
    whose number lies nearest is lent.
    """
    splits = {subject: own_split(subject, shares, seed) for subject in sorted(set(subjects))}
    lent: dict[str, str] = {}
    for split, (start, end) in _intervals(shares).items():
        if start == end or split in splits.values():
            continue
        sizes = Counter(splits.values())
        donors = {subject: subject_number(subject, seed) for subject in splits
                  if subject not in lent and (split == "train" or sizes[splits[subject]] > 1)}
        if donors:
            nearest = min(donors, key=lambda subject: (max(start - donors[subject], donors[subject] - end), subject))
            lent[nearest], splits[nearest] = splits[nearest], split
    return splits, lent


def _intervals(shares: tuple[float, float, float]) -> dict[str, tuple[float, float]]:
    """Return the part of [0, 1) that belongs to each split; the last split with a share ends at 1 exactly."""
    ends = [total / sum(shares) for total in itertools.accumulate(shares)]
    ends = [1.0 if abs(end - 1) < 1e-12 else end for end in ends]
    return {split: (start, end) for split, start, end in zip(SPLITS, [0.0, *ends], ends)}
