"""A folder of results and today's settings -> what is there already, or a refusal: one rule for all such folders.

A command that makes results (samples, predictions, a report) writes a record into its folder before anything else: the
settings, and hashes of the models and data that they name. Then
- what a command did not make is never replaced: a folder that has files of its names and no record is refused;
- the same command goes on where it was stopped, and says what is there already;
- other settings, models or data are refused, each by its name.
"""

import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from vqvae2.common import files
from vqvae2.common.errors import UserError, expect, flag
from vqvae2.runs import weights
from vqvae2.settings.parsing import changes
from vqvae2.settings.stored import read_json

RECORDS = ("sample.json", "predict.json", "evaluate.json", "compress.json", "decompress.json")
"""The records of all commands, each of which has its folder for itself."""
PARTS = "parts"
"""The folder of what is finished while not all is."""


class RecordedFolder:
    """A folder of results, and its record. A subclass says what it holds.

    Args:
        out: the folder; it need not exist.
        settings: what all of it has in common, as JSON values.
    Raises: UserError if the folder holds results of other settings, or what the command did not make and would replace.
        Nothing is written yet.
    """

    command: str
    """The script that makes it, such as sample.py."""
    record: str
    """Name of the record."""
    own: tuple[str, ...]
    """Names of all else that the command writes."""
    made: str
    """What its settings are for, such as "its images were drawn with"."""
    hashes: Mapping[str, str] = {}
    """Settings that may change as long as the hash of what they name is the same -> the name of that hash."""
    lacking: Mapping[str, object] = MappingProxyType({})
    """Settings that records of earlier versions lack, and what they were."""
    may_differ: frozenset[str] = frozenset({"out", "batch", "preset", "open"})
    """Settings that may change when the command goes on."""

    def __init__(self, out: Path, settings: dict):
        self.out, self.settings = out, settings
        self.refuse_foreign(out)
        self.found = self._read()
        self.before = self._settings_before()
        """The settings with which the folder's results were made; {} where there are none to go on with."""
        changed = self.changed()
        expect(not changed, f"--out {out}", f"the settings that {self.made}", ", ".join(changed),
               "Give those again, or choose another --out.")

    @classmethod
    def refuse_foreign(cls, out: Path) -> None:
        """Raise UserError if the command did not make the folder and would replace files in it, or another did."""
        other = next((name for name in RECORDS if name != cls.record and (out / name).exists()), None)
        expect(other is None, f"--out {out}", f"a folder that {cls.command} made, or a new one",
               f"one of another command, with its {other}", "Choose another --out.")
        names = ", ".join(name for name in cls.own if (out / name).exists())
        expect(not names or (out / cls.record).exists(), f"--out {out}",
               f"a folder that {cls.command} made, or one without {names}", f"{names} and no {cls.record}",
               "Choose another --out.")

    def changed(self) -> list[str]:
        """Return what differs from the settings before, such as `--seed 5 (was 0)`."""
        def compared(settings: dict, name: str) -> object:  # one value for both levels is the same as two equal ones
            value = settings.get(self.hashes.get(name, name))
            return value * 2 if isinstance(value, list) and len(value) == 1 else value

        old, new = self.before, self.settings
        names = [name for name in new if name in old and name not in {*self.may_differ, *self.hashes.values()}
                 and compared(new, name) != compared(old, name)]
        return [*map(files.shortened, changes({name: new[name] for name in names}, old)),
                *(f"{flag(name)} {new[name]} (was {old[name]}, which has changed)" for name in names
                  if new[name] == old[name])]

    def write_record(self, more: dict) -> None:
        """Write the settings, and `more` of what is in the folder. For rank 0 alone."""
        files.write_json(self.out / self.record, {"settings": self.settings, **more, "versions": weights.versions()})

    def read(self, name: str) -> dict | None:
        """Return what the command has written as JSON under this name; None where it is not there, or damaged."""
        with suppress(UserError):
            return read_json(self.out / name, f"figures that {self.command} wrote")
        return None

    def tidy(self) -> None:
        """Remove what was only there to go on from."""
        shutil.rmtree(self.out / PARTS, ignore_errors=True)

    def _read(self) -> dict:
        """Return what the record says, {} where there is none."""
        path, what = self.out / self.record, f"settings that {self.command} wrote"
        advice = "Delete the folder to make all of it anew, or choose another --out."
        if not path.exists():
            return {}
        found = read_json(path, what, advice)
        is_whole = isinstance(found.get("settings"), dict) and isinstance(found.get("versions", {}), dict)
        expect(is_whole, str(path), what, "others", advice)
        return found

    def _settings_before(self) -> dict:
        settings = {name: self.found[name] for name in self.hashes.values() if name in self.found}
        settings |= self.found.get("settings", {})
        settings = {**self.lacking, **settings} if settings else {}
        return settings if set(self.hashes.values()) <= set(settings) else {}  # an earlier version wrote no hashes
