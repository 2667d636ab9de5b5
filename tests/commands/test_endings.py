"""The last lines of a command: where to look, and what to type next, with the names of what is really there."""

import json
import os
import shlex
import webbrowser

import pytest
from pasted import settings_of

from vqvae2.commands import endings


def run_of(results, name, kind, seconds, **settings):
    folder = results / "oasis" / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"kind": kind, "settings": {"dataset": "oasis", **settings}}))
    (folder / "model.safetensors").write_bytes(b"")
    os.utime(folder / "model.safetensors", (seconds, seconds))
    return folder


@pytest.fixture
def results(tmp_path):
    return tmp_path / "my results"


def following(capsys, monkeypatch):
    """The next command's flags, read as the command itself reads them."""
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("next:    vqvae2 ")
    return settings_of(shlex.split(line.removeprefix("next:")), monkeypatch)


def test_after_a_vqvae_comes_the_prior_of_its_top_codes(results, capsys, monkeypatch):
    vqvae = run_of(results, "brain", "vqvae", 1, levels=2, preset="brain-128")
    (vqvae / "losses.png").write_bytes(b"")
    endings.after_training(vqvae, "losses.png", "reconstructions/*.png")
    text = capsys.readouterr().out
    assert text.startswith(f"look at: {vqvae / 'losses.png'}\n")
    print(text, end="")
    settings = following(capsys, monkeypatch)
    assert (settings.level, settings.vqvae, settings.savename) == ("top", str(vqvae), "brain-top")
    assert (settings.results, settings.epochs, settings.channels) == (results, 12, 160)


def test_after_the_top_prior_comes_the_bottom_prior_and_after_both_come_samples(results, capsys, monkeypatch):
    vqvae = run_of(results, "brain", "vqvae", 1, levels=2)
    top = run_of(results, "brain-top", "top prior", 2, vqvae=str(vqvae))
    endings.after_training(top, "losses.png")
    settings = following(capsys, monkeypatch)
    assert (settings.level, settings.savename) == ("bottom", "brain-bottom")
    bottom = run_of(results, "brain-bottom", "bottom prior", 3, vqvae=str(vqvae))
    run_of(results, "other-bottom", "bottom prior", 4, vqvae="other")
    endings.after_training(bottom, "losses.png")
    settings = following(capsys, monkeypatch)
    assert (settings.vqvae, settings.top, settings.bottom, settings.decoder) == (
        str(vqvae), str(top), str(bottom), None)
    decoder = run_of(results, "brain-decoder", "decoder", 5, vqvae=str(vqvae))
    endings.after_training(decoder, "losses.png")
    assert following(capsys, monkeypatch).decoder == str(decoder)


def test_a_vqvae_of_one_level_has_no_bottom_prior(results, capsys, monkeypatch):
    vqvae = run_of(results, "plain", "vqvae", 1, levels=1)
    endings.after_training(run_of(results, "plain-top", "top prior", 2, vqvae=str(vqvae)), "losses.png")
    settings = following(capsys, monkeypatch)
    assert (settings.vqvae, settings.bottom) == (str(vqvae), None)


def test_the_last_picture_is_named(results, capsys):
    vqvae = run_of(results, "brain", "vqvae", 1, levels=2)
    (vqvae / "reconstructions").mkdir()
    for name in ("losses.png", "reconstructions/0001.png", "reconstructions/0010.png"):
        (vqvae / name).write_bytes(b"")
    endings.after_training(vqvae, "losses.png", "reconstructions/*.png")
    assert f"look at: {vqvae / 'reconstructions/0010.png'}\n" in capsys.readouterr().out


@pytest.mark.parametrize(("screen", "opened"), [(True, True), (False, False)])
def test_a_picture_is_opened_where_there_is_a_screen(screen, opened, tmp_path, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(webbrowser, "open", lambda address: asked.append(address) or True)
    monkeypatch.setattr(endings.sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    if screen:
        monkeypatch.setenv("DISPLAY", ":0")
    picture = tmp_path / "a b.png"
    picture.write_bytes(b"")
    endings.say(picture, show=True)
    assert asked == [picture.as_uri()] * opened
    assert ("no screen" in capsys.readouterr().out) is not opened


def test_other_ranks_say_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    endings.say(tmp_path, "sample")
    assert capsys.readouterr().out == ""
