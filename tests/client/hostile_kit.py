"""The tools of a hostile coordinator: a site that has answered round 1, and tasks that would be round 2."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from site_builder import Coordinator, Site, zeros

from oncofed_common.identity import canonical, certify, digest
from oncofed_common.tensors import pack_tensors
from oncofed_common.wire import frame, unframe


@dataclass(kw_only=True)
class Kit:
    """A site that has answered ``first`` with ``reply``, and who may write to it."""

    site: Site
    coordinator: Coordinator
    stranger: Coordinator
    first: bytes
    reply: bytes

    def second(self, *, packed: bytes | None = None, **changes: Any) -> bytes:
        """The task of round 2, with some fields, its weights or its keys changed."""
        tensors = pack_tensors(zeros(self.site.study)) if packed is None else packed
        record = self.coordinator.record(
            self.site, number=1, reply=self.reply, weights_after=digest(tensors)
        )
        asked = {"number": 2, "record": record} | changes
        return self.coordinator.task(self.site, packed=tensors, **asked)

    def signed(self, **changes: Any) -> bytes:
        """Round 2 with fields that no task has, signed all the same; a change of ``...`` removes one."""
        envelope, tensors = unframe(self.second(), cap_bytes=10**6)
        message = json.loads(envelope)["message"] | changes
        message = {name: value for name, value in message.items() if value is not ...}
        signature = self.coordinator.task_key.sign("task", message)
        return frame(canonical({"message": message, "signature": signature}), tensors)

    def spelled(self, change: Callable[[bytes], bytes]) -> bytes:
        """Round 2 with its signed envelope spelled in another way."""
        envelope, tensors = unframe(self.second(), cap_bytes=10**6)
        return frame(change(envelope), tensors)

    def certified(self, **changes: Any) -> bytes:
        """Round 2 under a certificate by the true study key that says something else."""
        terms = {
            "purpose": "task",
            "holder": "coordinator",
            "epoch": 1,
            "not_before_s": self.coordinator.now_s - 1000,
            "not_after_s": self.coordinator.now_s + 1000,
            "virtual": False,
        } | changes
        subject = terms.pop("subject", self.coordinator.task_key.public)
        other = certify(self.coordinator.study_key, subject, **terms)
        return self.second(task_certificate=other.as_dict())

    def resigned(self, signature: str | Callable[[str], str]) -> bytes:
        """Round 2 with another signature."""

        def change(envelope: bytes) -> bytes:
            outer = json.loads(envelope)
            said = signature if isinstance(signature, str) else signature(outer["signature"])
            return canonical(outer | {"signature": said})

        return self.spelled(change)

    def forged(self) -> bytes:
        """Round 2 under a certificate for a stranger's task key that names the true issuer."""
        true = self.coordinator.certificate()
        stolen = true | {"subject": self.stranger.task_key.public.hex}
        return self.second(task_certificate=stolen, key=self.stranger.task_key)


Make = Callable[[Kit], bytes]
Attack = tuple[str, str, Make]
"""What it is, the code that it must get, and how it is made."""
