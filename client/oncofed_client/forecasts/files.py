"""How is a forecast handed over? A folder that is complete or not there.

Probability maps and mean images as NIfTI on the grid of the last visit's outline, so that they lie over
the hospital's own scans; the numbers as ``forecast.json``, the picture as ``forecast.png``. Several
plans give a folder each and one page that compares them. Every file says that it is for research use
only.
"""

from __future__ import annotations

import json
import os
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
from oncofed_common.durable import locked_folder
from oncofed_common.errors import SystemRefusal
from oncofed_common.resample import resampled

PAGE = ("comparison.png", "comparison.json")
"""What compares several plans, beside a folder for each."""


def write(found: Forecast, out: Path, *, why: Explanation | None = None) -> list[str]:
    """Write the folder ``out`` and return its files' names.

    Raises:
        SystemRefusal: the folder exists (``out_exists``), another process fills it
            (``output_in_use``), or it cannot be written (``out_write``).
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
        picture, numbers = (draft / name for name in PAGE)
        comparison.draw(found, picture)
        text = json.dumps(comparison.as_dict_plans(found), indent=2, ensure_ascii=False) + "\n"
        numbers.write_text(text, encoding="utf-8")

    return _whole(out, fill)


def unwritten(out: Path) -> None:
    """Refuse a folder that is there, or for which its place has no right.

    Raises:
        SystemRefusal: codes ``out_exists``, ``out_write``.
    """
    if os.path.lexists(out):
        raise SystemRefusal(
            "an output folder that exists already",
            allowed="a folder that does not exist yet",
            next="choose another folder, or remove this one",
            code="out_exists",
        )
    above = next(one for one in out.absolute().parents if one.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise _not_written()


def _not_written() -> SystemRefusal:
    return SystemRefusal(
        "an output folder that cannot be written",
        allowed="a folder with room, in a place that may be written",
        next="free some space or choose another place",
        code="out_write",
    )


def _whole(out: Path, fill: Callable[[Path], None]) -> list[str]:
    unwritten(out)
    draft = out.with_name(f".{out.name}.draft")
    try:
        draft.mkdir(parents=True, exist_ok=True)
        with locked_folder(draft, busy="an output folder that another process fills"):
            try:
                _fill_and_move(fill, draft, out)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise _not_written() from error
    return sorted(str(file.relative_to(out)) for file in out.rglob("*") if file.is_file())


def _fill_and_move(fill: Callable[[Path], None], draft: Path, out: Path) -> None:
    """In a part of the draft of this process's own, whatever a killed one has left there."""
    own = draft / str(os.getpid())
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir()
    fill(own)
    unwritten(out)  # nor was it filled meanwhile
    own.replace(out)


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
