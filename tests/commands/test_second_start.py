"""A second start into a folder where a command is at work is refused before it has changed anything there."""

import pytest
from conftest import TINY, TINY_PRIOR, TINY_VQVAE, files_in

from vqvae2.commands import demo_scans, evaluate, predict, publish, sample, train_features, train_prior, train_vqvae
from vqvae2.common import folder_lock

MODELS = "--vqvae {vqvae} --top {top} --bottom {bottom}"
COMMANDS = {
    train_vqvae: "--data {data} --results . --savename out " + " ".join([*TINY, *TINY_VQVAE]),
    train_prior: "--data {data} --results . --savename out --level top --vqvae {vqvae} " + " ".join(
        [*TINY, *TINY_PRIOR]),
    train_features: "--data {data} --results . --savename out --epochs 1 --batch 8",
    sample: f"{MODELS} --count 1 --out oasis/out", evaluate: f"{MODELS} --data {{data}} --out oasis/out",
    predict: "--vqvae {vqvae} {data}/test --out oasis/out", publish: "{vqvae} oasis/out",
    demo_scans: "--out oasis/out --subjects 1"}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__.rpartition(".")[2])
def test_a_second_start_is_refused_with_a_line_and_changes_nothing(command, tiny_run, apart, refusal, monkeypatch):
    monkeypatch.setattr(folder_lock, "PATIENCE", 0)
    out = apart / "oasis" / "out"
    with folder_lock.claimed(out, "the first"):
        (out / ".being-written.tmp.png").touch()
        before = files_in(apart), files_in(tiny_run.results)
        line = refusal(command.main, *COMMANDS[command].format(**vars(tiny_run)).split())
        assert "expected a folder that no other process writes to, found process " in line
        assert "Wait for it to end, or choose another " in line
        assert (files_in(apart), files_in(tiny_run.results)) == before
