"""Curves of several runs on one plot: which lines stand where, how a run is found, and what is refused."""

import csv
import json
import re
import shlex

import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from vqvae2.commands import curves
from vqvae2.common.errors import UserError
from vqvae2.plots import charts

VQVAE = [{"epoch": "1", "images_seen": "40", "seconds": "5", "train_loss": "0.5", "validate_loss": "0.3",
          "validate_ssim": "0.7", "top_used": "", "top_perplexity": ""},
         {"epoch": "2", "images_seen": "80", "seconds": "7.5", "train_loss": "0.4", "validate_loss": "0.2",
          "validate_ssim": "0.8", "top_used": "9", "top_perplexity": "5.5"}]
PRIOR = [{"epoch": "1", "images_seen": "20", "seconds": "3", "train_loss": "4.2", "validate_loss": "4.4",
          "train_bits_per_code": "6.0", "validate_bits_per_code": "6.4"}]


PARTS = [{"epoch": "1", "images_seen": "40", "train_loss": "0.5", "train_reconstruction": "0.30", "train_mse": "0.20",
          "train_commitment": "0.0", "train_prediction": "0.07", "validate_loss": "0.3",
          "validate_reconstruction": "0.25", "validate_mse": "0.15", "validate_commitment": "0.6",
          "validate_prediction": "0.05", "top_perplexity": "5.5", "bottom_perplexity": "7.5"},
         {"epoch": "2", "images_seen": "80", "train_loss": "0.4", "train_reconstruction": "0.20", "train_mse": "0.10",
          "train_commitment": "0.4", "train_prediction": "0.06", "validate_loss": "0.2",
          "validate_reconstruction": "0.15", "validate_mse": "0.05", "validate_commitment": "0.5",
          "validate_prediction": "0.04", "top_perplexity": "6.5", "bottom_perplexity": "8.5"}]
"""The columns of a two-level run whose loss has SSIM in it too and whose codebook is a moving average."""


def lines_of(axis):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axis.get_lines()}


def panels_of(figure):
    return {axis.get_title(): lines_of(axis) for axis in figure.axes}


def write_log(folder, rows, kind=None):
    folder.mkdir(parents=True)
    with (folder / "log.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    if kind:
        (folder / "config.json").write_text(json.dumps({"kind": kind, "settings": {}}))
    return folder


@pytest.fixture
def runs(apart):
    """Two VQ-VAEs and a prior in results/, one of which has only just begun."""
    write_log(apart / "results" / "oasis" / "one", VQVAE, "vqvae")
    write_log(apart / "results" / "oasis" / "two", VQVAE[:1])
    write_log(apart / "results" / "oasis" / "top", PRIOR, "top prior")
    return apart


def test_each_panel_has_a_line_for_each_run_that_has_its_figure(tmp_path):
    other = [{**row, "images_seen": 10 * int(row["images_seen"])} for row in VQVAE]
    figure = charts.compare_curves([charts.Run("one", VQVAE), charts.Run("two", other),
                                   charts.Run("top", PRIOR)], tmp_path / "curves.png", title="Three runs")
    assert panels_of(figure) == {
        "Loss (validation images)": {"one": ([40, 80], [0.3, 0.2]), "two": ([400, 800], [0.3, 0.2])},
        "NLL of the codes (validation images)": {"top": ([20], [6.4])},
        "Structural similarity (validation images)": {"one": ([40, 80], [0.7, 0.8]), "two": ([400, 800], [0.7, 0.8])},
        "Top codes in use (validation images)": {"one": ([80], [9]), "two": ([800], [9])},
        "Perplexity of the top codes (validation images)": {"one": ([80], [5.5]), "two": ([800], [5.5])}}
    assert {axis.get_xlabel() for axis in figure.axes} == {"training images seen (number)"}
    assert [axis.get_ylabel() for axis in figure.axes[1:4]] == ["NLL (bits per code)", "SSIM (1 is equal)",
                                                                "codes used (number)"]
    assert figure.get_suptitle() == "Three runs"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two", "top"]
    assert Image.open(tmp_path / "curves.png").width > 500


@pytest.mark.parametrize(("x", "places", "label"), [
    ("epoch", [1, 2], "epoch"), ("images_seen", [40, 80], "training images seen (number)"),
    ("seconds", [5, 12.5], "training time (seconds)")])
def test_lines_are_drawn_over_what_is_asked_for_and_seconds_add_up(x, places, label):
    figure = charts.compare_curves([charts.Run("one", VQVAE)], x=x)
    assert figure.axes[0].get_xlabel() == label
    assert panels_of(figure)["Structural similarity (validation images)"]["one"] == (places, [0.7, 0.8])


@pytest.mark.parametrize(("seconds", "place", "clock"), [(100, 100, "seconds"), (600, 10, "minutes"),
                                                         (36000, 10, "hours")])
def test_a_long_time_is_in_minutes_or_hours_for_all_panels(seconds, place, clock):
    rows = [{**VQVAE[1], "seconds": seconds}]
    figure = charts.compare_curves([charts.Run("one", rows)], x="seconds")
    assert {axis.get_xlabel() for axis in figure.axes} == {f"training time ({clock})"}
    assert all(lines["one"][0] == [place] for lines in panels_of(figure).values())


def test_training_images_stand_in_where_no_run_has_validation_images():
    alone = [{"epoch": 1, "images_seen": 40, "train_loss": 0.5}]
    figure = charts.compare_curves([charts.Run("alone", alone)])
    assert panels_of(figure) == {"Loss (training images)": {"alone": ([40], [0.5])}}
    figure = charts.compare_curves([charts.Run("alone", alone), charts.Run("one", VQVAE)])
    assert list(panels_of(figure)["Loss (validation images)"]) == ["one"]


def test_a_run_looks_the_same_in_all_panels_and_no_two_look_alike():
    runs = [charts.Run(f"run {number}", VQVAE) for number in range(charts.MOST_RUNS)]
    figure = charts.compare_curves(runs)
    looks = [{line.get_label(): (to_rgb(line.get_color()), line.get_linestyle()) for line in axis.get_lines()}
             for axis in figure.axes]
    assert all(look == looks[0] for look in looks)
    assert len(set(looks[0].values())) == len(runs) == 28
    assert len({colour for colour, _ in list(looks[0].values())[:7]}) == 7


@pytest.mark.parametrize("names", [["one"], [f"a-run-with-a-rather-long-name-{number}" for number in range(10)]])
def test_the_legend_covers_no_panel_and_is_not_cut_off(names):
    figure = charts.compare_curves([charts.Run(name, VQVAE) for name in names])
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert all(not legend.overlaps(axis.get_tightbbox()) for axis in figure.axes)
    assert legend.x0 >= 0
    assert legend.x1 <= figure.bbox.x1


def changed(rows, **columns):
    """Rows with columns that are copies of others (a name), or that are the same number in each row, or are gone."""
    rows = [{**row, **{new: row.get(old, old) for new, old in columns.items()}} for row in rows]
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


class TestPartsOfTheLoss:
    def test_each_part_has_a_panel(self):
        figure = charts.curves(changed(PARTS, train_codebook=0.3, validate_codebook=0.4))
        assert panels_of(figure) == {
            "Loss": {"train": ([1, 2], [0.5, 0.4]), "validate": ([1, 2], [0.3, 0.2])},
            "Reconstruction": {"train": ([1, 2], [0.3, 0.2]), "validate": ([1, 2], [0.25, 0.15])},
            "Mean squared error": {"train": ([1, 2], [0.2, 0.1]), "validate": ([1, 2], [0.15, 0.05])},
            "Commitment": {"train": ([1, 2], [0.0, 0.4]), "validate": ([1, 2], [0.6, 0.5])},
            "Codebook": {"train": ([1, 2], [0.3, 0.3]), "validate": ([1, 2], [0.4, 0.4])},
            "Prediction: what the top misses": {"train": ([1, 2], [0.07, 0.06]), "validate": ([1, 2], [0.05, 0.04])},
            "Perplexity of the codes (validation images)": {"top": ([1, 2], [5.5, 6.5]),
                                                            "bottom": ([1, 2], [7.5, 8.5])}}
        assert [axis.get_ylabel() for axis in figure.axes[1:5]] == [
            "part of the loss (no unit)", "MSE (images 0…1)", *2 * ["mean squared distance (no unit)"]]

    def test_a_log_of_an_older_version_has_the_panels_that_its_columns_allow(self):
        old = changed(PARTS, train_reconstruction=None, validate_reconstruction=None)
        assert [title.split(":")[0].split(" (")[0] for title in panels_of(charts.curves(old))] == [
            "Loss", "Mean squared error", "Commitment", "Prediction", "Perplexity of the codes"]

    def test_one_level_has_no_prediction(self):
        one_level = changed(PARTS, train_prediction="0.0", validate_prediction="0.0", bottom_perplexity=None)
        panels = panels_of(charts.curves(one_level))
        assert not [title for title in panels if "Prediction" in title]
        assert list(panels["Perplexity of the codes (validation images)"]) == ["top"]

    def test_what_would_be_drawn_twice_is_one_panel_whose_title_names_both(self):
        """Both terms of a gradient codebook are the same distance; a loss of squares alone is the squared error."""
        rows = changed(PARTS, train_mse="train_reconstruction", validate_mse="validate_reconstruction",
                       train_codebook="train_commitment", validate_codebook="validate_commitment")
        for figure in (charts.curves(rows), charts.compare_curves([charts.Run("one", rows)])):
            titles = [axis.get_title() for axis in figure.axes]
            assert [title.removesuffix(" (validation images)") for title in titles][:3] == [
                "Loss", "Reconstruction: mean squared error", "Commitment and codebook (equal values)"]
            assert not [title for title in titles if title.startswith(("Mean squared", "Codebook"))]
            assert [axis.get_ylabel() for axis in figure.axes[1:3]] == ["MSE (images 0…1)",
                                                                        "mean squared distance (no unit)"]
        assert panels_of(charts.curves(rows))["Commitment and codebook (equal values)"]["validate"] == (
            [1, 2], [0.6, 0.5])

    @pytest.mark.parametrize("column", ["train_codebook", "validate_codebook"])
    def test_what_differs_in_one_line_is_two_panels(self, column):
        rows = changed(PARTS, train_codebook="train_commitment", validate_codebook="validate_commitment")
        rows[1][column] = "0.45"
        assert {"Commitment", "Codebook"} <= set(panels_of(charts.curves(rows)))

    def test_runs_are_compared_by_each_part_that_they_have(self):
        old = changed(PARTS, validate_reconstruction=None, train_reconstruction=None)
        new = changed(PARTS, train_codebook=0.3, validate_codebook=0.4)
        found = panels_of(charts.compare_curves([charts.Run("old", old), charts.Run("new", new)]))
        assert {title.removesuffix(" (validation images)"): list(lines) for title, lines in found.items()} == {
            "Loss": ["old", "new"], "Reconstruction": ["new"], "Mean squared error": ["old", "new"],
            "Commitment": ["old", "new"], "Codebook": ["new"], "Perplexity of the top codes": ["old", "new"],
            "Perplexity of the bottom codes": ["old", "new"]}

    def test_parts_that_fall_far_have_a_logarithmic_scale(self):
        """A distance is 0 before the codebooks are placed: its line begins after that, and hides no other."""
        rows = changed(PARTS, train_prediction=0.5, validate_prediction=0.01, validate_commitment=0.001)
        figure = charts.curves(rows)
        scales = {axis.get_title().split(":")[0]: axis.get_yscale() for axis in figure.axes}
        assert (scales["Commitment"], scales["Prediction"], scales["Reconstruction"]) == ("log", "log", "linear")
        (commitment,) = [axis for axis in figure.axes if axis.get_title() == "Commitment"]
        assert commitment.get_ylim()[0] > 1e-4


def test_no_panel_is_an_error_that_names_the_runs(tmp_path):
    with pytest.raises(UserError, match=r"RUN: expected a log with a figure .*found none in bare, bald\. Wait"):
        charts.compare_curves([charts.Run("bare", [{"epoch": 1, "images_seen": 40}]),
                              charts.Run("bald", [{"epoch": 1, "images_seen": 40, "train_loss": ""}])],
                             tmp_path / "curves.png")
    assert list(tmp_path.iterdir()) == []


def test_the_command_draws_runs_by_name_and_by_folder(runs, capsys):
    curves.main(["one", "results/oasis/two/", "top", "--out", "new/curves.png", "--x", "epoch"])
    assert capsys.readouterr().out == "new/curves.png: 3 run(s), 5 panel(s)\nlook at: new/curves.png\n"
    assert Image.open(runs / "new" / "curves.png").width > 500


def test_runs_are_called_by_their_folders_and_what_they_learned(runs):
    assert [run.name for run in curves.read_runs(["one", "two", "top"])] == ["one", "two", "top (top prior)"]
    assert curves.read_runs(["top"])[0].rows == PRIOR


def test_runs_of_one_name_are_called_by_their_paths(runs):
    write_log(runs / "results" / "folder" / "one", VQVAE)
    with pytest.raises(UserError, match=r"RUN one: expected one run of this name, found results/folder/one, "
                                        r"results/oasis/one\. Give the path"):
        curves.read_runs(["one"])
    both = ["results/folder/one", "results/oasis/one"]
    assert [run.name for run in curves.read_runs(both)] == both


@pytest.mark.parametrize("ending", ["pdf", "svg"])
def test_a_plot_for_print_is_made_of_lines(runs, ending):
    curves.main(["one", "--out", f"curves.{ending}"])
    assert (runs / f"curves.{ending}").read_bytes()[:5] in (b"%PDF-", b"<?xml")


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_earlier_curves_are_replaced_and_another_file_is_not(runs, refusal, ending):
    path = runs / f"mine.{ending}"
    for names in (["one"], ["one", "two"]):
        curves.main([*names, "--out", path.name])
    path.write_bytes(b"a photo")
    assert refusal(curves.main, "one", "--out", path.name) == (
        f"--out {path.name}: expected nothing, or earlier curves, found another file. Choose another name.")
    assert path.read_bytes() == b"a photo"


@pytest.mark.parametrize(("arguments", "said"), [
    ("three", r"RUN three: expected a folder with log\.csv, or a name in results/\*/ or pretrained/, found only one, "
              r"top, two\. Check the name"),
    ("one --results elsewhere", r"RUN one: .* found no run at all\. Check the name"),
    ("one results/oasis/one", r"RUN results/oasis/one: expected each run once, found results/oasis/one twice\. Drop"),
    ("", r"RUN: expected 1 to 28 runs, found 0\. Name some"),
    ("one --out curves.gif", r"--out: expected a name that ends in \.png, \.pdf, \.svg, found curves\.gif\. Try"),
    ("one --x minutes", r"--x: expected one of images_seen, epoch, seconds, found minutes\."),
    ("one --out results", r"--out: .* found results\."),
    ("one --out results/oasis/one/log.csv/curves.png", r"log\.csv/curves\.png: expected to write this file, found ")])
def test_what_cannot_be_drawn_is_one_line(runs, refusal, arguments, said):
    line = refusal(curves.main, *shlex.split(arguments))
    assert re.search(said, line), line


@pytest.mark.parametrize(("content", "said"), [
    (b"", r"log\.csv: expected a table with a row for each epoch, found 0 rows\. Point"),
    (b"epoch,train_loss\n", r"found 0 rows"), (b"name,size\n1,3\n", r"found no epoch\. Copy"),
    (b"epoch,images_seen\n1,nan\n", r"found a number that is not finite\. Copy"),
    (b"\xff\xfe\x00", r"log\.csv: expected a table that a training has written, found 'utf-8' codec"),
    (b"epoch,images_seen,train_loss\n1,40,0.5\n2,80,abc\n",
     r"log\.csv: expected a table of numbers that a training has written, found could not convert .*'abc'\. Copy it"),
    (b"epoch,train_loss\n1,0.5,9\n", r"log\.csv: expected a table of numbers .*, found .*not 'list'\. Copy it")])
def test_a_log_that_is_none_is_told(runs, content, said):
    (runs / "results" / "oasis" / "one" / "log.csv").write_bytes(content)
    with pytest.raises(UserError, match=said):
        curves.read_runs(["one"])
    assert len(curves.read_runs(["two"])) == 1


def test_names_and_titles_are_shown_as_they_are():
    """Two $ would be a formula, and matplotlib hides labels that begin with _."""
    figure = charts.compare_curves([charts.Run("_under", VQVAE), charts.Run("a$_b^{$", VQVAE)],
                                         title=r"$\frac$")
    figure.draw_without_rendering()
    [legend] = figure.legends
    assert [text.get_text().strip() for text in legend.get_texts()] == ["_under", r"a\$_b^{\$"]
