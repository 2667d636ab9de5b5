#!/usr/bin/env bash
# Of enhanced MR files of two makers dcm2niix takes the distance of slices from the file's first and last frame, wherever
# these lie.
#
# Guessed: the frames of an enhanced file may stand in any order (each says where it lies), and dcm2niix sorts them, so
#   the volume and its voxel sizes are those of a file whose frames are in order.
# Seen, with dcm2niix 1.0.20260724 and pydicom 3.0.2: voxels are sorted rightly. Where the file's Manufacturer is SIEMENS
#   or GE MEDICAL SYSTEMS, the third voxel size is the way from the first frame of the file to its last, divided by their
#   number less 1: 1.11 mm instead of 2 mm here, with status 0 and without a warning. Of Philips Medical Systems it is
#   right. A brain read so is too flat, and nothing in the NIfTI file says it.
# What follows: put the frames in order before dcm2niix sees them, or compare the corners of what it makes with the
#   positions in the headers.
#
# Exit status: 0 if this is still so, 1 if it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet dcm2niix==1.0.20260724 pydicom==3.0.2 nibabel==5.4.2 numpy==2.4.6
cat > "$work/look.py" <<'PYTHON'
import subprocess
import sys
from pathlib import Path

import dcm2niix
import nibabel
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, generate_uid

FRAMES, DISTANCE_MM = 10, 2.0


def item(**values):
    made = Dataset()
    for name, value in values.items():
        setattr(made, name, value)
    return made


def write(path, order, maker):
    data = item(
        SOPClassUID=EnhancedMRImageStorage, SOPInstanceUID=generate_uid(entropy_srcs=[str(path)]),
        StudyInstanceUID=generate_uid(entropy_srcs=["study"]), SeriesInstanceUID=generate_uid(entropy_srcs=[str(path)]),
        FrameOfReferenceUID=generate_uid(entropy_srcs=["frame"]), Modality="MR", Manufacturer=maker,
        PatientName="Nobody", PatientID="0", StudyDate="20200101", StudyTime="120000", SeriesNumber=1, InstanceNumber=1,
        SeriesDescription="T1w", ImageType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], NumberOfFrames=FRAMES, Rows=16,
        Columns=16, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", BitsAllocated=16, BitsStored=16,
        HighBit=15, PixelRepresentation=0)
    data.SharedFunctionalGroupsSequence = [item(
        PixelMeasuresSequence=[item(PixelSpacing=[1.0, 1.0], SliceThickness=DISTANCE_MM)],
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0])])]
    data.DimensionOrganizationSequence = [item(DimensionOrganizationUID=data.FrameOfReferenceUID)]
    data.DimensionIndexSequence = [  # StackID, InStackPositionNumber
        item(DimensionOrganizationUID=data.FrameOfReferenceUID, DimensionIndexPointer=pointer,
             FunctionalGroupPointer=0x00209111) for pointer in (0x00209056, 0x00209057)]
    data.PerFrameFunctionalGroupsSequence = [item(
        FrameContentSequence=[item(StackID="1", InStackPositionNumber=int(place) + 1,
                                   DimensionIndexValues=[1, int(place) + 1])],
        PlanePositionSequence=[item(ImagePositionPatient=[0.0, 0.0, DISTANCE_MM * int(place)])]) for place in order]
    data.PixelData = np.stack([np.full((16, 16), 100 + place, np.uint16) for place in order]).tobytes()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.save_as(path, enforce_file_format=True)


def seen(name, order, maker):
    name = f"{name}, {maker}"
    folder, out = Path(sys.argv[1], name), Path(sys.argv[1], f"{name}-out")
    folder.mkdir()
    out.mkdir()
    write(folder / "a.dcm", order, maker)
    done = subprocess.run([dcm2niix.bin, "-z", "n", "-f", "a", "-o", str(out), str(folder)], capture_output=True,
                          text=True, check=False)
    image = nibabel.load(out / "a.nii")
    sizes, first = image.header.get_zooms(), np.asarray(image.dataobj)[0, 0]
    print(f"{name}: status {done.returncode}, voxel sizes {np.round(sizes, 3)} mm, slices in order "
          f"{bool((np.diff(first.astype(int)) == 1).all() or (np.diff(first.astype(int)) == -1).all())}")
    return float(sizes[2])


order = np.random.default_rng(1).permutation(FRAMES)
wrong = DISTANCE_MM * abs(int(order[-1]) - int(order[0])) / (FRAMES - 1)
expected = {"SIEMENS": wrong, "GE MEDICAL SYSTEMS": wrong, "Philips Medical Systems": DISTANCE_MM}
print(f"from the first frame to the last: {wrong:.3f} mm a slice")
same = [abs(seen("in order", np.arange(FRAMES), maker) - DISTANCE_MM) < 1e-3
        and abs(seen("out of order", order, maker) - distance) < 1e-3 for maker, distance in expected.items()]
sys.exit(not all(same))
PYTHON
"$work/venv/bin/python" "$work/look.py" "$work"
