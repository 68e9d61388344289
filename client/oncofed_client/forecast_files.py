"""How is a forecast handed over? A folder that is complete or not there.

Probability maps and mean images as NIfTI, the numbers as ``forecast.json``, the picture as
``forecast.png``. Every file says that it is for research use only.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from oncofed_client.forecast import NOTICE, Forecast, as_dict
from oncofed_client.panel import draw
from oncofed_client.readers.outputs import write_volume
from oncofed_common.cohort import Volume
from oncofed_common.errors import SystemRefusal


def write(found: Forecast, out: Path) -> list[str]:
    """Write the folder ``out`` and return its files' names.

    Raises:
        SystemRefusal: the folder exists (``out_exists``), or cannot be written (``out_write``).
    """
    if out.exists():
        raise SystemRefusal(
            "an output folder that exists already",
            allowed="a folder that does not exist yet",
            next="choose another folder, or remove this one",
            code="out_exists",
        )
    draft = out.with_name(f".{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        _fill(found, draft)
        draft.replace(out)
    except OSError as error:
        raise SystemRefusal(
            "an output folder that cannot be written",
            allowed="a folder with room, in a place that may be written",
            next="free some space or choose another place",
            code="out_write",
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return sorted(file.name for file in out.iterdir())


def _fill(found: Forecast, folder: Path) -> None:
    maps = {f"probability-{name}": data for name, data in found.probability.items()}
    maps |= {f"mean-{name}": data for name, data in found.images.items()}
    for name, data in maps.items():
        volume = Volume(data=data, affine_mm=found.frame.affine_mm)
        write_volume(folder / f"{name}.nii.gz", volume, description=f"oncofed: {NOTICE}")
    text = json.dumps(as_dict(found), indent=2, ensure_ascii=False) + "\n"
    (folder / "forecast.json").write_text(text, encoding="utf-8")
    draw(found, folder / "forecast.png")
