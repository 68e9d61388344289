"""How does a volume of ours become a NIfTI file?"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from oncofed_common.cohort import Volume


def write_volume(path: Path, volume: Volume, *, description: str) -> None:
    """Write float32 voxels in scanner space (sform and qform, mm), with words in the header.

    Args:
        description: the header's ``descrip``: at most 79 ASCII characters.
    """
    image = nib.Nifti1Image(np.asarray(volume.data, dtype=np.float32), volume.affine_mm)
    image.set_sform(volume.affine_mm, code=1)
    image.set_qform(volume.affine_mm, code=1)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = description.encode("ascii")
    nib.save(image, path)
