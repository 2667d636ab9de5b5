"""A published model is the run's model, without paths of the machine, and half as large where that is asked for."""

import json
import re
import shutil

import pytest
import torch
import yaml

from vqvae2.commands import publish, status
from vqvae2.common.errors import UserError
from vqvae2.runs import weights as checkpoints
from vqvae2.sampling import sampler


def weights(folder):
    return checkpoints.load_weights(folder / checkpoints.WEIGHTS)


def head_of(text):
    return yaml.safe_load(text.split("---\n")[1])


def body_of(text):
    return text.split("---\n", 2)[2].lstrip()


def test_what_is_published_has_the_weights_and_the_log_and_no_path(tiny_run, tmp_path):
    tensors, _ = weights(tiny_run.vqvae)
    assert publish.publish(tiny_run.vqvae, tmp_path / "out") == checkpoints.weights_hash(tensors)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.safetensors", "config.json", "log.csv",
                                                                   "curves.png", "mean.png", "README.md"}
    for text in (json.dumps(weights(tmp_path / "out")[1]), (tmp_path / "out" / "config.json").read_text(),
                 (tmp_path / "out" / "README.md").read_text()):
        assert not re.search(r"(?<![\w.])/\w+/", text), text[:300]
    assert (tmp_path / "out" / "log.csv").read_text() == (tiny_run.vqvae / "log.csv").read_text()


def test_a_run_is_published_under_its_own_name_again_and_again_and_that_name_still_is_the_run(tiny_run, apart, capsys):
    shutil.copytree(tiny_run.results, "results")
    for _ in range(2):
        publish.main(["tiny", "pretrained/tiny"])
        assert capsys.readouterr().out.startswith("written: pretrained/tiny, weights ")
    with pytest.raises(SystemExit) as end:
        status.main(["tiny"])
    assert end.value.code == 0
    assert "weights without a state" not in capsys.readouterr().out


def test_a_published_chain_belongs_together_and_is_half_as_large_in_16_bit(tiny_run, tmp_path):
    for name in ("vqvae", "top", "bottom"):
        publish.publish(getattr(tiny_run, name), tmp_path / name, bf16=name != "vqvae")
    _, priors = sampler.load_models(*(str(tmp_path / name) for name in ("vqvae", "top", "bottom")),
                                    torch.device("cpu"))
    assert all(parameter.dtype == torch.float32 for prior in priors.values() for parameter in prior.parameters())
    original, rounded = (weights(folder)[0] for folder in (tiny_run.top, tmp_path / "top"))
    for name, tensor in rounded.items():
        assert tensor.dtype == torch.bfloat16, name
        torch.testing.assert_close(tensor.float(), original[name], rtol=2**-8, atol=0)


def test_the_codebook_of_a_16_bit_vqvae_keeps_every_digit(tiny_run, tmp_path):
    publish.publish(tiny_run.vqvae, tmp_path, bf16=True)
    original, rounded = (weights(folder)[0] for folder in (tiny_run.vqvae, tmp_path))
    assert torch.equal(rounded["quantizers.top.codebook"], original["quantizers.top.codebook"])
    assert rounded["to_top.weight"].dtype == torch.bfloat16


def test_what_a_standardised_vqvae_knows_of_intensities_keeps_every_digit(tiny_run, tmp_path):
    tensors, config = weights(tiny_run.vqvae)
    (tmp_path / "run").mkdir()
    more = {"mean": torch.full((1, 1, 1), 1 / 3), "deviation": torch.full((1, 1, 1), 1 / 7)}
    checkpoints.save_weights(tmp_path / "run" / checkpoints.WEIGHTS, tensors | more, config)
    publish.publish(tmp_path / "run", tmp_path / "out", bf16=True)
    rounded = weights(tmp_path / "out")[0]
    assert all(torch.equal(rounded[name], value) for name, value in more.items())


def test_a_preset_in_a_file_of_ones_own_is_published_by_its_name_and_not_on_the_card(tiny_run, tmp_path):
    tensors, config = weights(tiny_run.vqvae)
    (tmp_path / "run").mkdir()
    own = config | {"settings": config["settings"] | {"preset": "/home/me/mine.toml"}}
    checkpoints.save_weights(tmp_path / "run" / checkpoints.WEIGHTS, tensors, own)
    publish.publish(tmp_path / "run", tmp_path / "out")
    assert weights(tmp_path / "out")[1]["settings"]["preset"] == "mine.toml"
    assert "mine" not in publish.card(tmp_path / "out", "Made-up ellipses.", {}, "")


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"expected a run with model\.safetensors, found none\. Give the folder"):
        publish.publish(tmp_path, tmp_path / "out")


def test_a_card_says_what_the_config_says_and_what_was_measured(tiny_run, tmp_path):
    for name in ("vqvae", "top"):
        publish.publish(getattr(tiny_run, name), tmp_path / name)
    text = publish.card(tmp_path / "vqvae", "Made-up ellipses.", {}, "")
    assert body_of(text).startswith("# vqvae: VQ-VAE-2, two levels of 16 codes, 32 by 32 pixels\n")
    assert "18 images of 6 subjects to train, 6 images of 2 subjects to choose the best weights, 9 images of 3" in text
    assert "--channels 16" in text
    assert "--codebook-size 16" in text
    assert "--commitment" not in text  # a default
    assert "10 epochs, 180 images seen" in text
    assert "Not for diagnosis" in text
    top = publish.card(tmp_path / "top", "Made-up ellipses.", {}, "")
    assert body_of(top).startswith("# top: top prior of 4 by 4 codes")
    assert weights(tiny_run.top)[1]["vqvae_hash"][:12] in top


def test_a_config_that_leaves_out_what_has_a_default_is_published_and_a_log_that_is_none_is_refused_before(
        tiny_run, tmp_path):
    for name, gone in (("vqvae", ("codebook_size", "levels", "downsample")), ("top", ("channels", "copies"))):
        (tmp_path / name).mkdir()
        tensors, config = weights(getattr(tiny_run, name))
        config["settings"] = {key: value for key, value in config["settings"].items() if key not in gone}
        checkpoints.save_weights(tmp_path / name / checkpoints.WEIGHTS, tensors, config | {"columns": None})
        publish.publish(tmp_path / name, tmp_path / f"out-{name}")
        for content in ("epoch,seconds\n1,x\n", "epoch,images_seen\nnan,nan\n", "name\n1\n"):
            (tmp_path / name / "log.csv").write_text(content)
            with pytest.raises(UserError, match=r"log\.csv: expected a table of numbers that a training has written"):
                publish.publish(tmp_path / name, tmp_path / "refused")
            assert not (tmp_path / "refused").exists()
        (tmp_path / name / "log.csv").write_text("epoch,train_loss\n1,0.5\n")
        publish.publish(tmp_path / name, tmp_path / f"short-{name}")


def test_a_run_is_not_published_onto_itself(tiny_run):
    with pytest.raises(UserError, match=r"expected another folder than the run's, found the run itself"):
        publish.publish(tiny_run.top, tiny_run.top.parent / "tiny-vqvae" / ".." / "tiny-top")


def test_another_model_is_not_written_over_and_an_earlier_form_of_the_same_one_is(tiny_run, tmp_path):
    publish.publish(tiny_run.vqvae, tmp_path)
    (tmp_path / "README.md").write_text("of other weights")
    (tmp_path / "metrics.json").write_text("of other weights")
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"expected nothing, or an earlier form of the same run, found another vqvae"):
        publish.publish(tiny_run.top, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    publish.publish(tiny_run.vqvae, tmp_path, bf16=True)
    assert len((tmp_path / "model.safetensors").read_bytes()) < len(before)
    assert "of other weights" not in (tmp_path / "README.md").read_text()
    assert not (tmp_path / "metrics.json").exists()


def test_a_card_that_was_edited_is_kept_and_one_that_was_not_is_no_reason_for_a_second(tiny_run, tmp_path, capsys):
    publish.publish(tiny_run.top, tmp_path)
    whole = sorted(path.name for path in tmp_path.iterdir())
    publish.publish(tiny_run.top, tmp_path, bf16=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == whole
    (tmp_path / "README.md").write_text("with a licence")
    (tmp_path / ".half.tmp.md").write_text("by a killed process")
    publish.publish(tiny_run.top, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*whole, "README-before.md"])
    assert (tmp_path / "README-before.md").read_text() == "with a licence"
    assert "what it said is kept as README-before.md" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["README.md", "metrics.json", "log.csv"])
def test_files_of_somebodys_own_are_not_written_over(name, tiny_run, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=rf"expected nothing, or .* found {name} and no model\. Choose another folder"):
        publish.publish(tiny_run.vqvae, tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_card_names_settings_of_0_and_what_runs_did_before_there_was_a_setting(tiny_run, tmp_path):
    publish.publish(tiny_run.vqvae, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["settings"]["restart_every"] = 0
    del config["settings"]["ssim_weight"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    text = publish.card(tmp_path, "", {}, "")
    assert "--restart-every 0" in text
    assert "--ssim-weight 0.0" in text
    assert "--downsample" not in text


def test_the_head_of_a_published_card_is_yaml_that_says_what_the_model_is_and_claims_no_licence_or_figures(tiny_run,
                                                                                                         tmp_path):
    for name, kind in (("vqvae", "vq-vae-2"), ("top", "pixelcnn")):
        publish.main([str(getattr(tiny_run, name)), str(tmp_path / name)])
        head = head_of((tmp_path / name / "README.md").read_text())
        assert head == {"library_name": "vqvae2", "tags": [kind, *head["tags"][1:]]}
        assert "brain-mri" in head["tags"]


def test_the_figures_in_a_head_are_those_of_the_report_that_it_is_given(tiny_run, tmp_path):
    publish.publish(tiny_run.vqvae, tmp_path)
    figures = {"ssim": {"mean": 0.5}, "ms_ssim": {"mean": 0.25}, "psnr": {"mean": 20.5}, "mae": {"mean": 0.1}}
    report = {"data": {"folder": "slices"}, "split": "test", "reconstruction": {"full": figures}}
    head = head_of(publish.head(tmp_path, report, {"license": "mit", "datasets": ["ellipses"]}))
    assert (head["license"], head["datasets"], head["metrics"]) == ("mit", ["ellipses"], list(figures))
    (entry,) = head["model-index"]
    assert entry["name"] == tmp_path.name
    (result,) = entry["results"]
    assert result["dataset"] == {"type": "ellipses", "name": "ellipses", "split": "test"}
    assert [metric["value"] for metric in result["metrics"]] == [0.5, 0.25, 20.5, 0.1]
