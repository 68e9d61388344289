"""Where is grey and white matter in an average head? The MNI152 atlas, as nilearn's wheel carries it.

Fonov et al., NeuroImage 54 (2011): ICBM152 2009a nonlinear symmetric, 1 mm; T1 without skull, and maps of
grey and white matter. The files are found beside the package; the package itself, which can download
things, is not loaded.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np

from oncofed_common.cohort import Volume
from oncofed_common.errors import SystemRefusal

FILES = {
    kind: f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz" for kind in ("t1", "gm", "wm")
}


@dataclass(frozen=True, kw_only=True)
class Atlas:
    """On one grid: ``t1`` without skull, ``grey`` and ``white`` as shares 0 to 1, ``brain`` 0 and 1."""

    t1: Volume
    grey: Volume
    white: Volume
    brain: Volume


@lru_cache(maxsize=1)
def read_atlas() -> Atlas:
    """The atlas of this installation.

    Raises:
        SystemRefusal: code ``no_atlas``.
    """
    try:
        spec = importlib.util.find_spec("nilearn")
        places = spec.submodule_search_locations if spec is not None else None
        folder = Path((places or [""])[0]) / "datasets" / "data"
        images = {kind: nib.load(folder / name) for kind, name in FILES.items()}
    except OSError:
        raise SystemRefusal(
            "no MNI152 atlas in this installation",
            allowed="oncofed with the extra intake",
            next="install '.[intake]' with the lock file as constraints",
            code="no_atlas",
        ) from None
    volumes = {
        kind: Volume(
            data=np.asarray(image.dataobj, dtype=np.float32),
            affine_mm=np.asarray(image.affine, dtype=np.float64),
        )
        for kind, image in images.items()
    }
    shares = {
        kind: Volume(data=volumes[kind].data / 255, affine_mm=volumes[kind].affine_mm)
        for kind in ("gm", "wm")
    }
    brain = (volumes["t1"].data > 0) | (shares["gm"].data + shares["wm"].data > 0.5)
    return Atlas(
        t1=volumes["t1"],
        grey=shares["gm"],
        white=shares["wm"],
        brain=Volume(data=brain.astype(np.uint8), affine_mm=volumes["t1"].affine_mm),
    )
