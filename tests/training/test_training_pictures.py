"""What a training run draws as it goes: files of each epoch, a GIF, TensorBoard; and what a stop leaves of them."""

import os
import shutil
import signal
import threading
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_PRIOR, TINY_VQVAE, files_in
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import record_writer
from torch.utils import tensorboard

from vqvae2.commands import train_prior, train_vqvae
from vqvae2.common import distributed
from vqvae2.common.errors import Stopped, UserError
from vqvae2.metrics import coding, context_model
from vqvae2.models.code_maps import CodeMaps
from vqvae2.plots import charts
from vqvae2.plots import pictures as plots
from vqvae2.runs import writers
from vqvae2.runs.log import RunLog
from vqvae2.training import vqvae

EVERY_EPOCH = [*TINY[: TINY.index("--pictures-every")], *TINY_VQVAE[2:], "--pictures-every", "1"]
SMALL = Image.new("RGB", (40, 30), (10, 20, 30))


def train(data, results, epochs, name="pictured"):
    train_vqvae.main(["--data", str(data), "--results", str(results), "--savename", name, *EVERY_EPOCH, "--epochs",
                      str(epochs)])
    return results / "oasis" / name


def board_of(folder):
    board = EventAccumulator(str(folder), size_guidance={"images": 0, "histograms": 0, "scalars": 0})
    board.Reload()
    return board


def frames_in(path):
    with Image.open(path) as gif:
        return gif.n_frames


@pytest.fixture(scope="module")
def run(tiny_slices, tmp_path_factory):
    """Three epochs, then one more; before that lay a picture of epoch 9, as of a run that went on from an older state.

    What stood in the folder after three epochs is returned beside it.
    """
    results = tmp_path_factory.mktemp("pictured")
    folder = train(tiny_slices, results, 3)
    before = files_in(folder), frames_in(folder / "reconstructions.gif")
    plots.save_picture(Image.open(folder / "reconstructions" / "0003.png"), folder / "reconstructions" / "0009.png")
    train(tiny_slices, results, 4)
    return folder, before


def test_each_epoch_has_its_pictures(run):
    folder, (before, _) = run
    names = {name for name in files_in(folder) if name.endswith((".png", ".gif"))}
    epochs = (1, 2, 3, 4)
    assert names == {
        "losses.png", "mean.png", "reconstructions.gif", "reconstructions/0009.png",
        *(f"reconstructions/{epoch:04d}.png" for epoch in epochs),
        *(f"code_histograms/{epoch:04d}.png" for epoch in epochs),
        *(f"code_images/{epoch:04d}_{level}.png" for epoch in epochs for level in ("top", "bottom"))}
    assert not [name for name in before if "0004" in name]


def test_reconstructions_are_of_the_same_images_each_epoch_and_say_which_epoch(run):
    pictures = [np.array(Image.open(run[0] / "reconstructions" / f"{epoch:04d}.png")).astype(int)
                for epoch in (1, 2, 3, 4)]
    above = pictures[0].shape[0] - (3 * 130 - 2)
    for before, other in pairwise(pictures):
        np.testing.assert_array_equal(before[above:above + 128], other[above:above + 128])
        assert (before[above + 130:above + 258] != other[above + 130:above + 258]).any()
        assert (before[:above] != other[:above]).any()


def test_the_gif_has_a_frame_for_each_epoch_so_far_those_before_a_stop_too_and_none_of_later_ones(run):
    folder, (_, frames_before) = run
    assert frames_before == 3
    with Image.open(folder / "reconstructions.gif") as gif:
        assert gif.n_frames == 4
        gif.seek(3)
        last = np.array(gif.convert("RGB")).astype(int)
        assert gif.info["duration"] >= 2000
    fourth = np.array(Image.open(folder / "reconstructions" / "0004.png").convert("RGB"))[:, : last.shape[1]]
    np.testing.assert_allclose(last, fourth, atol=16)


def test_tensorboard_has_the_same_pictures_and_how_codes_are_used(run):
    board = board_of(run[0])
    tags = ("reconstructions", "code_images/top", "code_images/bottom", "code_histograms")
    assert {tag: [event.step for event in board.Images(tag)] for tag in board.Tags()["images"]} == {
        tag: [1, 2, 3, 4] for tag in tags}
    assert set(board.Tags()["histograms"]) == {"use_of_codes_percent/top", "use_of_codes_percent/bottom"}
    for tag in board.Tags()["histograms"]:
        assert [event.step for event in board.Histograms(tag)] == [1, 2, 3, 4]
        value = board.Histograms(tag)[-1].histogram_value
        assert value.num == 16, "one value for each code of the codebook"
        assert value.sum == pytest.approx(100)
    assert {"validate/ssim", "top/perplexity", "bottom/used"} <= set(board.Tags()["scalars"])


@pytest.fixture
def no_curves(monkeypatch):
    """Curves take most of the time, and other tests look at them."""
    monkeypatch.setattr(charts, "curves", lambda *_, **__: None)


@pytest.mark.usefixtures("no_curves")
def test_before_quantising_begins_there_are_no_codes_to_draw(tiny_slices, tmp_path):
    """Eight epochs of three steps: the first six steps, a quarter, are without codes."""
    folder = train(tiny_slices, tmp_path, 8)
    assert len(list((folder / "reconstructions").iterdir())) == 8
    first = {name: min(path.name[:4] for path in (folder / name).iterdir()) for name in ("code_images",
                                                                                         "code_histograms")}
    assert first == {"code_images": "0003", "code_histograms": "0003"}


@pytest.mark.usefixtures("no_curves")
def test_what_the_histogram_counts_is_what_the_log_reports(tiny_slices, tmp_path, monkeypatch):
    """Counts of all validation images: as many as used, and as perplexity, say."""
    shown = []

    def histogram(_, name, epoch, values):
        if epoch == 3:
            shown.append((name, values))

    monkeypatch.setattr(RunLog, "histogram", histogram)
    folder = train(tiny_slices, tmp_path, 3)
    last = dict(zip(*(line.split(",") for line in [(folder / "log.csv").read_text().splitlines()[i] for i in (0, -1)])))
    assert [name for name, _ in shown] == ["use_of_codes_percent/top", "use_of_codes_percent/bottom"]
    for name, values in shown:
        level = name.split("/")[1]
        assert int((values > 0).sum()) == float(last[f"{level}_used"])
        assert coding.codebook_figures(values)["perplexity"] == pytest.approx(float(last[f"{level}_perplexity"]),
                                                                                rel=1e-4)


@pytest.mark.usefixtures("no_curves")
def test_drawing_needs_no_other_process(tiny_slices, tmp_path, monkeypatch):
    """Rank 0 draws alone: a sum over ranks there would wait for ever."""
    draw = vqvae.VqvaeTrainer.pictures

    def alone(trainer, epoch):
        with monkeypatch.context() as changed:
            for name in ("sum_over_ranks", "gather_objects", "barrier", "any_rank", "on_rank_0", "together"):
                changed.setattr(distributed, name, lambda *_, name=name: pytest.fail(f"{name} while drawing"))
            draw(trainer, epoch)

    monkeypatch.setattr(vqvae.VqvaeTrainer, "pictures", alone)
    folder = train(tiny_slices, tmp_path, 2)
    assert len(list((folder / "reconstructions").iterdir())) == 2


@pytest.mark.usefixtures("no_curves")
def test_a_signal_while_the_gif_is_written_leaves_the_old_one_and_the_next_start_makes_the_new(tiny_slices, tmp_path,
                                                                                                monkeypatch):
    folder = train(tiny_slices, tmp_path, 1)
    before = (folder / "reconstructions.gif").read_bytes()
    save = Image.Image.save

    def interrupted(picture, path, *more, **options):
        save(picture, path, *more, **options)
        if str(path).endswith(".gif"):
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as changed:
        changed.setattr(Image.Image, "save", interrupted)
        with pytest.raises(Stopped, match="all saved"):
            train(tiny_slices, tmp_path, 3)
    assert (folder / "reconstructions.gif").read_bytes() == before
    assert not list(folder.rglob("*.tmp*"))
    train(tiny_slices, tmp_path, 3)
    assert frames_in(folder / "reconstructions.gif") == 3


@pytest.mark.usefixtures("no_curves")
def test_without_validation_images_training_images_are_pictured_and_no_code_is_counted(tiny_slices, tmp_path):
    lines = (tiny_slices / "manifest.csv").read_text().splitlines()
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "test"):
        shutil.copytree(tiny_slices / split, data / split)
    (data / "manifest.csv").write_text("\n".join(line for line in lines if ",validate," not in line) + "\n")
    folder = train(data, tmp_path / "results", 3)
    assert frames_in(folder / "reconstructions.gif") == 3
    assert (folder / "code_images" / "0003_top.png").exists()
    assert not (folder / "code_histograms").exists()


def test_a_prior_draws_its_curves_beside_the_models_that_count(tiny_run, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(charts, "curves", lambda rows, out, **more: drawn.append((len(rows), out.name, more)))
    arguments = [*TINY[: TINY.index("--pictures-every")], *TINY_PRIOR, "--pictures-every", "1", "--level", "top"]
    train_prior.main([*arguments, "--vqvae", str(tiny_run.vqvae), "--data", str(tiny_run.data), "--results",
                          str(tmp_path), "--savename", "top"])
    assert [(rows, name) for rows, name, _ in drawn] == [(1, "losses.png"), (2, "losses.png")]
    assert drawn[1][2]["title"] == "top, top prior: epoch 2 of 2"
    maps = {split: CodeMaps.load(tiny_run.vqvae / "codes" / f"{split}.npz", _hash_of(tiny_run)).levels["top"].numpy()
            for split in ("train", "validate")}
    expected = context_model.context_model_bits(maps["train"], maps["validate"], 16)
    assert drawn[1][2]["references"] == pytest.approx(expected)


def _hash_of(tiny_run):
    with np.load(tiny_run.vqvae / "codes" / "train.npz") as file:
        return str(file["vqvae_hash"])


class TestRunLog:
    """What is shown on the board, and by whom."""

    def test_a_picture_is_a_file_and_on_the_board(self, tmp_path):
        log = RunLog(tmp_path, 0)
        assert log.picture("odd", 7, SMALL) == tmp_path / "odd" / "0007.png"
        assert log.picture("odd", 7, SMALL, "top") == tmp_path / "odd" / "0007_top.png"
        log.close(ended_well=True)
        np.testing.assert_array_equal(np.array(Image.open(tmp_path / "odd" / "0007_top.png")), np.array(SMALL))
        board = board_of(tmp_path)
        assert {tag: [event.step for event in board.Images(tag)] for tag in board.Tags()["images"]} == {
            "odd": [7], "odd/top": [7]}

    @pytest.mark.parametrize(("width", "shown"), [(800, 800), (801, 401), (2180, 727)])
    def test_a_wide_picture_is_shrunk_for_the_board_but_not_as_a_file(self, tmp_path, width, shown):
        log = RunLog(tmp_path, 0)
        path = log.picture("wide", 1, Image.new("L", (width, 20), 77))
        log.close(ended_well=True)
        assert Image.open(path).width == width
        assert board_of(tmp_path).Images("wide")[0].width == shown

    def test_going_on_drops_what_the_board_showed_of_later_epochs(self, tmp_path):
        for start, epochs in ((0, (1, 2, 3)), (1, (2,))):
            log = RunLog(tmp_path, start)
            for epoch in epochs:
                log.picture("odd", epoch, SMALL)
                log.histogram("use", epoch, torch.arange(4))
            log.close(ended_well=True)
        board = board_of(tmp_path)
        assert [event.step for event in board.Images("odd")] == [1, 2]
        assert [event.step for event in board.Histograms("use")] == [1, 2]

    def test_pictures_until_an_epoch_come_in_order_and_without_those_of_a_part(self, tmp_path):
        for name in ("0010", "0002", "0002_top", "0011", "10000", "note"):
            plots.save_picture(SMALL, tmp_path / "odd" / f"{name}.png")
        log = RunLog(tmp_path, 0)
        assert [path.stem for path in log.pictures_until("odd", 10)] == ["0002", "0010"]
        assert [path.stem for path in log.pictures_until("odd", 10**6)] == ["0002", "0010", "0011", "10000"]
        assert log.pictures_until("even", 10) == []

    def test_other_ranks_write_nothing(self, tmp_path, monkeypatch):
        monkeypatch.setattr(distributed, "rank", lambda: 1)
        log = RunLog(tmp_path, 0)
        assert log.picture("odd", 1, SMALL) is None
        log.histogram("use", 1, torch.arange(4))
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("name", ["add_image", "add_histogram"])
    def test_a_full_disk_is_one_line(self, tmp_path, monkeypatch, name):
        def full(*_, **__):
            raise OSError(28, "No space left on device")

        log = RunLog(tmp_path, 0)
        monkeypatch.setattr(log.writers[0].board, name, full)
        with pytest.raises(UserError, match=r"TensorBoard's file, found No space left on device\. Free some space"):
            log.picture("odd", 1, SMALL) if name == "add_image" else log.histogram("use", 1, torch.arange(4))

    def test_a_full_disk_under_the_boards_own_thread_is_one_line_too(self, tmp_path, monkeypatch, capfd):
        def full(_):
            raise OSError(28, "No space left on device")

        log = RunLog(tmp_path, 0)
        monkeypatch.setattr(log.writers[0].board.file_writer.event_writer._async_writer._writer, "write", full)
        with pytest.raises(UserError, match=r"TensorBoard's file, found No space left on device\. Free some space"):
            log.picture("odd", 1, SMALL)
        log.close(ended_well=True)
        assert capfd.readouterr().err == ""

    def test_a_full_disk_under_the_first_bytes_of_the_boards_file_is_one_line_too(self, tmp_path, monkeypatch, capfd):
        def full(*_):
            raise OSError(28, "No space left on device")

        class Slow(tensorboard.SummaryWriter):
            def __init__(self, *arguments, **options):
                super().__init__(*arguments, **options)
                self.file_writer.event_writer._async_writer._worker.join(10)  # it has failed by now

        monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
        monkeypatch.setattr(tensorboard, "SummaryWriter", Slow)
        monkeypatch.setattr(record_writer.RecordWriter, "write", full)
        with pytest.raises(UserError, match=r"TensorBoard's file, found No space left on device\. Free some space"):
            RunLog(tmp_path, 0).picture("odd", 1, SMALL)
        assert capfd.readouterr().err == ""

    def test_another_service_is_one_class_that_gets_what_the_board_gets(self, tmp_path, monkeypatch):
        shown = []

        class Service(writers.TensorBoard):
            writes = "the service's file"

            def row(self, epoch, row):
                shown.append((epoch, row))
                self.epochs = epoch

            def picture(self, name, epoch, picture):
                shown.append((name, epoch, picture.size))

            def histogram(self, name, epoch, values):
                raise OSError(28, "No space left on device")

        monkeypatch.setitem(writers.WRITERS, "service", Service)
        log = RunLog(tmp_path, 0, ("tensorboard", "service"))
        log.write([{"train_loss": 0.5}], "epoch 1/2")
        log.picture("odd", 1, SMALL, "top")
        with pytest.raises(UserError, match=r"expected to write the service's file, found No space left on device"):
            log.histogram("use", 1, torch.arange(4))
        log.close(ended_well=True)
        assert shown == [(1, {"train_loss": 0.5}), ("odd/top", 1, SMALL.size)]

    def test_the_board_is_given_no_more_than_it_shows(self, tmp_path):
        log = RunLog(tmp_path, 0)
        log.histogram("use", 1, torch.linspace(0, 1, 5000))
        log.close(ended_well=True)
        (histogram,) = board_of(tmp_path).Histograms("use")
        assert len(histogram.histogram_value.bucket) <= writers.BOARD_BINS + 1
        assert sum(histogram.histogram_value.bucket) == 5000
