"""Images <-> codes: shapes, levels, and codebooks that stay in use where the plain recipe collapses."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from vqvae2.models.autoencoder import ResidualBlock, Upsampling, Vqvae
from vqvae2.models.quantizer import BatchPlace, EmaQuantizer
from vqvae2.training.settings import TrainVqvae


def tiny(levels: int = 2, downsample: tuple[int, ...] = (), **more: object) -> Vqvae:
    torch.manual_seed(0)
    options = TrainVqvae(savename="x", epochs=1, batch=4, levels=levels, downsample=downsample, channels=16,
                            residual_channels=8, embedding_dim=8, codebook_size=32, **more)
    return Vqvae(options)


def start(model: Vqvae, images: torch.Tensor) -> None:
    """Place the codebooks on these images."""
    for quantizer in model.quantizers.values():
        quantizer.start_steps = 0
    model.train()(images, BatchPlace(torch.arange(len(images)), len(images), 0))
    model.update_codebooks()
    model.eval()


@pytest.mark.parametrize(("levels", "downsample", "shapes"), [
    (2, (4, 2), {"top": (4, 6), "bottom": (8, 12)}), (2, (2, 2), {"top": (8, 12), "bottom": (16, 24)}),
    (1, (4,), {"top": (8, 12)}), (1, (8,), {"top": (4, 6)})])
def test_code_maps_have_the_size_that_the_factors_say_and_decode_to_the_image_size(levels, downsample, shapes):
    model, images = tiny(levels, downsample), torch.rand(4, 1, 32, 48)
    start(model, images)
    codes = model.encode(images)
    assert {level: tuple(level_codes.shape[1:]) for level, level_codes in codes.items()} == shapes
    assert model.decode(codes).shape == images.shape


def test_top_codes_alone_are_decoded_to_what_they_predict():
    """As if every bottom code stood for a difference of 0."""
    model, images = tiny(2), torch.rand(4, 1, 32, 32)
    start(model, images)
    with torch.no_grad():
        codes = model.encode(images)
        alone = model.decode({"top": codes["top"]})
        model.quantizers["bottom"].lookup = lambda maps: 0.0
        torch.testing.assert_close(alone, model.decode(codes))


@pytest.mark.parametrize("levels", [1, 2])
def test_decoding_the_codes_gives_the_reconstruction(levels):
    model, images = tiny(levels), torch.rand(4, 1, 32, 32)
    start(model, images)
    with torch.no_grad():
        made = model(images)
        torch.testing.assert_close(model.decode(made.codes), made.images.clamp(0, 1))


def test_the_prediction_error_teaches_the_top_and_leaves_the_encoder_alone():
    model, images = tiny(), torch.rand(4, 1, 32, 32)
    start(model, images)
    model(images).prediction.sum().backward()
    assert model.to_bottom.weight.grad is None
    assert model.top_decoder[0].weight.grad.abs().sum() > 0


def test_the_prediction_learns_from_the_image_as_if_the_bottom_codes_stayed():
    """Only their codebook, which follows slowly, could take back what a moving prediction does to the features."""
    model, images = tiny(), torch.rand(4, 1, 32, 32)
    start(model, images)
    weights = list(model.top_decoder.parameters())
    codes = model.encode(images)
    top, bottom = (model.quantizers[level].lookup(codes[level]) for level in ("top", "bottom"))
    vectors = {"top": top, "bottom": model.top_decoder(top) + bottom}
    expected = torch.autograd.grad(model.decode_vectors(vectors).square().sum(), weights)
    found = torch.autograd.grad(model(images).images.square().sum(), weights)
    assert max(gradient.abs().max() for gradient in expected) > 1e-3
    torch.testing.assert_close(found, expected)


class PlainBlock(ResidualBlock):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


def without_shortcuts(model: Vqvae) -> Vqvae:
    """A copy as textbooks have it: nothing in place, transposed convolutions with their bias inside."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
        elif isinstance(module, ResidualBlock):
            module.__class__ = PlainBlock
        elif isinstance(module, Upsampling):
            module.__class__ = nn.ConvTranspose2d
    return model


def output_and_gradients(model: Vqvae, images: torch.Tensor, bf16: bool) -> dict[str, torch.Tensor]:
    """Before the codebooks are placed, so that no code can flip."""
    model.train().zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        made = model(images)
    (made.images.float().square().sum() + made.prediction.sum()).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"images": made.images.detach().float(), **gradients}


def relative_error(made: torch.Tensor, reference: torch.Tensor) -> float:
    return ((made - reference).norm() / reference.norm().clamp(min=1e-6)).item()


@pytest.mark.parametrize("levels", [1, 2])
def test_what_is_done_in_place_changes_no_output_and_no_gradient(levels):
    fast, images = tiny(levels), torch.rand(4, 1, 32, 48)
    plain = output_and_gradients(without_shortcuts(fast), images, bf16=False)
    made = output_and_gradients(fast, images, bf16=False)
    assert made.keys() == plain.keys()
    for name in plain:
        assert relative_error(made[name], plain[name]) < 1e-5, name


def test_in_bf16_it_is_as_close_to_float32_as_the_plain_way():
    """Only sums are rounded elsewhere; the encoder's first gradient is 7 % off either way, the top decoder's 20 %."""
    fast, errors = tiny(), []
    for _ in range(8):  # of one batch alone the small gradients are a matter of luck, and of the CPU
        images = torch.rand(4, 1, 32, 48)
        exact, plain = (output_and_gradients(without_shortcuts(fast), images, bf16) for bf16 in (False, True))
        made = output_and_gradients(fast, images, bf16=True)
        errors.append([[relative_error(ours[name], exact[name]) for name in exact] for ours in (made, plain)])
    ours, theirs = np.mean(errors, 0)
    assert (ours < 1.5 * theirs + 1e-3).all(), dict(zip(exact, zip(ours, theirs)))
    assert ours.sum() < 1.1 * theirs.sum()


def test_weights_have_the_names_and_shapes_that_files_of_earlier_versions_have():
    shapes = {name: tuple(tensor.shape) for name, tensor in tiny().state_dict().items()}
    assert shapes["encoder.5.layers.3.weight"] == (16, 8, 1, 1)
    assert shapes["decoder.4.weight"] == (16, 8, 4, 4)
    assert shapes["decoder.6.bias"] == (1,)
    assert shapes["top_upsample.0.weight"] == (8, 8, 4, 4)
    assert len(shapes) == 70


def plain_recipe() -> Vqvae:
    """k-means on the first batch, then moving averages of 100 steps alone: row 1 of the design's table."""
    model = tiny(start_steps=0, decay=0.99)
    for quantizer in model.quantizers.values():
        quantizer.updates.fill_(1e6)  # no catching up
        quantizer._restart = lambda *_: None
    return model


def ellipses() -> torch.Tensor:
    """A small fixed problem: 64 pictures of bright and dark ellipses."""
    generator = torch.Generator().manual_seed(1)
    grid = torch.linspace(-1, 1, 32)
    centre, size, light = (torch.rand(64, 1, 1, 2, generator=generator) for _ in range(3))
    distance = (((grid[None, :, None] - centre[..., 0] + 0.5) / (0.3 + size[..., 0])) ** 2
                + ((grid[None, None, :] - centre[..., 1] + 0.5) / (0.3 + size[..., 1])) ** 2)
    return ((distance < 1) * (0.3 + 0.7 * light[..., 0]))[:, None].float()


def trained(model: Vqvae, steps: int = 150) -> Vqvae:
    generator = torch.Generator().manual_seed(2)
    images = ellipses()
    optimizer = torch.optim.Adam(model.train().parameters(), lr=3e-3)
    for step in range(steps):
        items = torch.randint(64, (16,), generator=generator)
        made = model(images[items], BatchPlace(torch.arange(16), 16, step))
        loss = (made.images - images[items]).square().mean() + 0.25 * (made.commitment + made.prediction).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.update_codebooks()
    return model.eval()


def used_codes(model: Vqvae) -> dict[str, int]:
    with torch.no_grad():
        return {level: len(codes.unique()) for level, codes in model.encode(ellipses()).items()}


@pytest.fixture(scope="module")
def ours() -> Vqvae:
    torch.set_num_threads(1)
    return trained(tiny(start_steps=30))


def test_both_codebooks_stay_in_use_where_the_plain_recipe_collapses(ours):
    plain = used_codes(trained(plain_recipe()))
    assert min(plain.values()) <= 16, plain  # half of 32; seen: 6 and 15
    assert min(used_codes(ours).values()) >= 28, used_codes(ours)


def test_a_picture_needs_its_own_map_of_either_level(ours):
    images = ellipses()
    with torch.no_grad():
        codes = ours.encode(images)
        error = {level: (ours.decode({**codes, **({level: codes[level].roll(1, 0)} if level else {})}) - images)
                 .square().mean().item() for level in ("", "top", "bottom")}
    assert error["top"] > 2 * error[""], error
    assert error["bottom"] > 2 * error[""], error


def test_codebooks_are_the_only_state_that_training_changes_without_gradient():
    model = tiny()
    assert {name.split(".")[0] for name, _ in model.named_buffers()} == {"quantizers"}
    assert all(isinstance(quantizer, EmaQuantizer) for quantizer in model.quantizers.values())
