"""Progress that a person can plan with: bars have totals, and whoever started a command can read how far it is."""

import json

import pytest

from vqvae2.common import progress
from vqvae2.common.progress import Bar, read_note


@pytest.fixture
def note(tmp_path, monkeypatch):
    monkeypatch.setenv(progress.PROGRESS_FILE, str(tmp_path / "note"))
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_NOTES", 0.0)
    return tmp_path / "note"


def test_a_bar_without_a_total_is_a_fault_of_ours():
    with pytest.raises(AssertionError, match="the bar reading has no total"):
        Bar((number for number in range(3)), desc="reading")


def test_a_bar_notes_its_share_of_its_own_work(note):
    with Bar(total=8, desc="drawing") as bar:
        bar.update(2)
        assert read_note(note) == {"what": "drawing", "share": 0.25, "is_all": False}


def test_an_epoch_notes_its_share_of_all_epochs(note):
    with Bar(total=10, initial=5, desc="epoch 3/4", of_all=(20, 40)) as bar:
        assert read_note(note) == {"what": "epoch 3/4", "share": 25 / 40, "is_all": True}
        bar.update(5)
        assert read_note(note)["share"] == 30 / 40


def test_a_part_of_a_command_notes_its_share_of_all_parts(note):
    with progress.part(2, 4), Bar(total=10, desc="encoding") as bar:
        bar.update(5)
        assert read_note(note) == {"what": "encoding", "share": 2.5 / 4, "is_all": True}
    with Bar(total=10, desc="alone"):
        assert read_note(note)["is_all"] is False


def test_a_silent_rank_notes_nothing(note):
    with Bar(total=8, desc="drawing", disable=True) as bar:
        bar.update(2)
    assert read_note(note) == {}


def test_a_note_that_cannot_be_written_ends_no_work(monkeypatch, tmp_path):
    monkeypatch.setenv(progress.PROGRESS_FILE, str(tmp_path / "no folder" / "note"))
    with Bar(total=1, desc="drawing") as bar:
        bar.update()
        assert bar.n == 1


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"share": "half"})])
def test_a_damaged_note_counts_as_none(text, tmp_path):
    (tmp_path / "note").write_text(text)
    assert read_note(tmp_path / "note") == {}


@pytest.mark.parametrize(("seconds", "words"), [
    (0.4, "0 s"), (89, "89 s"), (91, "2 min"), (45 * 60, "45 min"), (1.5 * 3600, "1.5 h"), (11 * 3600, "11 h"),
    (2.5 * 86400, "2.5 days")])
def test_times_are_said_in_the_unit_that_is_read_at_once(seconds, words):
    assert progress.in_words(seconds) == words
