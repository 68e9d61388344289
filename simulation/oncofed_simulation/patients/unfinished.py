"""What becomes of cohorts while they are made: a folder beside their place that can be gone on with.

``.OUT.tmp`` has one name and is locked while it is filled. It holds the finished patients, a note of each,
and the plan that they belong to. A later call with the same plan goes on from there, also after a kill; one
with another plan begins anew. At the end it becomes ``OUT``, as a whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oncofed_common.durable import disk_refusal, locked_folder, refuse_used, write_atomic
from oncofed_common.errors import OncofedError

PLAN, NOTES = "plan.json", "notes"


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """The folder while it is filled."""

    folder: Path

    def note(self, hospital: str, number: int) -> dict[str, Any] | None:
        """What was noted of a finished patient, None for one that is not finished."""
        path = self._path(hospital, number)
        if not path.exists():
            return None
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def keep(self, hospital: str, number: int, note: dict[str, Any]) -> None:
        """Note that a patient is finished; its files are all there."""
        path = self._path(hospital, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(note).encode())

    def _path(self, hospital: str, number: int) -> Path:
        return self.folder / NOTES / hospital / f"{number}.json"


@contextmanager
def unfinished(out: Path, *, plan: str) -> Iterator[Unfinished]:
    """A folder that becomes ``out`` when the block ends without an error.

    An interrupt leaves it to be gone on with; a refusal or a failure takes it away.

    Args:
        plan: says what is made, by which code; what was begun for another plan is thrown away.

    Raises:
        SystemRefusal: ``out`` is in use (``out_exists``), somebody else writes it (``output_in_use``), or the
            disk does not take it.
    """
    refuse_used(out)
    out = out.absolute()
    folder = out.parent / f".{out.name}.tmp"
    with locked_folder(folder, busy="another process that writes this folder"):
        try:
            _begin(folder, plan)
            yield Unfinished(folder=folder)
            shutil.rmtree(folder / NOTES, ignore_errors=True)
            (folder / PLAN).unlink()
            folder.rename(out)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise disk_refusal(error) from None
        except OncofedError:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _begin(folder: Path, plan: str) -> None:
    """Go on with what was begun for this plan; empty the folder of anything else."""
    marker = folder / PLAN
    if marker.is_file() and marker.read_text(encoding="utf-8") == plan:
        return
    for left in folder.iterdir():
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()
    write_atomic(marker, plan.encode())
