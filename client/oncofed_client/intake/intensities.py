"""How bright is each voxel, without what the coil adds and on a scale that images share?

Bias: N4 (Tustison et al., IEEE Trans. Med. Imaging 29, 2010) on a coarse lattice inside the brain, outside
the tumour; the smooth field it finds divides the image at its own resolution. Scale: the brain's 2nd
percentile becomes 100, its 98th 1000; air is 0. Both depend on this image and its own brain alone, never on
another patient.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk  # noqa: N813  its own documentation's name for it
from jaxtyping import Bool, Int16
from numpy import ndarray
from numpy.typing import NDArray

from oncofed_client.intake.lattice import on_lattice
from oncofed_common.cohort import Volume
from oncofed_common.errors import CohortRefusal
from oncofed_common.resample import resampled

PITCH_MM = 5.0
LOW, HIGH = 100.0, 1000.0
ROUNDS = [25, 25, 15]


def even(image: Volume, brain: Volume, tumor: Volume) -> Volume:
    """The image divided by its bias field; unchanged where too little of a brain is seen to find one."""
    coarse = on_lattice(image, pitch_mm=PITCH_MM)
    mask = (coarse.sampled(brain) > 0) & (coarse.sampled(tumor) == 0) & (coarse.values > 0)
    if mask.sum() < 1000:
        return image
    filter_ = sitk.N4BiasFieldCorrectionImageFilter()
    filter_.SetMaximumNumberOfIterations(ROUNDS)
    shown = sitk.GetImageFromArray(np.ascontiguousarray(coarse.values.transpose(2, 1, 0)))
    shown.SetSpacing([PITCH_MM] * 3)
    within = sitk.GetImageFromArray(mask.transpose(2, 1, 0).astype(np.uint8))
    within.SetSpacing([PITCH_MM] * 3)
    try:
        filter_.Execute(shown, within)
        field = sitk.GetArrayFromImage(filter_.GetLogBiasFieldAsImage(shown)).transpose(2, 1, 0)
    except RuntimeError:
        return image
    field = field - float(field[mask].mean())
    there = resampled(
        field,
        np.linalg.inv(coarse.affine_mm) @ image.affine_mm,
        shape=image.data.shape,
        order=1,
        outside=0.0,
    )
    return Volume(data=image.data / np.exp(there.clip(-2, 2)), affine_mm=image.affine_mm)


def scaled(image: Volume, inside: Bool[ndarray, "x y z"]) -> Int16[ndarray, "x y z"]:
    """The brain from 100 to 1000 by its robust percentiles, 1 at least; 0 outside ``inside``.

    Raises:
        CohortRefusal: code ``blank``: an image that shows no brain.
    """
    values: NDArray[np.float32] = image.data[inside]
    low, high = np.percentile(values, (2.0, 98.0)) if values.size else (0.0, 0.0)
    if not high > low:
        raise CohortRefusal(
            "an image whose voxels in the brain are all equal",
            allowed="voxels that differ",
            next="export the file again",
            code="blank",
        )
    onto = LOW + (image.data - low) * ((HIGH - LOW) / float(high - low))
    made = np.where(inside, onto.clip(1, 32_767), 0)
    return np.asarray(np.rint(made), dtype=np.int16)
