"""Pictures and charts: what stands where, and that a file is either whole or the old one."""

import os

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot
from PIL import Image

from vqvae2.common.errors import UserError
from vqvae2.plots import charts, pictures

EPOCHS = [{"epoch": "1", "train_loss": "0.5", "validate_loss": "0.6", "validate_ssim": "0.7", "top_used": "9",
           "train_mse": "0.25", "validate_mse": "0.02",
           "top_perplexity": "5.5", "top_shuffle_drop": "0.01", "bottom_used": "11", "learning_rate": "0.001"},
          {"epoch": "2", "train_loss": "0.4", "validate_loss": "", "validate_ssim": None, "top_used": "12",
           "top_perplexity": "6.5", "top_shuffle_drop": "0.02", "bottom_used": "10", "learning_rate": "0.001"}]


def random_images(n=3, channels=1, height=8, width=8, seed=0):
    return torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8,
                         generator=torch.Generator().manual_seed(seed))


def lines_of(axis):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axis.get_lines()}


@settings(max_examples=40)
@given(n=st.integers(1, 7), columns=st.integers(1, 8), gap=st.integers(0, 3), channels=st.sampled_from([1, 3]))
def test_a_grid_has_each_image_in_its_place_and_white_elsewhere(n, columns, gap, channels):
    images = random_images(n, channels, height=3, width=5)
    grid = np.array(pictures.image_grid(images, columns, gap)).reshape(-1, min(n, columns) * (5 + gap) - gap, channels)
    seen = np.zeros(grid.shape[:2], bool)
    for number, image in enumerate(images.numpy()):
        top, left = (number // columns) * (3 + gap), (number % columns) * (5 + gap)
        np.testing.assert_array_equal(grid[top:top + 3, left:left + 5], image.transpose(1, 2, 0))
        seen[top:top + 3, left:left + 5] = True
    assert (grid[~seen] == 255).all()


@pytest.mark.parametrize("images", [torch.zeros(2, 1, 4, 4), torch.zeros(2, 2, 4, 4, dtype=torch.uint8),
                                    torch.zeros(0, 1, 4, 4, dtype=torch.uint8)])
def test_a_grid_of_anything_but_8_bit_grey_or_colour_images_is_refused(images):
    with pytest.raises(ValueError, match=rf"found {images.dtype} \[{len(images)}, {images.shape[1]}, 4, 4\]"):
        pictures.image_grid(images, columns=2)


def test_a_saved_picture_is_read_back_equal_from_a_folder_that_was_not_there(tmp_path):
    picture = pictures.image_grid(random_images(), columns=2)
    pictures.save_picture(picture, tmp_path / "new" / "grid.png")
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "new" / "grid.png")), np.array(picture))
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["grid.png"]


def test_a_picture_that_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path):
    class Breaks:
        def save(self, path):
            path.write_bytes(b"half a pic")
            raise OSError("no space left on device")

    path = tmp_path / "grid.png"
    path.write_bytes(b"the old one")
    with pytest.raises(UserError, match=r"grid\.png: .* found no space left on device.* Free some space"):
        pictures.save_picture(Breaks(), path)
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_strip_has_its_rows_of_images_beside_their_labels():
    first, second = random_images(3, height=128, width=128), random_images(2, height=128, width=128, seed=1)
    strip = np.array(pictures.strip([("real", first), ("sample", second)]))
    assert strip.shape == (128 + 2 + 128, pictures.LABEL_WIDTH + 3 * 130 - 2)
    images = strip[:, pictures.LABEL_WIDTH:]
    np.testing.assert_array_equal(images[:128, 260:], first[2, 0])
    np.testing.assert_array_equal(images[130:, 130:258], second[1, 0])
    assert (images[130:, 260:] == 255).all()
    labels = strip[:, : pictures.LABEL_WIDTH]
    assert labels[:128].min() < 100
    assert labels[130:].min() < 100


def test_small_images_are_enlarged_by_a_whole_number_without_mixing_pixels():
    image = random_images(1, height=50, width=60)
    strip = np.array(pictures.strip([("real", image)]))[:, pictures.LABEL_WIDTH:]
    np.testing.assert_array_equal(strip, np.kron(image[0, 0], np.ones((3, 3))))


def test_the_difference_row_has_the_stated_scale():
    """Differences of 0, 0.1 and 0.2 and more are the start, the middle and the end of the colour map."""
    originals = torch.zeros(4, 1, 128, 128, dtype=torch.uint8)
    reconstructions = originals.clone()
    for number, value in enumerate((0, 0.1 * 255, 0.2 * 255, 255)):
        reconstructions[number] = round(value)
    picture = np.array(pictures.strip(pictures.compared(originals, reconstructions)))
    assert picture.shape == (3 * 130 - 2, pictures.LABEL_WIDTH + 4 * 130 - 2, 3)
    row = picture[260 + 64, pictures.LABEL_WIDTH + 64::130].astype(int)
    expected = 255 * np.array(matplotlib.colormaps["inferno"]([0.0, 0.5, 1.0, 1.0]))[:, :3]
    np.testing.assert_allclose(row, expected, atol=4)
    np.testing.assert_array_equal(picture[130 + 64, pictures.LABEL_WIDTH + 64::130, 0], [0, 26, 51, 255])


def test_captions_stand_under_their_columns():
    images = random_images(2, channels=3, height=128, width=128)
    plain = np.array(pictures.strip(pictures.compared(images, images)))
    captioned = np.array(pictures.strip(pictures.compared(images, images),
                                        captions=["", "sub-01, SSIM 0.912, a long one"]))
    np.testing.assert_array_equal(captioned[: len(plain), : plain.shape[1]], plain)
    line = captioned[len(plain):, pictures.LABEL_WIDTH:]
    assert line[:, :128].min() == 255
    assert line[:, 130:].min() < 100


ROWS_OF_PICTURES = {
    "grid": lambda images, **more: pictures.image_grid(images, 2, **more),
    "strip": lambda images, **more: pictures.strip([("real", images)], **more),
    "reconstructions": lambda images, **more: pictures.strip(pictures.compared(images, images), captions=["a", "b"],
                                                             **more),
    "completions": lambda images, **more: pictures.strip([("one", images)], header=["a", "b"], **more),
    "code maps": lambda images, **more: pictures.code_map_picture(images[:, 0] // 2, 128, **more)}


@pytest.mark.parametrize("draw", ROWS_OF_PICTURES.values(), ids=ROWS_OF_PICTURES)
def test_a_title_stands_above_a_picture_that_is_otherwise_as_without_it(draw):
    images = random_images(2, height=128, width=128)
    plain, titled = np.array(draw(images)), np.array(draw(images, title="Epoch 3, SSIM 0.9"))
    above = len(titled) - len(plain)
    assert above > pictures.TEXT_SIZE
    np.testing.assert_array_equal(titled[above:], plain)
    assert titled[:above].min() < 100
    assert (titled[:above, [0, -1]] == 255).all(), "the title is not cut off"


def test_a_long_title_takes_more_lines_and_a_long_word_is_made_smaller():
    picture = Image.new("L", (200, 10))
    heights = [pictures.titled(picture, title).height - 10 for title in ("two words", "two words " * 8, "word" * 9)]
    assert heights[1] >= 2 * heights[0]
    assert heights[2] == heights[0]
    for title in ("two words " * 8, "word" * 9):
        assert np.array(pictures.titled(picture, title))[:, -3:][:-10].min() == 255
    assert pictures.titled(picture, None) is picture


def frames_of(path):
    """The frames of an animation in colour, and how long each stands, in ms."""
    with Image.open(path) as gif:
        frames = []
        for number in range(gif.n_frames):
            gif.seek(number)
            frames.append((np.array(gif.convert("RGB")).astype(int), gif.info["duration"]))
    return [frame for frame, _ in frames], [duration for _, duration in frames]


def written(folder, epochs, columns=2, height=128):
    """Pictures of some epochs: the reconstruction is as bright as the epoch's number says."""
    paths = []
    for epoch in epochs:
        images = torch.full((columns, 1, height, 128), 100, dtype=torch.uint8)
        picture = pictures.strip(pictures.compared(images, images - 100 + epoch), title=f"Epoch {epoch}")
        paths.append(folder / f"{epoch:04d}.png")
        pictures.save_picture(picture, paths[-1])
    return paths


def test_an_animation_shows_one_picture_after_the_other_and_holds_the_last(tmp_path):
    paths = written(tmp_path, (10, 60, 100, 220))
    assert pictures.animate(paths, tmp_path / "all.gif", columns=2) == 4
    frames, durations = frames_of(tmp_path / "all.gif")
    assert len(set(durations[:3])) == 1
    assert durations[3] >= 10 * durations[0]
    for frame, path in zip(frames, paths):
        np.testing.assert_allclose(frame, np.array(Image.open(path).convert("RGB")), atol=8)
    assert frames[0][0, 0].tolist() == [255, 255, 255], "white stays white"


def test_an_animation_keeps_as_many_whole_columns_as_fit(tmp_path):
    pictures.animate(written(tmp_path, (10, 60), columns=8), tmp_path / "all.gif", columns=8)
    (first, _), _ = frames_of(tmp_path / "all.gif")
    picture = np.array(Image.open(tmp_path / "0010.png").convert("RGB"))
    assert pictures.LABEL_WIDTH + 4 * 130 - 2 <= first.shape[1] <= pictures.LABEL_WIDTH + 4 * 130 <= pictures.GIF_WIDTH
    np.testing.assert_allclose(first, picture[:, : first.shape[1]], atol=8)


def test_an_animation_of_many_epochs_is_thinned_out_evenly_and_ends_with_the_last(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "GIF_FRAMES", 3)
    paths = written(tmp_path, (10, 60, 100, 140, 180, 220, 240), columns=1)
    for count, chosen in ((3, [10, 60, 100]), (4, [10, 100, 140]), (6, [10, 140, 220]), (7, [10, 140, 240])):
        pictures.animate(paths[:count], tmp_path / "all.gif")
        frames, _ = frames_of(tmp_path / "all.gif")
        middle = [frame[-64 - 130, pictures.LABEL_WIDTH + 64, 0] for frame in frames]
        np.testing.assert_allclose(middle, chosen, atol=8)


def test_an_animation_leaves_out_what_is_no_picture_or_of_another_width_and_reads_a_changed_one_again(tmp_path):
    paths = written(tmp_path, (10, 60, 100))
    paths[0].write_bytes(b"half a pic")
    written(tmp_path, (60,), columns=3)
    assert pictures.animate(paths, tmp_path / "all.gif", columns=2) == 1
    written(tmp_path, (10, 60))
    os.utime(paths[1], ns=(1, 1))
    assert pictures.animate([*paths, tmp_path / "0999.png"], tmp_path / "all.gif", columns=2) == 3
    assert pictures.animate([], tmp_path / "none.gif") == 0
    assert not (tmp_path / "none.gif").exists()


def test_pictures_of_other_heights_are_made_as_tall_as_the_tallest(tmp_path):
    paths = written(tmp_path, (10, 60))
    plain = Image.open(paths[1])
    pictures.save_picture(plain.crop((0, 24, *plain.size)), paths[1])  # as if it had no title
    assert pictures.animate(paths, tmp_path / "all.gif", columns=2) == 2
    (_, second), _ = frames_of(tmp_path / "all.gif")
    assert (second[:24] == 255).all()
    np.testing.assert_allclose(second[24:], np.array(plain.convert("RGB"))[24:], atol=8)


def test_equal_codes_have_equal_colours_in_every_picture_and_others_have_others():
    codes = np.arange(512).reshape(1, 16, 32)
    picture = np.array(pictures.code_map_picture(codes, 512))
    again = np.array(pictures.code_map_picture(torch.from_numpy(codes[:, ::-1].copy()).short(), 512))
    factor = 128 // 16
    colours = picture[::factor, ::factor]
    np.testing.assert_array_equal(again[::factor, ::factor], colours[::-1])
    np.testing.assert_array_equal(picture, colours.repeat(factor, 0).repeat(factor, 1))
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) > 505  # 512 draws among about a million colours


def test_codes_yet_to_be_drawn_are_black_and_no_other_code_is():
    codes = np.arange(-1, 511).reshape(1, 16, 32)
    colours = np.array(pictures.code_map_picture(codes, 511))[::8, ::8].reshape(-1, 3)
    assert colours[0].tolist() == [0, 0, 0]
    assert colours[1:].max(1).min() > 80


def test_curves_have_a_panel_for_each_figure_with_a_value_and_skip_empty_cells(tmp_path):
    figure = charts.curves(EPOCHS, tmp_path / "losses.png", title="brain: epoch 2 of 2")
    panels = {axis.get_title().removesuffix(" (validation images)"): axis for axis in figure.axes}
    assert list(panels) == ["Loss", "Mean squared error", "Structural similarity", "Codes in use",
                            "Perplexity of the codes", "Shuffle drop: what a level carries"]
    assert figure.get_suptitle() == "brain: epoch 2 of 2"
    assert lines_of(panels["Mean squared error"]) == {"train": ([1], [0.25]), "validate": ([1], [0.02])}
    assert (panels["Mean squared error"].get_yscale(), panels["Loss"].get_yscale()) == ("log", "linear")
    assert lines_of(panels["Loss"]) == {"train": ([1, 2], [0.5, 0.4]), "validate": ([1], [0.6])}
    assert lines_of(panels["Structural similarity"]) == {"validate": ([1], [0.7])}
    assert lines_of(panels["Codes in use"]) == {"top": ([1, 2], [9, 12]), "bottom": ([1, 2], [11, 10])}
    assert lines_of(panels["Perplexity of the codes"]) == {"top": ([1, 2], [5.5, 6.5])}
    assert all(axis.get_xlabel() == "epoch" and axis.get_ylabel() and axis.get_legend() for axis in figure.axes)
    assert Image.open(tmp_path / "losses.png").width > 500


def test_curves_of_a_prior_are_in_bits_per_code_and_its_loss_in_nats_is_left_out(tmp_path):
    rows = [{"epoch": 1, "train_loss": 4.2, "train_bits_per_code": 6.0, "validate_bits_per_code": 6.5}]
    (axis,) = charts.curves(rows, tmp_path / "losses.png", references={"context": 6.2}).axes
    assert axis.get_ylabel() == "NLL (bits per code)"
    lines = lines_of(axis)
    assert lines.pop("counting: neighbours")[1] == [6.2, 6.2]
    assert lines == {"train": ([1], [6.0]), "validate": ([1], [6.5])}


def test_curves_before_the_first_epoch_are_an_empty_picture(tmp_path):
    assert charts.curves([], tmp_path / "losses.png").axes == []
    assert Image.open(tmp_path / "losses.png").width > 100


def test_a_code_histogram_names_codes_used_and_perplexity_of_each_level(tmp_path):
    figure = charts.code_histogram({"top": torch.tensor([0, 6, 0, 6]), "bottom": torch.tensor([5, 5, 5, 5])},
                                  tmp_path / "codes.png")
    assert [axis.get_title() for axis in figure.axes] == ["Top codes: 2 of 4 used, perplexity 2",
                                                          "Bottom codes: 4 of 4 used, perplexity 4"]
    for axis, highest in zip(figure.axes, (50, 25)):
        assert axis.collections[0].get_datalim(axis.transData).ymax == pytest.approx(highest)
        assert lines_of(axis)["even use"][1] == [25, 25]
        assert "%" in axis.get_ylabel()


def test_a_chart_can_be_had_as_the_picture_that_would_be_written(tmp_path):
    counts = {"top": torch.tensor([1, 6, 0, 6])}
    figure = charts.code_histogram(counts, tmp_path / "codes.png", title="Epoch 3")
    assert figure.get_suptitle() == "Epoch 3"
    picture = charts.as_picture(charts.code_histogram(counts, title="Epoch 3"))
    np.testing.assert_array_equal(np.array(picture), np.array(Image.open(tmp_path / "codes.png").convert("RGB")))
    assert [file.name for file in tmp_path.iterdir()] == ["codes.png"]


def test_the_histogram_of_ssim_marks_mean_and_minimum_and_leaves_nan_out(tmp_path):
    figures = {"full": {"ssim": torch.tensor([0.8, 0.9, 1.0])}, "brain": {"ssim": torch.tensor([0.5, torch.nan, 0.7])}}
    (axis,) = charts.ssim_histogram(figures, tmp_path / "ssim.png").axes
    assert (axis.get_title(), axis.get_xlabel()) == ("SSIM of the images", "SSIM (1 is equal)")
    marks = {label: xs[0] for label, (xs, _) in lines_of(axis).items()}
    assert marks == {"mean 0.9": pytest.approx(0.9), "minimum 0.8": pytest.approx(0.8),
                     "mean 0.6": pytest.approx(0.6), "minimum 0.5": pytest.approx(0.5)}
    assert {"full: 3 images", "brain: 2 images"} <= {text.get_text() for text in axis.get_legend().get_texts()}
    assert sum(patch.get_height() for patch in axis.patches) == 5
    (empty,) = charts.ssim_histogram({"full": {"ssim": torch.tensor([torch.nan])}}).axes
    assert empty.get_legend() is None


def test_charts_leave_pyplot_alone(tmp_path):
    charts.curves(EPOCHS, tmp_path / "losses.png")
    assert pyplot.get_fignums() == []
