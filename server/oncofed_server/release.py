"""What a run leaves behind: the release for everybody, the audit folder for those who may see replies.

    weights.safetensors  study.toml  study.sig  roster.json  rounds/0001/participation.json
    log.jsonl  manifest.json

The manifest lists the SHA-256 of every other file and is signed by the task key, so that one changed
byte is found. The release appears in one rename; until then the run has not ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StringConstraints

from oncofed_common.durable import disk_refusal, new_folder, sync_folder, write_again
from oncofed_common.errors import IdentityRefusal, SystemRefusal, WireRefusal
from oncofed_common.identity import SigningKey, canonical, digest
from oncofed_common.tensors import pack_tensors
from oncofed_common.wire import (
    NO_DIGEST,
    Count,
    Hex32,
    Hex64,
    Signature,
    SignedParticipation,
)
from oncofed_server.checkpoint import State
from oncofed_server.participation import Status, check_record, parse_record, spell
from oncofed_server.replies import spell_sig
from oncofed_server.roster import Roster, read_roster
from oncofed_server.studies import Published
from oncofed_server.tasks import Plan, stored_envelopes

RelativePath = Annotated[str, StringConstraints(pattern=r"^[a-z0-9._/-]{1,200}$")]

FIXED = ("weights.safetensors", "study.toml", "study.sig", "roster.json", "log.jsonl")
"""What every release holds beside ``manifest.json`` and the records of its rounds."""


class Manifest(BaseModel):
    """``manifest.json``; the signature is the task key's, over everything else."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    files: dict[RelativePath, Hex64]
    study_hash: Hex64
    run: Hex32
    rounds: Count
    status: Status
    ended_s: Count
    signature: Signature

    def payload(self) -> dict[str, Any]:
        """What is signed."""
        return self.model_dump(mode="json", exclude={"signature"})


def record_path(number: int) -> str:
    """Where the record of a round lies in a release."""
    return f"rounds/{number:04d}/participation.json"


def write_release(
    plan: Plan,
    published: Published,
    state: State,
    *,
    status: Status,
    now_s: int,
) -> tuple[Path, Path | None]:
    """Make the release of a run that ends in ``state``, and the audit folder where the study allows one.

    Raises:
        SystemRefusal: codes ``record_damaged``, ``replies_missing``, ``task_conflict``, or the disk; there
            is no release then.
    """
    audit = plan.folder.audit if plan.study.study.release == "weights_and_audit" else None
    roster = read_roster(plan.home)
    try:
        records = _records(plan, state)
        if audit is not None:
            _complete_audit(plan, records)
        files = {
            "weights.safetensors": pack_tensors(state.weights),
            "study.toml": published.toml,
            "study.sig": published.sig,
            "roster.json": canonical(public_roster(roster, plan)),
            "log.jsonl": plan.folder.log.read_bytes(),
            **{record_path(one.record.round): spell(one) for one in records},
        }
    except OSError as error:
        raise disk_refusal(error) from None
    fields = {
        "files": {path: digest(data) for path, data in files.items()},
        "study_hash": plan.study_hash,
        "run": plan.run,
        "rounds": state.round,
        "status": status,
        "ended_s": now_s,
    }
    with new_folder(plan.folder.release) as folder:
        for path, data in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        (folder / "manifest.json").write_bytes(canonical(_signed(fields, plan.task_key)))
    return plan.folder.release, audit


def public_roster(roster: Roster, plan: Plan) -> dict[str, Any]:
    """The part of the roster that a release shows: keys and certificates of the invited sites."""
    invited = {site.name for site in plan.study.sites}
    return {
        "coordinator": roster.coordinator.model_dump(mode="json", exclude={"address"}),
        "sites": [
            {
                "site": member.site,
                "approver_key": member.approver_key,
                "trainer_certificate": member.trainer_certificate,
            }
            for member in roster.sites
            if member.site in invited
        ],
    }


def _signed(fields: dict[str, Any], key: SigningKey) -> dict[str, Any]:
    return {**fields, "signature": key.sign("release", fields)}


def _records(plan: Plan, state: State) -> list[SignedParticipation]:
    """The signed records of all rounds, in order: nothing is released that ``verify`` would not believe."""
    records: list[SignedParticipation] = []
    for number in range(1, state.round + 1):
        try:
            signed = parse_record(plan.folder.record(number).read_bytes())
            check_record(
                signed,
                study=plan.study,
                study_hash=plan.study_hash,
                run=plan.run,
                before=records[-1] if records else None,
                weights_before=None,
                task_key=plan.task_key.public,
            )
            holds = number < state.round or signed.record.digest() == state.last_digest
        except (WireRefusal, IdentityRefusal, OSError):
            holds = False
        if not holds:
            raise _damaged(f"the record of round {number}", code="record_damaged")
        records.append(signed)
    return records


def _complete_audit(plan: Plan, records: Sequence[SignedParticipation]) -> None:
    """Put beside each reply that a record names the task that it answers, its digests and its signature."""
    for signed in records:
        number = signed.record.round
        folder = plan.folder.replies(number)
        tasks = stored_envelopes(plan.folder.tasks(number))
        for site, envelope in tasks.items():
            write_again(folder / f"{site}.task", envelope)
        for outcome in signed.record.sites:
            if outcome.site not in tasks and outcome.reason != "revoked":
                raise _damaged(
                    f"the task of {outcome.site} in round {number}", code="task_conflict"
                )
            if outcome.reply_digest != NO_DIGEST:
                path = folder / f"{outcome.site}.reply"
                reply = path.read_bytes() if path.exists() else b""
                if digest(reply) != outcome.reply_digest:
                    what = f"a stored reply of {outcome.site} in round {number}"
                    raise _damaged(what, code="replies_missing")
                sig = spell_sig(reply, reply_digest=outcome.reply_digest)
                write_again(folder / f"{outcome.site}.sig", sig)
        sync_folder(folder)


def _damaged(what: str, *, code: str) -> SystemRefusal:
    return SystemRefusal(
        f"{what} that is damaged, or not there",
        allowed="the run's folder as it was when the round was closed",
        next="restore the run's folder from a backup as a whole",
        code=code,
    )
