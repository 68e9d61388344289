"""Where a run stands after a round, in one file that is there as a whole or not at all.

A checkpoint is the SHA-256 of the rest in hex, a newline, and a frame of header and tensors: the weights,
and what the strategy remembers. Round 0
holds the first values. The newest two are kept: one that a failing disk has damaged is passed over,
and the round after the older one is closed again from its stored replies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from oncofed_common.durable import write_atomic
from oncofed_common.errors import OncofedError, SystemRefusal
from oncofed_common.identity import canonical, digest
from oncofed_common.study import Study
from oncofed_common.tensors import TensorTerm, pack_tensors, unpack_tensors
from oncofed_common.wire import (
    NO_DIGEST,
    Count,
    Hex32,
    Hex64,
    SignedParticipation,
    frame,
    unframe,
)
from oncofed_server.participation import Status
from oncofed_server.strategies.strategy import memory_schema

KEPT = 2
_NUMBERED = re.compile(r"[0-9]{4,9}")
_REMEMBERED = "strategy/"
"""Before the names of what a strategy remembers: no tensor of a study has a slash in its name."""


@dataclass(frozen=True, kw_only=True)
class State:
    """What the next round needs: how many rounds are closed, their weights, records and words, and what the
    strategy remembers."""

    round: int
    weights: Mapping[str, NDArray[Any]]
    memory: Mapping[str, NDArray[Any]]
    last: SignedParticipation | None
    statuses: tuple[Status, ...]

    @cached_property
    def last_digest(self) -> str:
        """That of the last record; ``NO_DIGEST`` before the first."""
        return self.last.record.digest() if self.last else NO_DIGEST


@dataclass(frozen=True, kw_only=True)
class Restored:
    """The state that was found, and the rounds of damaged checkpoints that were passed over."""

    state: State
    skipped: tuple[int, ...]


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    study_hash: Hex64
    run: Hex32
    round: Count
    last: SignedParticipation | None = None
    statuses: tuple[Status, ...]


def save_checkpoint(folder: Path, state: State, *, study_hash: str, run: str) -> Path:
    """Write the state of ``state.round`` and forget all but the newest two.

    Raises:
        SystemRefusal: the disk; the checkpoints before are untouched.
    """
    header = _Header(
        study_hash=study_hash,
        run=run,
        round=state.round,
        last=state.last,
        statuses=state.statuses,
    )
    envelope = canonical(header.model_dump(mode="json", exclude_none=True))
    remembered = {_REMEMBERED + name: one for name, one in state.memory.items()}
    body = frame(envelope, pack_tensors({**state.weights, **remembered}))
    path = folder / f"{state.round:04d}.ckpt"
    write_atomic(path, digest(body).encode() + b"\n" + body)
    for old in _newest_first(folder)[KEPT:]:
        old.unlink()
    return path


def load_newest(folder: Path, *, study: Study, run: str) -> Restored | None:
    """The newest checkpoint that is whole, or None in a folder without any.

    Raises:
        SystemRefusal: code ``no_checkpoint``; there are checkpoints, and none is whole.
    """
    paths = _newest_first(folder)
    skipped: list[int] = []
    for path in paths:
        state = _load(path, study=study, run=run)
        if state is not None:
            return Restored(state=state, skipped=tuple(skipped))
        skipped.append(int(path.stem))
    if not paths:
        return None
    raise SystemRefusal(
        "no checkpoint of this run that is whole",
        allowed=f"one of the newest {KEPT} checkpoints",
        next="restore the run's checkpoints from a backup",
        code="no_checkpoint",
    )


def _load(path: Path, *, study: Study, run: str) -> State | None:
    """The state in ``path``, or None when a byte of it is wrong or it belongs to another run."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    body = data[65:]
    if data[:65] != digest(body).encode() + b"\n":
        return None
    try:
        envelope, tensors = unframe(body, cap_bytes=len(body))
        header = _Header.model_validate_json(envelope)
        remembered = [
            TensorTerm(name=_REMEMBERED + term.name, shape=term.shape)
            for term in memory_schema(study)
        ]
        schema = (*study.schema_terms, *remembered)
        found = unpack_tensors(tensors, schema=schema, dtype="float32")
    except (OncofedError, ValidationError):
        return None
    if (header.study_hash, header.run) != (study.hash, run):
        return None
    weights = {term.name: found[term.name] for term in study.schema_terms}
    memory = {term.name.removeprefix(_REMEMBERED): found[term.name] for term in remembered}
    return State(
        round=header.round,
        weights=weights,
        memory=memory,
        last=header.last,
        statuses=header.statuses,
    )


def _newest_first(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("*.ckpt") if _NUMBERED.fullmatch(path.stem)]
    return sorted(found, key=lambda path: -int(path.stem))
