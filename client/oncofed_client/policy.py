"""The site's own limits: what this hospital allows, whoever asks.

The file is the hospital's; nothing from outside widens it. Numbers that are compared with signed ones
are decimal strings, so that each has one spelling. The filter order is written at ``init`` and bound by
the ledger's first row: losses at two orders cannot be added.
"""

from __future__ import annotations

import difflib
import math
import os
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from oncofed_common.errors import PolicyRefusal, PrivacyRefusal
from oncofed_common.limits import fault_in_words
from oncofed_common.privacy.filter import LEAST_ORDER, MOST_ORDER, filter_room
from oncofed_common.study import Study

UNITS = 10**9
"""Rényi losses are kept as whole billionths, always rounded against the spender."""

PATIENTS_PER_DELTA = 100
"""A lifetime delta is at most one in a hundred of one patient's share."""

STUDIES_AT_ONCE = 8
"""As ``init`` writes it; the hospital may say otherwise."""

APPROVERS = 1
"""As ``init`` writes it, which makes one approver; the hospital may say 2 when there is a second."""

DecimalText = Annotated[
    str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,8})(\.[0-9]{1,12})?$", max_length=22)
]
Bytes = Annotated[int, Field(ge=1024, lt=2**40)]
Release = Literal["weights", "weights_and_audit"]
Hour = Annotated[int, Field(ge=0, le=24)]


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


class Policy(BaseModel):
    """Limits over a lifetime, a day and a round. Units: bytes, whole patients, hours of the day (UTC).

    ``studies_at_once``: so many may be open; ``hours_utc``: a round begins from the first hour on and before
    the second, over midnight where that is smaller; ``approvers``: so many persons sign a yes.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    lifetime_epsilon: DecimalText
    lifetime_delta: DecimalText
    filter_order: Annotated[int, Field(ge=LEAST_ORDER, le=MOST_ORDER)]
    declared_patients: Annotated[int, Field(ge=1, lt=2**31)]
    bytes_per_round: Bytes
    bytes_per_day: Bytes
    bytes_in_cap: Bytes
    releases: Annotated[tuple[Release, ...], BeforeValidator(_as_tuple)]
    studies_at_once: Annotated[int, Field(ge=1, lt=2**31)]
    hours_utc: Annotated[tuple[Hour, Hour], BeforeValidator(_as_tuple)]
    approvers: Annotated[int, Field(ge=1, le=2)]

    @model_validator(mode="after")
    def _hangs_together(self) -> Policy:
        if Decimal(self.lifetime_delta) * PATIENTS_PER_DELTA * self.declared_patients > 1:
            most = Decimal(1) / (PATIENTS_PER_DELTA * self.declared_patients)
            raise ValueError(
                f"lifetime_delta must be at most 1/(100 x declared patients) = {most:f}"
            )
        if self.hours_utc[0] == self.hours_utc[1]:
            raise ValueError("hours_utc must be two hours that differ")
        if self.bytes_per_day < self.bytes_per_round:
            raise ValueError("bytes_per_day must be at least bytes_per_round")
        try:
            room = self.room_units
        except PrivacyRefusal as refusal:
            raise ValueError(f"filter_order: {refusal.found}; {refusal.next}") from None
        if room < 1:
            raise ValueError("lifetime_epsilon leaves no room for any study")
        return self

    def may_begin(self, hour: int) -> bool:
        """Whether a round may begin in this hour of the day (UTC)."""
        first, end = self.hours_utc
        return first <= hour < end if first < end else hour >= first or hour < end

    @property
    def room_units(self) -> int:
        """What one patient may ever be charged, in billionths of Rényi loss at ``filter_order``."""
        room = filter_room(
            float(self.lifetime_epsilon),
            order=self.filter_order,
            delta=float(self.lifetime_delta),
        )
        return math.floor(Decimal(room) * UNITS)

    @classmethod
    def parse(
        cls,
        *,
        lifetime_epsilon: str,
        lifetime_delta: str,
        filter_order: str,
        declared_patients: int,
        bytes_per_round: int,
    ) -> Policy:
        """The policy that ``init`` writes; the hospital may narrow the file afterwards.

        Raises:
            PolicyRefusal: a value outside its limits.
        """
        return _validated(
            {
                "lifetime_epsilon": lifetime_epsilon,
                "lifetime_delta": _in_full(lifetime_delta),
                "filter_order": int(filter_order) if filter_order.isdecimal() else filter_order,
                "declared_patients": declared_patients,
                "bytes_per_round": bytes_per_round,
                "bytes_per_day": 1000 * bytes_per_round,
                "bytes_in_cap": 256 * 2**20,
                "releases": ("weights", "weights_and_audit"),
                "studies_at_once": STUDIES_AT_ONCE,
                "hours_utc": (0, 24),
                "approvers": APPROVERS,
            }
        )

    @classmethod
    def read(cls, path: Path) -> Policy:
        """Parse the site's policy file.

        Raises:
            PolicyRefusal: not readable, or not a valid policy (the first fault, with its key).
        """
        try:
            fields = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
            raise PolicyRefusal(
                "a policy that cannot be read",
                allowed="the policy.toml that init wrote",
                next="restore it from its backup, or correct its spelling",
            ) from None
        return _validated(fields)

    def write(self, path: Path) -> None:
        """Write the policy durably to a new file, mode 0600."""
        lines = [f"{key} = {_toml(value)}" for key, value in self.model_dump().items()]
        text = (
            "# Limits of this site. Narrow them as you wish; filter_order never changes.\n"
            "# hours_utc = [20, 6]: a round begins at 20:00 or later, and before 6:00.\n"
            "# approvers = 2: a second person signs each yes too; let them in first (add-approver).\n"
        )
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text + "\n".join(lines) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def refuse_study(self, study: Study, *, site: str) -> None:
        """Nothing, if every term of the study lies within this site's limits.

        Raises:
            PolicyRefusal: all that do not, in one answer. StudyRefusal: the site is not invited.
        """
        faults = self.refusals(study, site=site)
        if faults:
            raise PolicyRefusal(
                "; ".join(found for found, _ in faults),
                allowed="; ".join(allowed for _, allowed in faults),
                next="ask the coordinator for another study; policy.toml is this site's own choice",
                code="beyond_policy",
            )

    def refusals(self, study: Study, *, site: str) -> list[tuple[str, str]]:
        """Every reason why this site declines the study, as (found, allowed)."""
        declared = study.site(site).declared_patients
        asked = study.privacy
        checks = (
            (
                Decimal(repr(asked.epsilon)) <= Decimal(self.lifetime_epsilon),
                f"epsilon {asked.epsilon:g}",
                f"a lifetime of {self.lifetime_epsilon}",
            ),
            (
                Decimal(repr(asked.delta)) <= Decimal(self.lifetime_delta),
                f"delta {asked.delta:g}",
                f"a lifetime of {self.lifetime_delta}",
            ),
            (
                declared == self.declared_patients,
                f"{declared} declared patients",
                f"the {self.declared_patients} that this site states",
            ),
            (
                study.outbound.bytes_per_round <= self.bytes_per_round,
                f"{study.outbound.bytes_per_round} bytes a round",
                f"{self.bytes_per_round}",
            ),
            (
                study.study.release in self.releases,
                f"a release of {study.study.release}",
                " or ".join(self.releases) or "none",
            ),
        )
        return [(found, allowed) for within, found, allowed in checks if not within]


def units_up(loss: Decimal | str) -> int:
    """A Rényi loss in whole billionths, rounded up."""
    return math.ceil(Decimal(loss) * UNITS)


def _validated(fields: dict[str, Any]) -> Policy:
    try:
        return Policy.model_validate(fields)
    except ValidationError as error:
        raise _explain(error) from None


def _explain(error: ValidationError) -> PolicyRefusal:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"]) or "the policy as a whole"
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, Policy.model_fields, n=1)
        hint = f"did you mean {near[0]}?" if near else "remove it"
        return PolicyRefusal(f"an unknown key {key}", allowed="the keys of a policy", next=hint)
    if first["type"] == "missing":
        return PolicyRefusal(
            f"no {key}", allowed="every key: nothing has a default", next=f"state {key}"
        )
    found, allowed = fault_in_words(first)
    return PolicyRefusal(f"{key}: {found}", allowed=allowed, next=f"correct {key}")


def _in_full(number: str) -> str:
    """``1e-5`` as ``0.00001``; what is no number stays as it is, for the validator to refuse."""
    try:
        found = Decimal(number)
    except ArithmeticError:
        return number
    return format(found, "f") if found.is_finite() else number


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(part) for part in value) + "]"
    return str(value) if isinstance(value, int) else f'"{value}"'
