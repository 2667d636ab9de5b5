"""index.html shows every scan of the manifest as it is, in a real Chromium; names in it do nothing."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from chromium import Chromium, find_chromium
from made_up_scans import made_up
from PIL import Image
from scan_files import block, save, save_analyze, save_bids

from vqvae2.commands import extract as extract_slices
from vqvae2.scans.finding import find_scans
from vqvae2.slices import scan_slices
from vqvae2.slices.page import (
    ACROSS,
    MOST_LEFT_OUT,
    THUMBNAIL,
    ShownScan,
    page_bytes,
    thumbnail,
    warnings_of,
)

SMALL = ["--size", "128", "--field-of-view", "16", "--per-scan", "2", "--workers", "1"]
pytestmark = pytest.mark.filterwarnings("error")
in_chromium = pytest.mark.skipif(find_chromium() is None, reason="no chromium, chromium-browser or google-chrome")
SHOWN = """[...document.querySelectorAll("article")].filter(card => card.checkVisibility())
    .map(card => card.querySelector(".file").textContent)"""


@pytest.fixture(scope="module")
def browser():
    with Chromium() as chromium:
        yield chromium


def extract(scans, out, *more):
    """Run the script; return the page's bytes."""
    extract_slices.main(["--scans", str(scans), "--out", str(out), *SMALL, *map(str, more)])
    return (out / "index.html").read_bytes()


def facts_in(page: bytes) -> dict:
    return json.loads(re.search(rb'<script type="application/json" id="facts">(.*?)</script>', page)[1])


def scans_in(page: bytes) -> dict[str, dict]:
    facts = facts_in(page)
    return {scan["scan"]: scan for scan in (dict(zip(facts["fields"], row)) for row in facts["scans"])}


def opened(browser, folder, page: bytes, fragment: str = "") -> Chromium:
    (folder / "index.html").write_bytes(page)
    browser.open(folder / "index.html", fragment)
    assert browser.events("Runtime.exceptionThrown", "Log.entryAdded") == []
    return browser


def shown_text(browser) -> str:
    return browser.evaluate("document.getElementById('shown').textContent")


def one(scan: str = "a.nii", **more: object) -> ShownScan:
    values = {"subject": "a", "session": "", "run": "", "split": "train", "archive": "bids", "orientation": "LAS",
              "orientation_from": "sform", "voxel_mm": "1 x 1 x 1", "box_mm": "140 x 170 x 130", "background": "zero",
              "mask": "", "images": 1, "files": ("train/a_axial100.png",), "planes": ("axial",),
              "picture": bytes(THUMBNAIL ** 2)}
    return ShownScan(scan, **(values | more))


# What the page shows

@in_chromium
def test_every_scan_is_there_by_subject_and_session_with_its_pictures_and_facts(browser, tmp_path):
    scans = [one(f"{name}_{session}.nii", subject=name, session=session, images=6, run="3", mask="made by hand",
                 planes=("axial", "sagittal"), files=(f"test/{name}_axial1.png", f"test/{name}_sagittal1.png"),
                 picture=bytes(2 * THUMBNAIL ** 2), split="test", warnings=("NaN voxels: 12 in the brain",))
             for name in ("p10", "p9") for session in ("b2", "b10")]
    opened(browser, tmp_path, page_bytes(scans, [("x/bad.nii", "expected a scan, found text")]))
    assert browser.evaluate(SHOWN) == ["p9_b2.nii", "p9_b10.nii", "p10_b2.nii", "p10_b10.nii"]
    assert browser.evaluate("[...document.querySelectorAll('.subject h2')].map(head => head.innerText)") == [
        "p9\ntest", "p10\ntest"]
    lines = browser.evaluate("document.querySelector('article').innerText").split("\n")
    text = " ".join(line.strip() for line in lines if line.strip())
    assert re.sub(r"\s+", " ", text) == (
        "R axial L A sagittal P session b2, run 3, 6 images p9_b2.nii orientation LAS (sform) voxel, mm 1 x 1 x 1 "
        "brain, mm 140 x 170 x 130 (made by hand) archive bids NaN voxels: 12 in the brain")
    assert browser.evaluate("[...document.querySelector('article').querySelectorAll('a')].map("
                            "link => [link.getAttribute('href'), link.getAttribute('aria-label')])") == [
        ["test/p9_axial1.png", "axial slice of p9_b2.nii"], ["test/p9_sagittal1.png", "sagittal slice of p9_b2.nii"]]
    assert browser.evaluate("document.getElementById('counts').textContent").split("  ·  ") == [
        "4 scans", "2 subjects", "4 sessions", "images: train 0, validate 0, test 24", "with warnings: 4",
        "rejected: 1", "left out: 0"]
    assert browser.evaluate("document.querySelector('#tables td').textContent") == "x/bad.nii"


@in_chromium
def test_filters_in_the_address_hide_the_others_and_controls_change_the_address(browser, tmp_path):
    scans = made_up(200, per_subject=2)
    opened(browser, tmp_path, page_bytes(scans), "split=test&warning=cut%20off")
    expected = [scan.scan for scan in scans if scan.split == "test" and scan.warnings[:1] and "cut" in scan.warnings[0]]
    assert browser.evaluate(SHOWN) == []
    assert expected == []
    for fragment, keep in [
            ("warning=cut%20off", lambda scan: scan.warnings and scan.warnings[0].startswith("cut off")),
            ("warning=any", lambda scan: scan.warnings), ("warning=none", lambda scan: not scan.warnings),
            ("split=test", lambda scan: scan.split == "test"),
            ("split=train&archive=plain", lambda scan: (scan.split, scan.archive) == ("train", "plain")),
            ("q=SUB-0042", lambda scan: scan.subject == "0042"),
            ("q=ses-1+0007", lambda scan: (scan.subject, scan.session) == ("0007", "1")), ("", lambda scan: True)]:
        browser.evaluate(f"(location.hash = {json.dumps(fragment)}, new Promise(done => setTimeout(done, 50)))")
        expected = [scan.scan for scan in scans if keep(scan)]
        assert browser.evaluate(SHOWN) == expected, fragment
        assert shown_text(browser) == f"{len(expected)} of 200 scans shown"
    browser.evaluate("""(() => { const box = document.querySelector("[name=split]"); box.value = "validate";
        box.dispatchEvent(new Event("input", {bubbles: true})); })()""")
    assert browser.evaluate("location.hash") == "#split=validate"
    assert browser.evaluate(SHOWN) == [scan.scan for scan in scans if scan.split == "validate"]
    assert browser.evaluate("[...document.querySelector('[name=warning]').options].map(each => each.text)") == [
        "all scans", "any (4)", "none (196)", "cut off (2)", "head with skull (2)"]


@in_chromium
def test_each_thumbnail_is_the_cell_of_its_own_scan(browser, tmp_path):
    """230 scans, each of one grey, on three sheets: the colour on the screen is the scan's own."""
    greys = [20 + number for number in range(230)]
    scans = [one(f"{number:03d}.nii", subject=f"{number:03d}", picture=bytes([grey]) * THUMBNAIL ** 2)
             for number, grey in enumerate(greys)]
    page = page_bytes(scans)
    assert page.count(b"url(data:image/jpeg;base64,") == -(-230 // ACROSS ** 2) == 3
    opened(browser, tmp_path, page)
    for number in (0, 1, ACROSS, 99, 100, 229):
        x, y = browser.evaluate(f"""(async () => {{ const cell = document.querySelectorAll(".plane i")[{number}];
            for (let i = 0; i < 5; i++) {{  // what comes into view for the first time gets its own height
                cell.scrollIntoView({{block: "center"}});
                await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
            }}
            const box = cell.getBoundingClientRect(); return [Math.round(box.x), Math.round(box.y)]; }})()""")
        browser.picture(tmp_path / "window.png")
        pixels = np.asarray(Image.open(tmp_path / "window.png").convert("L"))[y + 5:y + 90, x + 5:x + 90]
        assert np.abs(pixels.astype(int) - greys[number]).max() <= 3, number


HOSTILE = ["<img src=x onerror=hacked=1>",
           "</script><script>hacked=1</script>", "<!--<script>", "\"' onclick=hacked=1",
           "a\u2028b\u2029c\u0000d", "caf\\udcff", "javascript:hacked=1", "{{7*7}}${hacked=1}", "<!--facts-->",
           "&lt;b&gt;", "\udcff undecodable", "]]>--><style>*{display:none}"]


@in_chromium
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_shown_and_do_nothing(name, browser, tmp_path):
    scan = one(name, subject=name, session=name, run=name, archive=name, orientation=name, mask=name,
               files=(f"train/{name}.png",), warnings=(f"{name}: {name}", name))
    page = page_bytes([scan], [(name, f"found {name}")], [(name, f"{name}: {name}"), (name, name)])
    opened(browser, tmp_path, page, f"q={name.encode(errors='replace').hex()}&split=<b>")
    browser.evaluate("location.hash = ''")
    browser.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    browser.evaluate("new Promise(done => setTimeout(done, 200))")
    assert browser.evaluate("'hacked' in window") is False
    seen = name.encode("utf-8", "surrogatepass").decode("utf-8", "replace") if "\udcff" not in name else None
    if seen and "\u0000" not in name:
        assert browser.evaluate(SHOWN) == [name]
        assert browser.evaluate("document.querySelector('.subject span').textContent") == name
    assert browser.evaluate("document.images.length + document.querySelectorAll('script').length") == 2
    assert browser.evaluate("document.querySelector('article a').protocol") == "file:"
    requests = [event["params"]["request"]["url"][:40] for event in browser.events("Network.requestWillBeSent")]
    assert [url for url in requests if not url.startswith(("file:", "data:", "about:"))] == []
    assert browser.events("Runtime.exceptionThrown", "Log.entryAdded") == []


@in_chromium
def test_the_policy_lets_nothing_be_loaded_and_no_other_script_run(browser, tmp_path):
    opened(browser, tmp_path, page_bytes([one()]))
    assert browser.evaluate("fetch('http://127.0.0.1:9/').then(() => 'loaded', error => error.name)") == "TypeError"
    assert browser.evaluate("""new Promise(done => {
        addEventListener("securitypolicyviolation", event => done(event.effectiveDirective));
        const script = document.createElement("script");
        script.textContent = "hacked = 1";
        document.body.append(script);
    })""") == "script-src-elem"
    assert browser.evaluate("'hacked' in window") is False


@in_chromium
def test_five_thousand_scans_are_all_there_on_few_sheets_and_few_megabytes(browser, tmp_path):
    scans = made_up(5000)
    page = page_bytes(scans, left_out=[(f"{number}.nii", 'its name says "flair"') for number in range(100_000)])
    assert page.count(b"url(data:image/jpeg;base64,") == 50
    assert len(page) < 15e6
    opened(browser, tmp_path, page)
    assert browser.evaluate("document.querySelectorAll('article').length") == 5000
    assert browser.evaluate("document.querySelectorAll('main .plane').length") == 5000
    assert shown_text(browser) == "5,000 of 5,000 scans shown"
    assert "left out: 100,000" in browser.evaluate("document.getElementById('counts').textContent")
    browser.evaluate("document.querySelector('details').open = true")
    browser.evaluate("new Promise(done => setTimeout(done, 100))")
    assert browser.evaluate("document.querySelectorAll('details tr').length") == MOST_LEFT_OUT + 1
    assert browser.evaluate("document.querySelector('details .more').textContent") == "and 99,800 more files"


def test_the_page_does_not_depend_on_the_order_in_which_scans_come():
    scans = made_up(30, ("axial", "coronal"), per_subject=3)
    assert page_bytes(scans) == page_bytes(scans[::-1])


# What an extraction puts there

@pytest.fixture
def scans(apart):
    return save_bids(apart / "scans", 5)


def thumbnails_in(out, scan: str) -> dict[str, bytes]:
    return {plane: scan_slices.picture_of(text) for plane, text in scan_slices.recall(out, scan).pictures.items()}


@pytest.mark.parametrize("bits", [8, 16])
def test_the_middle_slice_of_each_plane_is_the_one_that_is_shown(bits, scans, apart):
    out = apart / "out"
    page = extract(scans, out, "--planes", "sagittal", "axial", "--per-scan", 3, "--bits", bits)
    for scan in scans_in(page).values():
        assert scan["planes"] == ["sagittal", "axial"]
        assert scan["images"] == 6
        for plane, file in zip(scan["planes"], scan["files"]):
            assert file == sorted(path.relative_to(out).as_posix() for path in out.glob(
                f"{scan['split']}/{scan['subject']}_{plane}*.png"))[1]
            levels = np.asarray(Image.open(out / file)) / (2 ** bits - 1)
            small = Image.fromarray(np.rint(levels * 255).astype(np.uint8)).resize(
                (THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
            made = np.frombuffer(thumbnails_in(out, scan["scan"])[plane], np.uint8).reshape(THUMBNAIL, THUMBNAIL)
            assert np.abs(np.asarray(small).astype(int) - made).mean() < 1.5
            assert thumbnail(levels) == made.tobytes() or bits == 16


def test_workers_parts_and_a_second_run_write_the_same_page(apart):
    scans = save_bids(apart / "scans", 6)
    (scans / "sub-03/anat/sub-03_T1w.nii.gz").write_text("no scan")
    save(scans / "sub-01/anat/sub-01_FLAIR.nii", block(seed=9))
    alone = extract(scans, apart / "one")
    assert extract(scans, apart / "one") == alone
    assert extract(scans, apart / "two", "--workers", 2) == alone
    for part in ("1/2", "2/2"):
        extract_slices.main(["--scans", str(scans), "--out", str(apart / "parts"), *SMALL, "--shard", part])
        assert (apart / "parts/index.html").exists() == (part == "2/2")
    assert (apart / "parts/index.html").read_bytes() == alone
    (apart / "parts/index.html").unlink()
    assert extract(scans, apart / "parts", "--merge") == alone
    (apart / "parts/index.html").unlink()
    assert extract(scans, apart / "parts") == alone
    assert str(apart).encode() not in alone


def test_the_user_is_told_where_the_page_is(scans, apart, capsys):
    extract(scans, apart / "out")
    assert capsys.readouterr().out.splitlines()[-2] == f"look at every scan: {apart / 'out/index.html'}"


def test_a_sidecar_without_pictures_is_read_and_its_scan_drawn_again(scans, apart, capsys):
    out = apart / "out"
    page = extract(scans, out)
    path = scan_slices.sidecar(out, "sub-02/anat/sub-02_T1w.nii.gz")
    known = json.loads(path.read_text())
    del known["pictures"]
    path.write_text(json.dumps(known))
    assert scan_slices.recall(out, known["scan"]).pictures == {}
    capsys.readouterr()
    assert extract(scans, out) == page
    assert "used 5 scans (4 of them unchanged" in capsys.readouterr().out


def test_fewer_planes_need_no_scan_and_show_fewer_pictures(scans, apart):
    extract(scans, apart / "out", "--planes", "axial", "coronal")
    for path in scans.rglob("*.nii.gz"):
        path.chmod(0)
    page = extract(scans, apart / "out", "--planes", "coronal")
    assert {tuple(scan["planes"]) for scan in scans_in(page).values()} == {("coronal",)}
    for path in scans.rglob("*.nii.gz"):
        path.chmod(0o644)
    assert page == extract(scans, apart / "fresh", "--planes", "coronal")


def test_slices_of_a_scan_that_is_gone_are_shown_with_a_warning_and_their_picture(scans, apart):
    extract(scans, apart / "out")
    shutil.rmtree(scans / "sub-02")
    shown = scans_in(extract(scans, apart / "out"))["sub-02/anat/sub-02_T1w.nii.gz"]
    assert "scan is gone: its slices were kept (--prune removes them)" in shown["warnings"]
    assert shown["planes"] == ["axial"]
    path = scan_slices.sidecar(apart / "out", shown["scan"])
    path.write_text(json.dumps({**json.loads(path.read_text()), "pictures": {"axial": "broken"}}))
    shown = scans_in(extract(scans, apart / "out"))["sub-02/anat/sub-02_T1w.nii.gz"]
    assert (shown["planes"], shown["files"]) == ([], [])
    assert "sub-02" not in str(scans_in(extract(scans, apart / "out", "--prune")))


def test_rejected_and_left_out_files_are_there_with_their_reasons(scans, apart):
    (scans / "sub-03/anat/sub-03_T1w.nii.gz").write_text("no scan")
    for name in ("sub-01/anat/sub-01_FLAIR.nii", "sub-01/anat/sub-01_run-2_T1w.nii", "derivatives/x/sub-01_T1w.nii",
                 "sub-02/anat/c1sub-02_T1w.nii", "sub-02/anat/scan.nrrd"):
        save(scans / "tmp.nii", block()).rename(scans / name) if (scans / name).parent.is_dir() else save(
            scans / name.replace(".nrrd", ".nii"), block())
    facts = facts_in(extract(scans, apart / "out"))
    [[name, reason]] = facts["rejected"]["rows"]
    assert name == "sub-03/anat/sub-03_T1w.nii.gz"
    assert reason.startswith("expected a NIfTI, Analyze or MGH image, found text ('no scan')")
    left_out = {file: (group["reason"], more) for group in facts["leftOut"] for file, more in group["rows"]}
    assert left_out == {
        "sub-01/anat/sub-01_FLAIR.nii": ('its name says "flair"', ""),
        "sub-01/anat/sub-01_run-2_T1w.nii": ("another scan of the session is used", "sub-01/anat/sub-01_T1w.nii.gz"),
        "derivatives": ("folder not searched", "derivatives; --suffix"),
        "sub-02/anat/c1sub-02_T1w.nii": ("made by SPM or CAT12 from another file", "sub-02_T1w"),
        "sub-02/anat/scan.nrrd": ("a format that is not read, .nrrd", "")}


def test_the_manifest_has_the_sides_of_voxel_and_brain_along_r_a_s(apart):
    save(apart / "scans/sub-1_T1w.nii", block((40, 50, 30), margin=5), (1.5, 0.8680555, 3.0), "ASL")
    scan = scans_in(extract(apart / "scans", apart / "out", "--field-of-view", 60))["sub-1_T1w.nii"]
    assert (scan["voxel_mm"], scan["box_mm"]) == ("1.5 x 0.8681 x 3", "45 x 35 x 60")
    row = next(csv.DictReader((apart / "out/manifest.csv").read_text().splitlines()))
    assert (row["voxel_size_mm"], row["brain_mm"]) == ("1.5x0.8681x3", "45x35x60")


# Warnings

ROW = {"orientation": "LAS", "orientation_from": "sform", "background": "zero", "nan_voxels": "0",
       "voxel_size_mm": "0.868x0.868x1", "brain_mm": "140x178x139"}


@pytest.mark.parametrize(("change", "warnings"), [
    ({}, ()),
    ({"orientation_from": "layout"}, ("orientation not from the header: LAS by the archive's layout",)),
    ({"orientation_from": "assumed"}, ("orientation not from the header: LAS by --assume-orientation",)),
    ({"background": "otsu"}, ("head with skull: the weights of this project have seen stripped brains only",)),
    ({"nan_voxels": "7"}, ("NaN voxels: 7 in the brain",)),
    ({"brain_mm": "140x178x230", "background": "otsu"}, ("head with skull: the weights of this project have seen "
                                                         "stripped brains only",)),
    ({"brain_mm": "140x226x139"}, ("cut off: 226 mm do not fit into 224 mm (--field-of-view)",
                                   "unusual size: 226 mm along A, expected 120 to 230")[:1]),
    ({"voxel_size_mm": "1x1x3.1"}, ("long voxels: one side is 3.1 times another",)),
    ({"voxel_size_mm": "1x1x3"}, ()),
    ({"brain_mm": "70x178x139"}, ("unusual size: 70 mm along R, expected 95 to 185",)),
    ({"background": "another kind"}, ()),
])
def test_what_a_person_should_look_at_is_a_warning(change, warnings):
    assert warnings_of(ROW | change, ("axial",), 224) == warnings


def test_a_row_of_an_older_manifest_warns_of_what_it_says():
    row = {key: ROW[key] for key in ("orientation", "orientation_from", "background")} | {"nan_voxels": "3"}
    assert warnings_of(row, ("axial", "sagittal"), 224) == ("NaN voxels: 3 in the brain",)


def test_a_side_is_cut_off_only_in_the_planes_in_which_it_lies():
    row = ROW | {"brain_mm": "140x178x230", "background": "otsu"}
    assert len(warnings_of(row, ("axial",), 224)) == 1
    assert warnings_of(row, ("axial", "coronal"), 224)[1] == "cut off: 230 mm do not fit into 224 mm (--field-of-view)"


def test_an_orientation_that_was_assumed_is_marked(apart):
    save_analyze(apart / "scans/a.hdr", block(), storage="LAS")
    [scan] = scans_in(extract(apart / "scans", apart / "out", "--assume-orientation", "LAS")).values()
    assert scan["warnings"][0] == "orientation not from the header: LAS by --assume-orientation"


# Files that are left out

@pytest.mark.parametrize(("name", "reason"), [
    ("p1/anat/p1_FLAIR.nii", 'its name says "flair"'), ("p1/anat/p1_brainmask.nii", 'its name says "brainmask"'),
    ("p1/anat/p1_pd.nii", 'its name ends with "pd"'), ("p1/anat/p1_hippocampus.nii", 'its name says "hippocampus"'),
    ("p1/anat/mwp1p1_T1w.nii", "made by SPM or CAT12 from another file: p1_T1w"),
    ("p1/anat/p1_T1w.mnc", "a format that is not read, .mnc"), ("p1/func", "folder not searched: func; --suffix"),
    ("p1/.git", "folder not searched: hidden"), ("sourcedata", "folder not searched: sourcedata"),
    ("sub-2/anat/sub-2_acq-x_angio2.nii", "its name says that it is no T1-weighted scan of BIDS"),
    ("fs/mri/aseg.mgz", "of FreeSurfer, and none of its scans"),
    ("sub-3/mri/orig.mgz", "FreeSurfer's copy of a scan that is used: bids/sub-3/anat/sub-3_T1w.nii"),
    ("bids/sub-3/anat/sub-3_run-2_T1w.nii", "another scan of the session is used: bids/sub-3/anat/sub-3_T1w.nii")])
def test_a_file_that_is_left_out_has_its_reason(name, reason, tmp_path):
    is_folder = name.endswith((".git", "func", "sourcedata"))
    for each in ("p1/anat/p1_T1w.nii", "p2/anat/p2_T1w.nii", "bids/sub-3/anat/sub-3_T1w.nii",
                 f"{name}/x_T1w.nii" if is_folder else name):
        (tmp_path / each).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / each).touch()
    assert find_scans(tmp_path).left_out == ((name, reason),)


def test_files_without_the_suffix_that_is_asked_for_are_left_out_for_it(tmp_path):
    for name in ("sub-1_T2w.nii", "sub-1_T1w.nii", "masks/sub-1_T2w.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_scans(tmp_path, suffixes=["T2w"]).left_out == (
        ("masks", "folder not searched: masks; only suffixes such as mask or desc-preproc_T1w are looked for there"),
        ("sub-1_T1w.nii", "its name does not end as --suffix asks"))


def test_a_folder_that_is_linked_twice_is_searched_once_and_said(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/sub-1_T1w.nii").touch()
    (tmp_path / "b").symlink_to("a")
    assert find_scans(tmp_path).left_out == (("b", "folder not searched: a link to one that was"),)
