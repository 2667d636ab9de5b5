"""DICOM series for tests: tiny volumes as classic files of a slice each, or as one enhanced file."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid
from scan_files import block, stored

TO_LPS = np.array([-1, -1, 1])
NAME = "Surname^Given"
"""The name of the patient in every file."""


def save_slices(folder: Path, ras: np.ndarray | None = None, *, sizes=(1.0, 1.0, 1.0), storage="LPS", turn=None,
                name="IM{:04d}.dcm", description="t1_mprage_sag", number=3, patient="P7", study="", skip=(),
                reverse=False, **tags) -> list[Path]:
    """Write a RAS array as classic MR files, a slice each; return their paths in the order of the slices.

    Args:
        storage: what column, row and slice numbers grow towards: LPS is axial, PIL sagittal, LIP coronal.
        turn: a rotation matrix that makes the acquisition oblique.
        name: of a file, by its number; with `reverse` the last slice has the first name.
        skip: numbers of slices that are missing.
        tags: more tags, the same in all files.
    """
    voxels, affine = placed(block() if ras is None else ras, sizes, storage, turn)
    series, frame, study = generate_uid(), generate_uid(), study or generate_uid()
    folder.mkdir(parents=True, exist_ok=True)
    count, paths = voxels.shape[2], []
    for k in range(count):
        data = common(MRImageStorage, study, series, frame, description, number, patient)
        data.InstanceNumber, data.AcquisitionNumber = k + 1, 1
        data.ImageType, data.MRAcquisitionType = ["ORIGINAL", "PRIMARY", "M", "ND"], "3D"
        data.ScanningSequence, data.SequenceVariant, data.ScanOptions = "GR", "SP", ""
        data.EchoTime, data.RepetitionTime = 2.98, 2300
        data.ImageOrientationPatient, data.ImagePositionPatient = orientation_of(affine), position_of(affine, k)
        data.PixelSpacing, data.SliceThickness = spacing_of(affine), np.linalg.norm(affine[:3, 2])
        add_pixels(data, voxels[..., k].T)
        for tag, value in tags.items():
            setattr(data, tag, value)
        paths.append(folder / name.format(count - k if reverse else k + 1))
        if k not in skip:
            data.save_as(paths[-1], enforce_file_format=True)
    return [path for k, path in enumerate(paths) if k not in skip]


def save_enhanced(path: Path, ras: np.ndarray | None = None, *, sizes=(1.0, 1.0, 1.0), storage="LPS", turn=None,
                  description="t1_mprage_sag", number=3, patient="P7", study="", order=None, skip=()) -> Path:
    """Write a RAS array as one enhanced MR file; its frames are the slices in the given order."""
    voxels, affine = placed(block() if ras is None else ras, sizes, storage, turn)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = common(EnhancedMRImageStorage, study or generate_uid(), generate_uid(), generate_uid(), description, number,
                  patient)
    data.InstanceNumber, data.ImageType = 1, ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    data.ContentDate, data.ContentTime, data.AcquisitionDateTime = "20110329", "141619", "20110329141619"
    frames = [k for k in (order if order is not None else range(voxels.shape[2])) if k not in skip]
    measures, orientation, timing, kind, transform = (Dataset() for _ in range(5))
    measures.PixelSpacing, measures.SliceThickness = spacing_of(affine), np.linalg.norm(affine[:3, 2])
    orientation.ImageOrientationPatient = orientation_of(affine)
    timing.RepetitionTime, timing.FlipAngle, timing.EchoTrainLength = 2300.0, 9.0, 1
    kind.FrameType, kind.ComplexImageComponent = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], "MAGNITUDE"
    transform.RescaleIntercept, transform.RescaleSlope, transform.RescaleType = 0, 1, "US"
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    shared.MRTimingAndRelatedParametersSequence, shared.MRImageFrameTypeSequence = [timing], [kind]
    shared.PixelValueTransformationSequence = [transform]
    data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence = [shared], []
    for k in frames:
        frame, position, content, echo = (Dataset() for _ in range(4))
        position.ImagePositionPatient, echo.EffectiveEchoTime = position_of(affine, k), 2.98
        content.DimensionIndexValues, content.InStackPositionNumber, content.StackID = [1, int(k) + 1], int(k) + 1, "1"
        frame.PlanePositionSequence, frame.FrameContentSequence, frame.MREchoSequence = [position], [content], [echo]
        data.PerFrameFunctionalGroupsSequence.append(frame)
    data.NumberOfFrames = len(frames)
    add_pixels(data, np.stack([voxels[..., k].T for k in frames]))
    data.save_as(path, enforce_file_format=True)
    return path


def placed(ras, sizes, storage, turn):
    """Return the voxels in their order of storage, and the matrix from their indices to RAS positions in mm."""
    voxels, affine = stored(ras, sizes, storage)
    if turn is not None:
        affine = np.block([[np.asarray(turn) @ affine[:3, :3], affine[:3, 3:]], [np.zeros((1, 3)), 1.0]])
    return voxels, affine


def orientation_of(affine):
    return [float(each) for axis in (0, 1) for each in
            (TO_LPS * affine[:3, axis] / np.linalg.norm(affine[:3, axis])).round(8) + 0.0]


def position_of(affine, k):
    return [float(each) for each in (TO_LPS * (affine[:3, 3] + k * affine[:3, 2])).round(6) + 0.0]


def spacing_of(affine):
    """Return the distances of rows, then of columns."""
    return [float(np.linalg.norm(affine[:3, axis])) for axis in (1, 0)]


def common(kind, study, series, frame, description, number, patient) -> Dataset:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = kind
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, series, frame
    data.PatientName, data.PatientID, data.PatientBirthDate, data.PatientSex = NAME, patient, "19500101", "F"
    data.StudyDate, data.StudyTime, data.AcquisitionTime = "20110329", "141619", "141619"
    data.ImageComments, data.Manufacturer, data.Modality = NAME, "SIEMENS", "MR"
    data.AccessionNumber, data.StudyID, data.ReferringPhysicianName, data.PositionReferenceIndicator = "1", "1", "", ""
    data.PatientPosition, data.MagneticFieldStrength = "HFS", 3
    data.SeriesNumber, data.SeriesDescription, data.ProtocolName = number, description, description
    return data


def add_pixels(data: Dataset, pixels: np.ndarray) -> None:
    data.Rows, data.Columns = pixels.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PixelData = np.ascontiguousarray(pixels).astype("<u2").tobytes()


def changed(path: Path, **tags) -> Path:
    """Write a file anew with other values of some tags; None takes a tag away."""
    data = pydicom.dcmread(path)
    for tag, value in tags.items():
        if value is None:
            delattr(data, tag)
        else:
            setattr(data, tag, value)
    data.save_as(path)
    return path
