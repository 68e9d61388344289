"""DICOM as a hospital exports it: series, segmentations, structure sets and doses, made from volumes.

Written with pydicom (and highdicom for segmentations) from arrays whose affine is known, so that what is
read back can be compared voxel by voxel. Names and dates in it are invented, and tests look for them in
what intake writes.
"""

from __future__ import annotations

import warnings
from datetime import date
from pathlib import Path

import highdicom
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    RTDoseStorage,
    RTStructureSetStorage,
    generate_uid,
)

NAME, BORN = "Mustermann^Erika", "19611224"
TIMES = {  # echo, repetition, inversion in ms
    "T1w": (3.0, 2000.0, 900.0),
    "ce-gadolinium_T1w": (3.0, 2000.0, 900.0),
    "T2w": (90.0, 5000.0, None),
    "FLAIR": (110.0, 9000.0, 2500.0),
}
WORDS = {
    "T1w": "t1 mprage sag",
    "ce-gadolinium_T1w": "t1 mprage post gd",
    "T2w": "t2 tse tra",
    "FLAIR": "t2 flair tra",
}
STORED = {"MR": MRImageStorage, "CT": CTImageStorage}
TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def uid(*words: object) -> str:
    """The same words give the same identifier."""
    return generate_uid(entropy_srcs=["oncofed tests", *map(repr, words)])


def write_series(
    folder: Path,
    data: np.ndarray,
    affine_mm: np.ndarray,
    *,
    patient: str,
    day: date,
    channel: str,
    series: str | None = None,
    modality: str = "MR",
    **fields: object,
) -> list[Path]:
    """One file a slice; ``fields`` replaces what would have been written, None leaves it out. Values of a CT
    are Hounsfield units."""
    folder.mkdir(parents=True, exist_ok=True)
    affine = TO_LPS @ affine_mm
    across, down, along = np.linalg.norm(affine[:3, :3], axis=0)
    name = series or channel
    paths = []
    for k in range(data.shape[2]):
        slice_ = _common(
            patient, day, modality=modality, sop_class=STORED[modality], name=name, number=k
        )
        slice_.SeriesDescription = WORDS.get(channel, channel)
        echo, repetition, inversion = TIMES.get(channel, (None, None, None))
        slice_.EchoTime, slice_.RepetitionTime, slice_.InversionTime = echo, repetition, inversion
        slice_.ScanningSequence, slice_.SequenceVariant = "SE", "NONE"
        slice_.MRAcquisitionType, slice_.ImageType = "2D", ["ORIGINAL", "PRIMARY", "M"]
        slice_.ImageOrientationPatient = [
            *map(_ds, affine[:3, 0] / across),
            *map(_ds, affine[:3, 1] / down),
        ]
        slice_.ImagePositionPatient = list(map(_ds, affine[:3, 3] + affine[:3, 2] * k))
        slice_.PixelSpacing, slice_.SliceThickness = [_ds(down), _ds(across)], _ds(along)
        slice_.SpacingBetweenSlices = _ds(along)
        if modality == "CT":
            slice_.RescaleIntercept, slice_.RescaleSlope, slice_.RescaleType = "-1024", "1", "HU"
            slice_.PatientPosition, slice_.KVP = "HFS", "120"
        zero = 1024 if modality == "CT" else 0
        _pixels(slice_, (data[:, :, k].T + zero).astype(np.uint16))
        for field, value in fields.items():
            if value is None:
                delattr(slice_, field)
            else:
                setattr(slice_, field, value)
        path = folder / f"{name.replace(' ', '-')}-{k:03d}.dcm"
        slice_.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def write_segmentation(path: Path, series: list[Path], labels: np.ndarray, names: dict[int, str]):
    """A SEG object over the slices of a series; ``labels`` on the same voxels."""
    images = [pydicom.dcmread(one) for one in series]
    present = [label for label in names if (labels == label).any()]
    masks = np.stack([labels == label for label in present], axis=-1)
    described = [
        highdicom.seg.SegmentDescription(
            segment_number=number + 1,
            segment_label=names[label],
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Neoplasm,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, label in enumerate(present)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = highdicom.seg.Segmentation(
            source_images=images,
            pixel_array=masks.transpose(2, 1, 0, 3).astype(np.uint8),
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=described,
            series_instance_uid=uid(path),
            series_number=9,
            sop_instance_uid=uid(path, 1),
            instance_number=1,
            manufacturer="tests",
            manufacturer_model_name="tests",
            software_versions="1",
            device_serial_number="1",
        )
        made.save_as(path)


def write_dose(path: Path, dose_gy: np.ndarray, affine_mm: np.ndarray, *, patient: str, day: date):
    """An RTDOSE object, in the frame of reference of the images of that day."""
    affine = TO_LPS @ affine_mm
    across, down, along = np.linalg.norm(affine[:3, :3], axis=0)
    normal = np.cross(affine[:3, 0] / across, affine[:3, 1] / down)
    sign = np.sign(normal @ affine[:3, 2])
    made = _common(patient, day, modality="RTDOSE", sop_class=RTDoseStorage, name="dose", number=0)
    made.DoseUnits, made.DoseType, made.DoseSummationType = "GY", "PHYSICAL", "PLAN"
    made.DoseGridScaling = _ds(float(dose_gy.max()) / 60_000)
    made.ImageOrientationPatient = [
        *map(_ds, affine[:3, 0] / across),
        *map(_ds, affine[:3, 1] / down),
    ]
    made.ImagePositionPatient = list(map(_ds, affine[:3, 3]))
    made.PixelSpacing = [_ds(down), _ds(across)]
    made.GridFrameOffsetVector = [_ds(sign * along * k) for k in range(dose_gy.shape[2])]
    made.NumberOfFrames = dose_gy.shape[2]
    counts = np.rint(dose_gy / float(made.DoseGridScaling)).astype(np.uint16)
    _pixels(made, counts.transpose(2, 1, 0))
    made.save_as(path, enforce_file_format=True)


def write_structures(
    path: Path, loops: dict[str, list[np.ndarray]], *, patient: str, day: date
) -> None:
    """An RTSTRUCT object; loops in RAS+ world millimetres, each of shape (n, 3)."""
    made = _common(
        patient, day, modality="RTSTRUCT", sop_class=RTStructureSetStorage, name="rt", number=0
    )
    made.StructureSetLabel = "tests"
    frame = Dataset()
    frame.FrameOfReferenceUID = made.FrameOfReferenceUID
    made.ReferencedFrameOfReferenceSequence = [frame]
    made.StructureSetROISequence, made.ROIContourSequence = [], []
    for number, (name, of_name) in enumerate(loops.items(), 1):
        roi, contours = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ROIGenerationAlgorithm = number, name, "MANUAL"
        roi.ReferencedFrameOfReferenceUID = made.FrameOfReferenceUID
        contours.ReferencedROINumber, contours.ContourSequence = number, []
        for loop in of_name:
            one = Dataset()
            one.ContourGeometricType, one.NumberOfContourPoints = "CLOSED_PLANAR", len(loop)
            one.ContourData = [_ds(x) for x in (loop * [-1, -1, 1]).ravel()]
            contours.ContourSequence.append(one)
        made.StructureSetROISequence.append(roi)
        made.ROIContourSequence.append(contours)
    made.save_as(path, enforce_file_format=True)


def _common(
    patient: str, day: date, *, modality: str, sop_class: str, name: str, number: int
) -> Dataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = uid(patient, day, name, number)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made = Dataset()
    made.file_meta = meta
    made.SOPClassUID, made.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    made.PatientName, made.PatientID, made.PatientBirthDate = NAME, patient, BORN
    made.PatientSex, made.PatientAge = "F", "060Y"
    made.InstitutionName, made.ReferringPhysicianName = "Klinikum Musterstadt", "Arzt^Anna"
    made.StudyDate = made.SeriesDate = made.AcquisitionDate = made.ContentDate = f"{day:%Y%m%d}"
    made.StudyTime = made.ContentTime = "101112"
    made.StudyInstanceUID, made.SeriesInstanceUID = uid(patient, day), uid(patient, day, name)
    made.FrameOfReferenceUID, made.Modality = uid(patient, day, "frame"), modality
    made.PositionReferenceIndicator = ""
    made.StudyID, made.SeriesNumber, made.InstanceNumber = "1", 1, number + 1
    made.AccessionNumber, made.Manufacturer = "4711", "tests"
    made.PatientPosition = "HFS"
    return made


def _pixels(made: Dataset, counts: np.ndarray) -> None:
    made.Rows, made.Columns = counts.shape[-2:]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 16
    made.HighBit, made.PixelRepresentation = 15, 0
    made.PixelData = counts.tobytes()


def _ds(value: float) -> str:
    """A number as DICOM's sixteen characters hold it."""
    return f"{value:.10g}"[:16]
