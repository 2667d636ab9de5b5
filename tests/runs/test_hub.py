"""Models in the layout of the Hugging Face hub: folders need nothing more, ids need its client (here a stand-in)."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vqvae2 import PixelCNN, Vqvae, load_vqvae
from vqvae2.common.errors import UserError


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A client whose hub is a folder; `calls` has what it was asked."""
    store, calls = tmp_path / "hub", []

    def snapshot_download(name, allow_patterns, **more):
        calls.append(("download", name, allow_patterns, more))
        if not (store / name).is_dir():
            raise FileNotFoundError(2, "404: no repository of this name")
        return str(store / name)

    def create_repo(name, **more):
        calls.append(("create", name, more))

    def upload_folder(repo_id, folder_path):
        shutil.copytree(folder_path, store / repo_id)

    client = SimpleNamespace(snapshot_download=snapshot_download, create_repo=create_repo, upload_folder=upload_folder,
                             calls=calls)
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    return client


def equal(model, other):
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_model_comes_back_from_the_hub_as_it_was_pushed(hub, tiny_run, apart):
    for kind, folder in ((Vqvae, tiny_run.vqvae), (PixelCNN, tiny_run.top), (PixelCNN, tiny_run.bottom)):
        model, name = kind.from_pretrained(folder), f"ada/{folder.name}"
        model.push_to_hub(name, private=True)
        again = kind.from_pretrained(name, revision="main")
        assert equal(model, again)
        assert again.config == json.loads((folder / "config.json").read_text())
        assert hub.calls[-2:] == [("create", name, {"exist_ok": True, "private": True}),
                                  ("download", name, ["model.safetensors", "config.json"], {"revision": "main"})]
    assert load_vqvae("ada/tiny", "cpu").hash == load_vqvae(tiny_run.vqvae, "cpu").hash


def test_a_folder_is_not_looked_for_on_the_hub(tiny_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tiny_run.vqvae.parents[1])
    assert equal(Vqvae.from_pretrained("oasis/tiny"), Vqvae.from_pretrained(tiny_run.vqvae))


def test_without_the_client_one_line_says_what_to_install(apart, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"ada/brain: expected a folder with model\.safetensors, or the package "
                                        r"huggingface_hub .*, found neither\. Install it with: pip install \S+\[hub\]"):
        Vqvae.from_pretrained("ada/brain")


def test_what_the_hub_refuses_is_one_line(hub, apart):
    with pytest.raises(UserError, match=r"ada/brain: expected an answer of the Hugging Face hub, found .*\. Check"):
        Vqvae.from_pretrained("ada/brain")


def test_a_name_that_can_be_no_id_is_told_as_a_missing_run(hub, apart):
    for name in ("brain", "results/oasis/brain", "../brain"):
        with pytest.raises(UserError, match=r"from_pretrained \S*brain: expected a folder with model\.safetensors"):
            Vqvae.from_pretrained(name)
    assert hub.calls == []


def test_a_model_of_another_kind_is_one_line(tiny_run):
    with pytest.raises(UserError, match=r"from_pretrained \S+: expected a prior, found a vqvae in .*tiny\. Give"):
        PixelCNN.from_pretrained(tiny_run.vqvae)
    with pytest.raises(UserError, match=r"from_pretrained \S+: expected a vqvae, found a bottom prior in .*-bottom"):
        Vqvae.from_pretrained(tiny_run.bottom)


def test_a_model_that_was_not_loaded_is_saved_with_the_config_that_is_given(tiny_run, tmp_path):
    model = load_vqvae(tiny_run.vqvae, "cpu").model
    untrained = Vqvae(model.settings)
    with pytest.raises(UserError, match=r"config: expected what the model was trained with .*, found nothing\. Load"):
        untrained.save_pretrained(tmp_path)
    untrained.save_pretrained(tmp_path / "new", model.config)
    assert equal(untrained, Vqvae.from_pretrained(tmp_path / "new"))
    assert {path.name for path in Path(tmp_path / "new").iterdir()} == {"config.json", "model.safetensors"}
