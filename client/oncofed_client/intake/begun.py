"""What becomes of a cohort while it is made: a folder beside its place that can be gone on with.

    .OUT.intake/cohort/    what will be OUT, patient by patient; mode 0700 until then
    .OUT.intake/doing/     the patients that are being taken in, each in a folder of its own
    .OUT.intake/notes/     what became of each finished patient (mode 0600: it has the hospital's names)

A patient's files move into ``cohort`` as a whole, then its note is written; a patient with a note is not
taken in again, as long as its files, tables and options are the same. At the end ``cohort`` becomes OUT and
the rest goes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oncofed_common.durable import (
    disk_refusal,
    is_used,
    locked_folder,
    refuse_used,
    sync_all,
    sync_folder,
    write_private,
)
from oncofed_common.errors import SystemRefusal

COHORT, DOING, NOTES = "cohort", "doing", "notes"
MARK = "made-by-oncofed-site-intake"
"""An empty file: a folder of that name without it is somebody else's, and left alone."""
BUSY = "another process that takes patients into this folder"
ROOMS = (".", "derivatives/tumor", "derivatives/tissue", "derivatives/quality")
"""Where in a cohort a patient has a folder."""


@dataclass(frozen=True, kw_only=True)
class Begun:
    """The folder while it is filled."""

    folder: Path

    @property
    def cohort(self) -> Path:
        return self.folder / COHORT

    def doing(self, key: str) -> Path:
        """Where the patient with this key is made."""
        return self.folder / DOING / key

    def note(self, key: str) -> dict[str, Any] | None:
        """What was noted of a finished patient, None for one that is not finished."""
        try:
            found = json.loads((self.folder / NOTES / f"{key}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def keep(self, key: str, participant: str | None, note: Mapping[str, Any]) -> None:
        """Move what was made of a patient into the cohort, and note it.

        Raises:
            SystemRefusal: the disk.
        """
        try:
            self.forget(participant)
            made = self.doing(key)
            for room in ROOMS if participant is not None else ():
                of_patient = made / room / str(participant)
                if of_patient.is_dir():
                    place = self.cohort / room / str(participant)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    of_patient.rename(place)
            shutil.rmtree(made, ignore_errors=True)
        except OSError as error:
            raise disk_refusal(error) from None
        write_private(self.folder / NOTES / f"{key}.json", json.dumps(dict(note)).encode())

    def forget(self, participant: str | None) -> None:
        """Take away whatever is there of a participant."""
        for room in ROOMS if participant is not None else ():
            shutil.rmtree(self.cohort / room / str(participant), ignore_errors=True)

    def give_up(self) -> None:
        """Forget every note: what is left is thrown away at the end."""
        shutil.rmtree(self.folder / NOTES, ignore_errors=True)

    def only(self, participants: set[str]) -> None:
        """Take away every other participant: what an earlier, different call has left."""
        for room in ROOMS:
            for folder in (self.cohort / room).glob("sub-*"):
                if folder.name not in participants:
                    shutil.rmtree(folder, ignore_errors=True)


def refuse_finished(out: Path) -> None:
    """Refuse a cohort that is there; what a call that died just after has left beside it goes first.

    Raises:
        SystemRefusal: code ``out_exists``.
    """
    left = beside(out)
    if is_used(out) and _is_ours(left) and not (left / COHORT).exists():
        with suppress(SystemRefusal), locked_folder(left, busy=BUSY):
            shutil.rmtree(left, ignore_errors=True)
    refuse_used(out)


def beside(out: Path) -> Path:
    """The folder in which a cohort is made."""
    return out.absolute().parent / f".{out.name}.intake"


def _is_ours(folder: Path) -> bool:
    return not folder.is_symlink() and (folder / MARK).is_file()


def _refuse_foreign(folder: Path) -> None:
    """Raises SystemRefusal: ``out_exists``."""
    empty = folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())
    if os.path.lexists(folder) and not (_is_ours(folder) or empty):
        raise SystemRefusal(
            "something else where this cohort would be made, beside its place",
            allowed="nothing there, or what an earlier intake has left",
            next="name another --out",
            code="out_exists",
        )


@contextmanager
def begun(out: Path) -> Iterator[Begun]:
    """A folder whose ``cohort`` becomes ``out`` when the block ends without an error; otherwise it waits to
    be gone on with, unless nothing in it is finished.

    Raises:
        SystemRefusal: ``out`` is in use (``out_exists``), somebody else writes it (``output_in_use``), or
            the disk does not take it.
    """
    refuse_finished(out)
    out = out.absolute()
    folder = beside(out)
    _refuse_foreign(folder)
    with locked_folder(folder, busy=BUSY):
        try:
            folder.chmod(0o700)
            (folder / MARK).touch()
            shutil.rmtree(folder / DOING, ignore_errors=True)
            for name in (COHORT, DOING, NOTES):
                (folder / name).mkdir(exist_ok=True)
            yield Begun(folder=folder)
            sync_all(folder / COHORT)
            (folder / COHORT).rename(out)
            sync_folder(out.parent)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError as error:
            raise disk_refusal(error) from None
        finally:
            if not any((folder / NOTES).glob("*.json")):
                shutil.rmtree(folder, ignore_errors=True)
