"""How is a forecast handed over? A folder that is complete or not there.

Probability maps and mean images as NIfTI on the grid of the last visit's outline, so that they lie over
the hospital's own scans; the numbers as ``forecast.json``, the picture as ``forecast.png``. Several
plans give a folder each and one page that compares them. Every file says that it is for research use
only.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from oncofed_client.forecasts import comparison, explanation_panel
from oncofed_client.forecasts.explain import Explanation
from oncofed_client.forecasts.explain import as_dict as explained
from oncofed_client.forecasts.forecast import NOTICE, Forecast, as_dict
from oncofed_client.forecasts.panel import draw
from oncofed_client.readers.outputs import write_volume
from oncofed_common.cohort import Volume
from oncofed_common.errors import SystemRefusal
from oncofed_common.resample import resampled


def write(found: Forecast, out: Path, *, why: Explanation | None = None) -> list[str]:
    """Write the folder ``out`` and return its files' names.

    Raises:
        SystemRefusal: the folder exists (``out_exists``), or cannot be written (``out_write``).
    """
    return _whole(out, lambda draft: _fill(found, draft, why))


def write_plans(found: Mapping[str, Forecast], out: Path) -> list[str]:
    """Write a folder for each named plan and the page that compares them; names of files below ``out``.

    Raises:
        SystemRefusal: see ``write``.
    """

    def fill(draft: Path) -> None:
        for name, one in found.items():
            (draft / name).mkdir()
            _fill(one, draft / name, None)
        comparison.draw(found, draft / "comparison.png")
        text = json.dumps(comparison.as_dict_plans(found), indent=2, ensure_ascii=False) + "\n"
        (draft / "comparison.json").write_text(text, encoding="utf-8")

    return _whole(out, fill)


def unwritten(out: Path) -> None:
    """Refuse a folder that is there.

    Raises:
        SystemRefusal: code ``out_exists``.
    """
    if out.exists():
        raise SystemRefusal(
            "an output folder that exists already",
            allowed="a folder that does not exist yet",
            next="choose another folder, or remove this one",
            code="out_exists",
        )


def _whole(out: Path, fill: Callable[[Path], None]) -> list[str]:
    unwritten(out)
    draft = out.with_name(f".{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        fill(draft)
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
    return sorted(str(file.relative_to(out)) for file in out.rglob("*") if file.is_file())


def _fill(found: Forecast, folder: Path, why: Explanation | None) -> None:
    maps = {f"probability-{name}": data for name, data in found.probability.items()}
    maps |= {f"mean-{name}": data for name, data in found.images.items()}
    to_window = np.linalg.inv(found.frame.affine_mm) @ found.native.affine_mm
    for name, data in maps.items():
        native = resampled(data, to_window, shape=found.native.shape, order=1, outside=0.0)
        volume = Volume(data=native, affine_mm=found.native.affine_mm)
        write_volume(folder / f"{name}.nii.gz", volume, description=f"oncofed: {NOTICE}")
    numbers = as_dict(found)
    if why is not None:
        numbers["explanation"] = explained(why)
        explanation_panel.draw(why, found, folder / "explanation.png")
    text = json.dumps(numbers, indent=2, ensure_ascii=False) + "\n"
    (folder / "forecast.json").write_text(text, encoding="utf-8")
    draw(found, folder / "forecast.png")
