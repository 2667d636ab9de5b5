#!/usr/bin/env bash
# SimpleITK takes a NIfTI scan's qform where nibabel takes its sform, unless the sform's code is 1.
#
# Guessed: where both matrices are set and differ, a reader takes the sform, as nibabel does and as this project does
#   without --trust qform.
# Seen, with SimpleITK 2.5.7 and nibabel 5.4.2: with the codes (sform, qform) = (1, 1) or (1, 2) both take the sform.
#   With (2, 1), (4, 1) or (2, 2), as scans have that were aligned or normalised and keep the scanner's place as qform,
#   nibabel takes the sform and SimpleITK the qform, without a word; here they lie 5 mm apart and mirrored.
# What follows: `predict --nifti` copies both matrices and codes, so that each program takes a reconstruction for what
#   it takes the scan for; where it makes a header, both matrices are the same.
#
# Exit status: 0 if this is still so, 1 if it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet nibabel==5.4.2 simpleitk==2.5.7 numpy==2.4.6
cd "$work"
venv/bin/python - <<'PYTHON'
import sys

import nibabel as nib
import numpy as np
import SimpleITK as sitk

seen = {}
aligned, scanner = np.diag([2, 2, 2, 1]), np.diag([-2, 2, 2, 1])
scanner[:3, 3] = 5
for codes in ((1, 1), (1, 2), (2, 1), (4, 1), (2, 2)):
    image = nib.Nifti1Image(np.arange(210, dtype=np.int16).reshape(5, 6, 7), np.eye(4))
    image.set_sform(aligned, codes[0])
    image.set_qform(scanner, codes[1])
    nib.save(image, "a.nii")
    # SimpleITK counts towards left: 1 is the direction of the qform, -1 that of the sform
    seen[codes] = ("sform" if nib.load("a.nii").affine[0, 0] > 0 else "qform",
                   "sform" if sitk.ReadImage("a.nii").GetDirection()[0] < 0 else "qform")
    print(f"codes of sform and qform {codes}: nibabel takes the {seen[codes][0]}, SimpleITK the {seen[codes][1]}")
sys.exit(0 if list(seen.values()) == 2 * [("sform", "sform")] + 3 * [("sform", "qform")] else 1)
PYTHON
