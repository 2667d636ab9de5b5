"""A model from a stranger is refused in one line, which names the field or the tensor, before it is built."""

import json
import struct

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import check_line, write_prior, write_vqvae

from vqvae2.common.errors import UserError
from vqvae2.models.autoencoder import load_vqvae
from vqvae2.priors.pixel_cnn import load_prior
from vqvae2.runs import weights
from vqvae2.settings import stored

CPU = torch.device("cpu")


@pytest.fixture
def vqvae(tmp_path):
    write_vqvae(tmp_path / "vqvae")
    return tmp_path / "vqvae"


def change(folder, field, value, *, settings=False):
    """Write a model again with another value of its config; the file's hashes are right."""
    path = folder / weights.WEIGHTS
    tensors, config = weights.load_weights(path)
    owner = config["settings"] if settings else config
    if value is ...:
        del owner[field]
    else:
        owner[field] = value
    weights.save_weights(path, tensors, config)


class TestConfig:
    @pytest.mark.parametrize(("field", "value", "said"), [
        ("channels", "4", r"settings\.channels: expected a whole number, found \"4\"\. Copy"),
        ("channels", 4.0, r"settings\.channels: expected a whole number, found 4\.0\."),
        ("channels", True, r"settings\.channels: expected a whole number, found true\."),
        ("channels", 10**30, r"settings\.channels: expected a whole number, found 1e\+30\."),
        ("channels", 10**7, r"settings: --channels: expected 2 to 16384, found 10000000\."),
        ("residual_layers", 10**6, r"settings: --residual-layers: expected 0 to 256, found 1000000\."),
        ("levels", 3, r"settings\.levels: expected one of 1, 2, found 3\."),
        ("levels", None, r"settings\.levels: expected one of 1, 2, found null\."),
        ("quantizer", ["ema"], r"settings\.quantizer: expected one of ema, gradient, fsq, found 1 values\."),
        ("downsample", [3, 2], r"settings: --downsample: expected powers of 2, from 2 to 4096, found 3 2\."),
        ("downsample", 4, r"settings\.downsample: expected a list, found 4\."),
        ("split", [1, 2], r"settings\.split: expected a list of 3, found 2 values\."),
        ("data", "a\0b", r"settings\.data: expected the name of a file, found \"a\\u0000b\"\."),
        ("subject_pattern", "(" * 5000, r"settings: --subject-pattern: expected a regular expression, found \(\(")])
    def test_a_setting_of_another_type_or_range_is_refused(self, field, value, said, vqvae):
        change(vqvae, field, value, settings=True)
        with pytest.raises(UserError, match=rf"vqvae/model\.safetensors: {said}") as caught:
            load_vqvae(str(vqvae), CPU)
        check_line(caught.value)

    @pytest.mark.parametrize(("field", "value", "said"), [
        ("image_shape", ..., r"config\.image_shape: expected a value, found nothing\."),
        ("image_shape", "abc", r"config\.image_shape: expected a list of 3, found \"abc\"\."),
        ("image_shape", [1, 10**9, 8], r"config: --image-shape: expected 1 to 4 channels, .* found 1 1000000000 8\."),
        ("image_shape", [1, 12, 16], r"config\.image_shape: expected a height and a width that 8 divides .* 12, 16"),
        ("image_shape", [3, 16, 16], r"tensor decoder.*: expected float \[.*3.*, found float \["),
        ("training_images", [1, 2], r"config\.training_images\[0\]: expected text, found 1\."),
        ("training_images", {}, r"config\.training_images: expected a list, found 0 values\."),
        ("data", {"extraction": {"planes": ["up"]}}, r"extraction\.planes\[0\]: expected one of axial, .* \"up\"\."),
        ("data", {"images": {"train": "many"}}, r"data\.images\.train: expected a whole number, found \"many\"\."),
        ("global_batch", 0, r"config: --global-batch: expected 1 or more, found 0\."),
        ("kind", 5, r"config\.kind: expected text, found 5\."),
        ("settings", [], r"found no settings in its config\.")])
    def test_a_field_of_another_type_or_range_is_refused(self, field, value, said, vqvae):
        change(vqvae, field, value)
        with pytest.raises(UserError, match=rf"vqvae/model\.safetensors: .*{said}") as caught:
            load_vqvae(str(vqvae), CPU)
        check_line(caught.value)

    @pytest.mark.parametrize(("field", "value", "said"), [
        ("shape", [2, 0], r"config: --shape: expected a height and a width of 1 to 4096, found 2 0\."),
        ("shape", [3, 2], r"config\.top_shape: expected .* fit into those of the bottom, \[3, 2\], found \[2, 2\]\."),
        ("vqvae_hash", 5, r"config\.vqvae_hash: expected text, found 5\."),
        ("kind", "top bottom prior", r"config\.kind: expected bottom prior, .* found top bottom prior\."),
        ("columns", [{"name": "age", "spread": 0}], r"columns\[0\]: --spread: expected more than 0, found 0\."),
        ("columns", [{"spread": 1}], r"columns\[0\]\.name: expected text, found nothing\."),
        ("columns", 5, r"config\.columns: expected a list, found 5\.")])
    def test_a_field_of_a_prior_is_refused(self, field, value, said, tmp_path):
        write_prior(tmp_path / "bottom", "a" * 64, "bottom")
        change(tmp_path / "bottom", field, value)
        with pytest.raises(UserError, match=rf"bottom/model\.safetensors: .*{said}") as caught:
            load_prior(str(tmp_path / "bottom"), "bottom", "a" * 64, CPU)
        check_line(caught.value)

    @pytest.mark.parametrize("settings", [
        {"channels": 16384, "residual_channels": 16384, "residual_layers": 256}, {"codebook_size": 32767,
                                                                                  "embedding_dim": 16384}])
    def test_a_model_that_is_larger_than_its_weights_is_not_built(self, settings, vqvae):
        for field, value in settings.items():
            change(vqvae, field, value, settings=True)
        with pytest.raises(UserError, match=(
                r"config: expected settings of a model of the \d{7} numbers that the file may need, found those"
            )) as caught:
            load_vqvae(str(vqvae), CPU)
        check_line(caught.value)

    @pytest.mark.parametrize(("text", "said"), [
        ("[" * 100_000, "lists in lists without end"), ('{"settings": {}, "settings": {}}', "'settings' twice"),
        ('{"settings": {"seed": NaN}}', "the number NaN"), ('{"settings": {"seed": 1e999}}', "the number 1e999"),
        ('{"settings": {"seed": ' + "9" * 5000 + "}}", "the number 999"),
        ('{"a": "\\ud800"}', "surrogates not allowed"),
        ("[" + "0," * 2_000_000 + "0]", "4000003 bytes of JSON"), ("5", "other JSON")],
        ids=["depth", "twice", "NaN", "infinite", "long", "half a character", "many", "no names"])
    def test_json_that_no_program_should_write_is_refused(self, text, said, vqvae):
        (vqvae / weights.CONFIG).write_text(text)
        with pytest.raises(UserError, match=rf"config\.json: expected the settings of a run, found .*{said}") as caught:
            weights.read_config(vqvae)
        check_line(caught.value)

    def test_a_file_name_whose_bytes_are_not_utf_8_is_read_as_it_was_written(self, vqvae):
        change(vqvae, "data", "slices\udcff", settings=True)
        assert weights.load_weights(vqvae / weights.WEIGHTS)[1]["settings"]["data"] == "slices\udcff"

    def test_a_setting_that_this_version_lacks_is_left_out_and_one_that_it_has_gained_has_its_default(self, vqvae):
        change(vqvae, "not_invented_yet", {"a": [1]}, settings=True)
        change(vqvae, "gradient_weight", ..., settings=True)
        assert load_vqvae(str(vqvae), CPU).model.settings.gradient_weight == 0


class TestWeights:
    @pytest.mark.parametrize(("value", "said"), [(torch.nan, "nan"), (torch.inf, "inf"), (-torch.inf, "inf"),
                                                 (-2e6, r"2e\+06")])
    def test_numbers_that_no_trained_network_has_are_refused(self, value, said, vqvae):
        tensors, config = weights.load_weights(vqvae / weights.WEIGHTS)
        tensors["encoder.0.weight"][0, 0, 1, 1] = value
        weights.save_weights(vqvae / weights.WEIGHTS, tensors, config)
        with pytest.raises(UserError, match=(
                rf"safetensors: tensor encoder\.0\.weight: expected finite numbers up to 1e\+06, found {said}\."
            )) as caught:
            load_vqvae(str(vqvae), CPU)
        check_line(caught.value)

    def test_a_codebook_that_was_never_placed_is_refused(self, vqvae):
        tensors, config = weights.load_weights(vqvae / weights.WEIGHTS)
        tensors["quantizers.top.is_started"].fill_(False)
        weights.save_weights(vqvae / weights.WEIGHTS, tensors, config)
        with pytest.raises(UserError, match=(
                r"--vqvae .*: expected a VQ-VAE whose codebooks are placed, found one .* codes mean nothing\."
            )) as caught:
            load_vqvae(str(vqvae), CPU)
        check_line(caught.value)

    def test_half_the_digits_are_read_and_whole_numbers_are_not(self, vqvae):
        tensors, config = weights.load_weights(vqvae / weights.WEIGHTS)
        for kind in (torch.bfloat16, torch.float16, torch.float64):
            weights.save_weights(vqvae / weights.WEIGHTS, tensors | {"to_top.bias": tensors["to_top.bias"].to(kind)},
                                 config)
            assert load_vqvae(str(vqvae), CPU).model.to_top.bias.dtype == torch.float32
        weights.save_weights(vqvae / weights.WEIGHTS, tensors | {"to_top.bias": tensors["to_top.bias"].int()}, config)
        with pytest.raises(UserError, match=(
                r"tensor to_top\.bias: expected float \[4\], which .* say, found int32 \[4\]\. Train"
            )) as caught:
            load_vqvae(str(vqvae), CPU)
        check_line(caught.value)


class TestHashes:
    def test_a_byte_of_a_tensor_or_of_the_config_that_has_changed_is_noticed(self, vqvae):
        path = vqvae / weights.WEIGHTS
        whole = path.read_bytes()
        for at, said in ((len(whole) - 3, r"tensors of the hash [0-9a-f]{12}, found [0-9a-f]{12}\. Copy"),
                         (whole.index(b"slices"), r"found a config that has changed since it was written\.")):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
            with pytest.raises(UserError, match=rf"model\.safetensors: expected .*{said}") as caught:
                weights.load_weights(path)
            check_line(caught.value)

    def test_files_of_older_versions_have_none_and_are_read(self, vqvae):
        path = vqvae / weights.WEIGHTS
        tensors, config = weights.load_weights(path)
        save_file(tensors, path, {"config": json.dumps(config)})
        assert load_vqvae(str(vqvae), CPU).hash == weights.weights_hash(tensors)

    def test_equal_weights_give_equal_bytes(self, vqvae):
        path = vqvae / weights.WEIGHTS
        before, (tensors, config) = path.read_bytes(), weights.load_weights(path)
        for _ in range(5):
            weights.save_weights(path, tensors, config)
            assert path.read_bytes() == before

    def test_another_program_finds_the_hash_of_the_tensors_in_the_header(self, vqvae):
        content = (vqvae / weights.WEIGHTS).read_bytes()
        header = json.loads(content[8:8 + struct.unpack("<Q", content[:8])[0]])
        assert header["__metadata__"]["sha256"] == load_vqvae(str(vqvae), CPU).hash


def test_types_of_values_are_those_that_are_declared():
    for value, kind, expected in (
            ([1, 2.5], tuple[float, ...], (1, 2.5)), ([["a"], []], list[list[str]], [["a"], []]),
            ({"a": 1}, dict[str, int], {"a": 1}), (None, int | None, None), (3, object, 3), ([], tuple[str, ...], ())):
        assert stored.as_declared(value, kind, "x") == expected
    for value, kind in ((None, int), ("1", float), (2**60, int), ([1], tuple[int, int]), ({"a": "b"}, dict[str, int]),
                        (False, int), (1, bool)):
        with pytest.raises(UserError, match=r"^x.*: expected .*, found .*\. Copy the file again") as caught:
            stored.as_declared(value, kind, "x")
        check_line(caught.value)
