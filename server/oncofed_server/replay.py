"""Every sum of a run once more, bit for bit: from first values, through the signed replies, to the end.

The tasks in the audit folder are the coordinator's signed word for which weights each site was given:
their frames are rebuilt with the recomputed weights, and must be what every reply answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from oncofed_common.durable import read_regular
from oncofed_common.errors import OncofedError, SystemRefusal
from oncofed_common.identity import Certificate, PublicKey, digest
from oncofed_common.study import Study
from oncofed_common.tensors import pack_tensors
from oncofed_common.wire import NO_DIGEST, SignedParticipation, Task, frame, read_task
from oncofed_server.aggregate import metrics_of
from oncofed_server.release import record_path
from oncofed_server.replies import open_reply, read_update, spell_sig
from oncofed_server.strategies.strategy import Memory, apply, fold, init, nothing


@dataclass(frozen=True, kw_only=True)
class Fault:
    """The first thing that is wrong: which file, which check."""

    path: str
    check: str


@dataclass(frozen=True, kw_only=True)
class Parties:
    """Whose signatures count."""

    run: str
    coordinator: PublicKey
    task_key: PublicKey
    approvers: Mapping[str, PublicKey]


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """The packed weights after the last round, and how many replies and sums held before a fault."""

    weights: bytes
    replies: int
    sums: int
    fault: Fault | None


class _Faulty(Exception):
    def __init__(self, path: str, check: str) -> None:
        self.fault = Fault(path=path, check=check)


def replay(
    audit: Path,
    study: Study,
    parties: Parties,
    *,
    records: Sequence[SignedParticipation],
    first: Mapping[str, NDArray[Any]],
) -> Replayed:
    """Recompute every round of ``records``, which were checked already.

    Raises:
        SystemRefusal: code ``missing_files``; the audit folder lacks something.
    """
    weights: Mapping[str, NDArray[Any]] = first
    memory: Memory = init(study)
    replies = sums = 0
    try:
        _refuse_unlisted(audit, records)
        for signed in records:
            record = signed.record
            if digest(pack_tensors(weights)) != record.weights_before:
                raise _Faulty(record_path(record.round), "weights_before")
            weights, memory, counted = _round(
                audit, study, parties, signed, weights=weights, memory=memory
            )
            replies += counted
            sums += 1
    except _Faulty as found:
        fault: Fault | None = found.fault
    else:
        fault = None
    return Replayed(weights=pack_tensors(weights), replies=replies, sums=sums, fault=fault)


def _round(
    audit: Path,
    study: Study,
    parties: Parties,
    signed: SignedParticipation,
    *,
    weights: Mapping[str, NDArray[Any]],
    memory: Memory,
) -> tuple[Mapping[str, NDArray[Any]], Memory, int]:
    """The weights after one round, what the strategy remembers, and how many replies were checked."""
    record, packed = signed.record, pack_tensors(weights)
    gathered, checked = nothing(study), 0
    for outcome in record.sites:
        if outcome.reason == "revoked":
            continue
        stem = f"rounds/{record.round:04d}/{outcome.site}"
        task, envelope = _task(
            audit,
            f"{stem}.task",
            parties=parties,
            binds=(
                study.hash,
                parties.run,
                record.round,
                outcome.site,
                record.previous,
                digest(packed),
                study.schema_digest,
            ),
        )
        if outcome.reply_digest == NO_DIGEST:
            continue
        path = f"{stem}.reply"
        body = _read(audit, path)
        if digest(body) != outcome.reply_digest:
            raise _Faulty(path, "digest")
        try:
            reply = open_reply(
                body,
                task=task,
                task_digest=digest(frame(envelope, packed)),
                study=study,
                approver_key=parties.approvers[outcome.site],
                now_s=task.not_before_s,
            )
            update = read_update(reply, study=study)
            if update is not None:
                gathered = fold(gathered, update, site=outcome.site, memory=memory, study=study)
        except OncofedError as error:
            raise _Faulty(path, error.code) from None
        if _read(audit, f"{stem}.sig") != spell_sig(body, reply_digest=outcome.reply_digest):
            raise _Faulty(f"{stem}.sig", "digest")
        if reply.reply.code != outcome.code or (update is None) == (outcome.outcome == "counted"):
            raise _Faulty(path, "outcome")
        checked += 1
    told = {"metrics": record.metrics, "metrics_weight": record.metrics_weight}
    if told != metrics_of(gathered.total):
        raise _Faulty(record_path(record.round), "metrics")
    if record.status != "failed":
        try:
            weights, memory = apply(weights, gathered, memory=memory, study=study)
        except OncofedError as error:
            raise _Faulty(record_path(record.round), error.code) from None
    if digest(pack_tensors(weights)) != record.weights_after:
        raise _Faulty(record_path(record.round), "sum")
    return weights, memory, checked


def _task(
    audit: Path, path: str, *, parties: Parties, binds: tuple[str | int, ...]
) -> tuple[Task, bytes]:
    """A task that the certified task key signed, and that binds what it has to."""
    envelope = _read(audit, path)
    try:
        task, signature = read_task(envelope)
        certificate = Certificate.from_dict(task.task_certificate)
        key = certificate.check(issuer=parties.coordinator, purpose="task", now_s=task.not_before_s)
        key.verify("task", task.payload(), signature)
    except OncofedError as error:
        raise _Faulty(path, error.code) from None
    found = (
        task.study_hash,
        task.run,
        task.round,
        task.site,
        task.participation_digest,
        task.weights_digest,
        task.schema_digest,
    )
    if found != binds or key != parties.task_key:
        raise _Faulty(path, "binding")
    return task, envelope


def _read(audit: Path, path: str) -> bytes:
    """A file of the audit folder itself: no link to elsewhere, no pipe whose end never comes."""
    try:
        if (audit / path).is_symlink():
            raise _Faulty(path, "kind")
        return read_regular(audit / path)
    except PermissionError:
        raise SystemRefusal(
            f"an audit folder whose {path} this account may not read",
            allowed="the audit folder of this release, whole and readable",
            next="give this account the right to read it",
            code="missing_files",
        ) from None
    except OSError:
        raise _Faulty(path, "kind") from None


def _refuse_unlisted(audit: Path, records: Sequence[SignedParticipation]) -> None:
    """The audit folder holds exactly what the records name."""
    expected: set[str] = set()
    for signed in records:
        for outcome in signed.record.sites:
            stem = f"rounds/{signed.record.round:04d}/{outcome.site}"
            if outcome.reason != "revoked":
                expected.add(f"{stem}.task")
            if outcome.reply_digest != NO_DIGEST:
                expected |= {f"{stem}.reply", f"{stem}.sig"}
    found = {
        p.relative_to(audit).as_posix()
        for p in audit.rglob("*")
        if p.is_symlink() or not p.is_dir()
    }
    for path in sorted(found):
        if any(name.startswith(f"{path}/") for name in expected):  # a link in a folder's place
            raise _Faulty(path, "kind")
    absent = sorted(expected - found)
    if absent:
        raise SystemRefusal(
            f"an audit folder without {absent[0]}",
            allowed="the audit folder of this release, whole",
            next="get what is missing from the coordinator",
            code="missing_files",
        )
    if found != expected:
        raise _Faulty(min(found - expected), "unlisted")
