"""derivatives.py: names and description of a BIDS derivative."""

import json
from pathlib import Path

import pytest

from vqvae2.scans.derivatives import data_set_of, description_of, names_of, place_of
from vqvae2.scans.finding import Scan


def scan(path, subject="", session="", run=""):
    return Scan(Path(path), path, subject, session, run)


@pytest.mark.parametrize(("given", "expected"), [
    (scan("d/sub-01/anat/sub-01_T1w.nii.gz", "01"), "sub-01/anat/sub-01_desc-made_T1w.nii.gz"),
    (scan("sub-01_ses-2_run-1_acq-mprage_T1w.nii", "01"),
     "sub-01/ses-2/anat/sub-01_ses-2_acq-mprage_run-1_desc-made_T1w.nii.gz"),
    (scan("sub-01_space-MNI152_desc-preproc_FLAIR.nii", "01"),
     "sub-01/anat/sub-01_space-MNI152_desc-made_FLAIR.nii.gz"),
    (scan("OAS1_0007_MR1_mpr-1_anon.hdr", "OAS1_0007", "MR1", "1"),
     "sub-OAS10007/ses-MR1/anat/sub-OAS10007_ses-MR1_run-1_desc-made_T1w.nii.gz"),
    (scan("brain.mgz"), "sub-brain/anat/sub-brain_desc-made_T1w.nii.gz"),
    (scan("dicom"), "sub-unknown/anat/sub-unknown_desc-made_T1w.nii.gz")])
def test_a_scan_keeps_its_entities_or_is_named_after_its_subject(given, expected):
    [name] = names_of([given])
    assert name.path("made", ".nii.gz").as_posix() == expected


def test_another_suffix_and_the_suffix_of_labels():
    [name] = names_of([scan("p1/flair.nii", "p1")], "FLAIR")
    assert name.path("made", ".json").name == "sub-p1_desc-made_FLAIR.json"
    assert name.path("codes", ".nii.gz", "dseg").name == "sub-p1_desc-codes_dseg.nii.gz"


def test_no_two_scans_share_a_name_in_any_case():
    given = [scan("a/p-1.nii", "p-1"), scan("b/P1.nii", "P1"), scan("sub-p1_acq-hi_desc-x_T1w.nii", "p1"),
             scan("sub-p1_acq-hi_desc-y_T1w.nii", "p1"), scan("c/p2.nii", "p2")]
    paths = [name.path("made", ".nii.gz").as_posix() for name in names_of(given)]
    assert len({path.casefold() for path in paths}) == 5
    assert paths[4] == "sub-p2/anat/sub-p2_desc-made_T1w.nii.gz"
    assert paths[2].startswith("sub-p1/anat/sub-p1_acq-hi")
    assert all("_desc-made_T1w.nii.gz" in path for path in paths)


@pytest.mark.parametrize(("said", "expected"), [
    ({"Name": "Study", "DatasetDOI": "10.18112/openneuro.ds1.v1"}, {"Name": "Study",
                                                                    "DOI": "doi:10.18112/openneuro.ds1.v1"}),
    ({"DatasetDOI": "https://doi.org/10.1/a"}, {"DOI": "doi:10.1/a"}), ({"DatasetDOI": "doi:10.1/a"},
                                                                        {"DOI": "doi:10.1/a"}),
    ([], {}), (None, {})])
def test_a_source_is_told_by_name_and_doi_and_never_by_its_path(tmp_path, said, expected):
    scans = tmp_path / "jane doe" / "study"
    path = scans / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    path.parent.mkdir(parents=True)
    (scans / "dataset_description.json").write_text("{" if said is None else json.dumps(said))
    assert data_set_of(path) == (scans.resolve(), expected)
    assert place_of(path) == "sub-01/anat/sub-01_T1w.nii.gz"
    made = description_of([path, scans], "1.2", "What was made.")
    assert made.get("SourceDatasets", []) == ([expected] if expected else [])
    assert made["DatasetType"] == "derivative"
    assert made["GeneratedBy"][0]["Version"] == "1.2"
    assert "jane" not in json.dumps(made)


def test_a_file_outside_of_a_data_set_is_told_by_its_name_alone(tmp_path):
    path = tmp_path / "brain.nii"
    assert data_set_of(path) == (None, {})
    assert place_of(path) == "brain.nii"
    assert description_of([path], "1.2", "What.")["Name"] == "Reconstructions"
