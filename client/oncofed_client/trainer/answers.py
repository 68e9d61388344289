"""What a site can say to a task: the envelope of an update, or one code.

Every field is the task's own, the study's, or this site's public word; none is computed from a scan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from oncofed_client.codehash import code_hash
from oncofed_client.trainer.door import charge_of
from oncofed_common.identity import Certificate
from oncofed_common.study import Study
from oncofed_common.wire import NO_DIGEST, WIRE_VERSION, Head, Reply, Task


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """The site that answers, and whether its home is virtual."""

    site: str
    virtual: bool
    certificate: Certificate


def update_reply(
    speaker: Speaker,
    task: Task,
    *,
    task_digest: str,
    study: Study,
    head: Head | None,
    protected: bool,
) -> Reply:
    """The envelope of an update, which the door binds to its tensors.

    Args:
        head: what may leave of the ledger's head.
        protected: whether the noise is known to nobody.
    """
    return Reply(
        wire_version=WIRE_VERSION,
        task_digest=task_digest,
        study_hash=task.study_hash,
        run=task.run,
        round=task.round,
        site=speaker.site,
        code="ok",
        payload_kind="none",
        update_digest=NO_DIGEST,
        charge=charge_of(study),
        protected=1 if protected else 0,
        wheel_hash=code_hash(),
        ledger_head=head,
        trainer_certificate=speaker.certificate.as_dict(),
    )


def refusal_reply(speaker: Speaker, task: Task | None, code: str, *, task_digest: str) -> Reply:
    """A code. It carries no head and no charge: nothing happened."""
    fields: dict[str, Any] = {
        "wire_version": WIRE_VERSION,
        "task_digest": task_digest,
        "study_hash": task.study_hash if task else NO_DIGEST,
        "run": task.run if task else NO_DIGEST[:32],
        "round": task.round if task else 0,
        "site": speaker.site,
        "code": code,
        "payload_kind": "none",
        "update_digest": NO_DIGEST,
        "protected": 0 if speaker.virtual else 1,
        "wheel_hash": code_hash(),
        "trainer_certificate": speaker.certificate.as_dict(),
    }
    return Reply.model_validate(fields)
