"""Who is enrolled: the roster of a coordinator's home, as one strict JSON file.

Names and keys are unique in it, whatever they are used for: two sites of one key could each count
twice, and a trainer key that is also somebody's approver key could certify itself.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from oncofed_common.address import is_callable
from oncofed_common.durable import locked, read_object, write_atomic
from oncofed_common.errors import IdentityRefusal, StudyRefusal, SystemRefusal
from oncofed_common.identity import Certificate, PublicKey, canonical
from oncofed_common.wire import Count, Hex64, Name


def _sites_can_call(address: str) -> str:
    if not is_callable(address):
        raise ValueError("an address that no site can call")
    return address


Address = Annotated[str, AfterValidator(_sites_can_call)]
"""Host and port at which sites reach the coordinator."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Coordinator(_Strict):
    """The coordinator's public keys."""

    name: Name
    address: Address
    study_key: Hex64
    task_certificate: dict[str, Any]


class Member(_Strict):
    """An enrolled site: what everybody may know of it, and its node key, which stays at home."""

    site: Name
    approver_key: Hex64
    trainer_certificate: dict[str, Any]
    node_key: Annotated[str, Field(max_length=2000)]
    declared_patients: Annotated[int, Field(ge=1, lt=2**53)]
    virtual: Literal[0, 1]
    enrolled_s: Count
    revoked: Literal[0, 1]

    @property
    def fingerprint(self) -> str:
        return PublicKey(self.approver_key).fingerprint

    @property
    def trainer(self) -> PublicKey:
        return PublicKey(Certificate.from_dict(self.trainer_certificate).subject)


class Roster(_Strict):
    """Who is enrolled. Names and keys are unique, whatever they are used for."""

    coordinator: Coordinator
    revocation_epoch: Count
    sites: tuple[Member, ...]

    @model_validator(mode="after")
    def _one_holder_a_key(self) -> Roster:
        names = [member.site for member in self.sites]
        keys = [key for m in self.sites for key in (m.approver_key, m.trainer.hex, m.node_key)]
        if len(set(names)) != len(names) or len(set(keys)) != len(keys):
            raise ValueError("two sites of one name or key")
        return self

    def member(self, site: str) -> Member | None:
        """The member called ``site``, revoked or not."""
        return next((member for member in self.sites if member.site == site), None)

    def invited(self, site: str) -> Member:
        """The member called ``site``, if a study may invite it.

        Raises:
            StudyRefusal: codes ``unknown_site``, ``revoked_site``.
        """
        member = self.member(site)
        if member is not None and not member.revoked:
            return member
        raise StudyRefusal(
            f"site {site}, which is not enrolled" if member is None else f"site {site}, revoked",
            allowed=", ".join(m.site for m in self.sites if not m.revoked) or "no site yet",
            next="enrol the site first, or leave it out"
            if member is None
            else "leave it out; a revoked site comes back only under a new name",
            code="unknown_site" if member is None else "revoked_site",
        )

    def task_key(self, *, now_s: int) -> PublicKey:
        """The task key that the study key certifies at ``now_s``.

        Raises:
            IdentityRefusal: the certificate is not valid then.
        """
        certificate = Certificate.from_dict(self.coordinator.task_certificate)
        issuer = PublicKey(self.coordinator.study_key)
        return certificate.check(issuer=issuer, purpose="task", now_s=now_s)


def read_roster(home: Path) -> Roster:
    """The roster of a home.

    Raises:
        SystemRefusal: code ``no_home`` or ``bad_roster``.
    """
    if not (home / "roster.json").is_file():
        raise SystemRefusal(
            "a folder that is not a coordinator's home",
            allowed="a folder made by oncofed-coordinator init",
            next="check --home, or run oncofed-coordinator init",
            code="no_home",
        )
    return parse_roster(read_object(home / "roster.json", what="a roster"))


def parse_roster(fields: dict[str, Any]) -> Roster:
    """A roster from its JSON.

    Raises:
        SystemRefusal: code ``bad_roster``.
    """
    try:
        return Roster.model_validate(fields | {"sites": tuple(fields.get("sites", ()))})
    except (ValidationError, IdentityRefusal, TypeError):
        raise SystemRefusal(
            "a roster with unknown or malformed fields, or two sites of one name or key",
            allowed="the roster as enrol and revoke write it",
            next="restore roster.json from a backup",
            code="bad_roster",
        ) from None


def write_roster(home: Path, roster: Roster) -> None:
    """Replace the roster; the caller holds ``roster_lock``."""
    write_atomic(home / "roster.json", canonical(roster.model_dump(mode="json")))


def roster_lock(home: Path) -> AbstractContextManager[None]:
    """Held while the roster is read, changed and written."""
    return locked(home / "roster.lock", wait=True, busy="another change of the roster")
