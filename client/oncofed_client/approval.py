"""Approval: the hospital's signed yes to one study, run by one code, once.

An approval is a payload under the approver's key that names everything it says yes to. The trainer
works from its own copy of study, signature and approval, and a task can only say "round r of study h".
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from oncofed_client.codehash import code_hash
from oncofed_client.home import Home
from oncofed_common.durable import (
    disk_refusal,
    read_object,
    read_regular,
    sync_folder,
    write_private,
)
from oncofed_common.errors import ModelRefusal, PolicyRefusal, StudyRefusal
from oncofed_common.identity import PublicKey, SigningKey, canonical, digest
from oncofed_common.model.presets import preset
from oncofed_common.model.weights import card
from oncofed_common.pricing import events_of
from oncofed_common.privacy.accountant import refuse_understated
from oncofed_common.privacy.prv import checked_epsilon
from oncofed_common.study import Study, read_study, verify_study

DRAFT = ".draft-"
WAITING = ".waiting-"
FIELDS: Mapping[str, type] = {
    "study_hash": str,
    "wheel_hash": str,
    "bundle_hash": str,
    "coordinator": str,
    "site": str,
    "runs": int,
    "rounds": int,
    "epsilon": str,
    "delta": str,
    "filter_order": str,
    "filter_rdp": str,
    "bytes_per_round": int,
    "isolation": str,
    "release": str,
    "expires": str,
    "sequence": int,
    "approved_at_s": int,
}


@dataclass(frozen=True, kw_only=True)
class Approval:
    """One signed yes. ``payload`` holds exactly the fields of ``FIELDS``; ``second`` is the second person's
    signature over the same bytes, empty where there is none. Whether it holds, and is needed, the ledger
    says (``two_persons``)."""

    payload: Mapping[str, Any]
    signature: str
    second: str = ""

    @property
    def study_hash(self) -> str:
        return str(self.payload["study_hash"])

    def as_dict(self) -> dict[str, Any]:
        fields = {"approval": dict(self.payload), "signature": self.signature}
        return fields | ({"second": self.second} if self.second else {})

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], *, approver: PublicKey) -> Approval:
        """Parse and verify.

        Raises:
            PolicyRefusal: code ``not_approved``. IdentityRefusal: ``bad_signature``.
        """
        payload, signature = fields.get("approval"), fields.get("signature")
        second = fields.get("second", "")
        well_formed = (
            isinstance(payload, dict)
            and isinstance(signature, str)
            and set(payload) == set(FIELDS)
            and all(type(payload[name]) is kind for name, kind in FIELDS.items())
        )
        texts = isinstance(signature, str) and isinstance(second, str)
        if not well_formed or not isinstance(payload, dict) or not texts:
            raise _not_approved("an approval with other fields")
        approver.verify("approval", payload, str(signature))
        return cls(payload=payload, signature=str(signature), second=str(second))


@dataclass(frozen=True, kw_only=True)
class Approved:
    """A study as this site approved it."""

    study: Study
    approval: Approval
    folder: Path

    @property
    def study_hash(self) -> str:
        return self.approval.study_hash

    @property
    def isolation(self) -> str:
        """What the approver signed of the trainer's isolation."""
        return str(self.approval.payload["isolation"])

    @property
    def base_path(self) -> Path:
        return self.folder / "base.safetensors"


def terms(
    study: Study,
    *,
    home: Home,
    bundle_hash: str,
    epsilon: Decimal,
    filter_order: int,
    filter_rdp: Decimal,
    isolation: str,
    sequence: int,
) -> dict[str, Any]:
    """What the approver is asked to sign."""
    return {
        "study_hash": study.hash,
        "wheel_hash": code_hash(),
        "bundle_hash": bundle_hash,
        "coordinator": home.coordinator().fingerprint,
        "site": home.site,
        "runs": 1,
        "rounds": study.training.rounds,
        "epsilon": str(epsilon),
        "delta": _plain(study.privacy.delta),
        "filter_order": str(filter_order),
        "filter_rdp": str(filter_rdp),
        "bytes_per_round": study.outbound.bytes_per_round,
        "isolation": isolation,
        "release": study.study.release,
        "expires": study.study.expires.isoformat(),
        "sequence": sequence,
        "approved_at_s": int(time.time()),
    }


def refuse_mispriced(study: Study) -> None:
    """Nothing, if the study costs no more than it states, by two accountants that agree.

    Raises:
        PrivacyRefusal: codes ``understated``, ``accountants``.
    """
    for event in events_of(study):
        refuse_understated(study.privacy.epsilon, event=event, delta=study.privacy.delta)
        checked_epsilon(event, study.privacy.delta)


def sign(payload: Mapping[str, Any], key: SigningKey) -> Approval:
    """The approver's yes."""
    return Approval(payload=payload, signature=key.sign("approval", payload))


def read_published(folder: Path, *, home: Home, now_s: int) -> tuple[Study, dict[str, str]]:
    """A study and its signature as the coordinator published them, checked for this site.

    Raises:
        StudyRefusal: expired, without a slot, of another coordinator, or this site is not in it under
            its key.
    """
    study = read_study(folder / "study.toml")
    try:
        signed = json.loads(read_regular(folder / "study.sig"))
    except (OSError, ValueError, RecursionError):
        signed = None
    if not isinstance(signed, dict):
        raise StudyRefusal(
            "a study without a readable study.sig",
            allowed="the folder that the coordinator published",
            next="get study.toml and study.sig together from the coordinator",
            code="unsigned",
        )
    verify_study(study, signed, coordinator=home.coordinator().fingerprint)
    study.check_not_expired(now_s)
    study.check_slot()
    if study.site(home.site).fingerprint != home.approver.fingerprint:
        raise StudyRefusal(
            "a study that names another key for this site",
            allowed="this site's approver fingerprint",
            next="tell the coordinator this site's fingerprint again",
            code="wrong_site",
        )
    if study.virtual is not None and not home.virtual:
        raise StudyRefusal(
            "a study with a seed at a real site",
            allowed="seeds in homes made by init --virtual only",
            next="ask the coordinator for the study without [virtual]",
            code="seed_forbidden",
        )
    return study, signed


@contextmanager
def copied(
    home: Home,
    study_folder: Path,
    approval: Approval,
    *,
    signed: Mapping[str, str],
    base: Path,
) -> Iterator[None]:
    """The site's own copy of study, signature, base weights and approval: durable before the block
    begins, in its place after it. If the block fails there is no copy; if the process dies in it,
    ``finish`` decides by the ledger.

    Raises:
        SystemRefusal: the disk does not take the copy.
    """
    target = home.study_folder(approval.study_hash)
    draft = target.with_name(f"{DRAFT}{approval.study_hash}")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(mode=0o700)
        write_private(draft / "study.toml", (study_folder / "study.toml").read_bytes())
        write_private(draft / "study.sig", canonical(signed))
        write_private(draft / "base.safetensors", base.read_bytes())
        write_private(draft / "approval.json", canonical(approval.as_dict()))
        sync_folder(draft.parent)
        yield
        draft.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        raise disk_refusal(error) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def finish(home: Home, *, reserved: Callable[[str], bool]) -> None:
    """Put a copy in its place whose approval stands in the ledger, and throw away any other draft: what a
    process that died within ``copied`` has left.

    Args:
        reserved: whether the ledger holds an approval of the study with this hash that stands.
    """
    for waiting in home.study_folder("").glob(f"{WAITING}*"):
        if reserved(waiting.name.removeprefix(WAITING)):
            waiting.unlink(missing_ok=True)
    for draft in home.study_folder("").glob(f"{DRAFT}*"):
        study_hash = draft.name.removeprefix(DRAFT)
        target = home.study_folder(study_hash)
        if reserved(study_hash) and not target.exists():
            draft.rename(target)
            sync_folder(target.parent)
        else:
            shutil.rmtree(draft)


def kept_approval(home: Home, study_hash: str) -> Approval:
    """The approval of a study as it was signed here, whether or not it still stands.

    Raises:
        SystemRefusal: ``unreadable``. PolicyRefusal: ``not_approved``. IdentityRefusal: ``bad_signature``.
    """
    kept = home.study_folder(study_hash) / "approval.json"
    return Approval.from_dict(read_object(kept, what="an approval"), approver=home.approver)


def read_approved(home: Home, study_hash: str, *, now_s: int) -> Approved:
    """The site's own copy of an approved study, with every check made again.

    Raises:
        PolicyRefusal: ``not_approved`` (never approved, or by another code), ``withdrawn``.
        StudyRefusal: expired. ModelRefusal: the base weights are not those of the study.
    """
    folder = home.study_folder(study_hash)
    if not (folder / "approval.json").exists():
        raise _not_approved("a study that this site has not approved")
    approval = kept_approval(home, study_hash)
    study, _ = read_published(folder, home=home, now_s=now_s)
    if study.hash != study_hash or approval.study_hash != study_hash:
        raise _not_approved("an approval of another study")
    if approval.payload["wheel_hash"] != code_hash():
        raise _not_approved("an approval of another version of the code")
    check_base((folder / "base.safetensors"), study)
    return Approved(study=study, approval=approval, folder=folder)


def check_model(study: Study) -> None:
    """Refuse a study that states another window than its preset has, or adapters that it has not.

    Raises:
        ModelRefusal: codes ``unknown_preset``, ``wrong_window``, ``unknown_adapters``.
    """
    shape = preset(study.model.preset)
    stated = (study.cohort.crop_voxels, study.cohort.spacing_mm)
    if stated != (shape.size, shape.spacing_mm):
        raise ModelRefusal(
            f"a window of {stated[0]} voxels of {stated[1]:g} mm",
            allowed=f"{shape.size} voxels of {shape.spacing_mm:g} mm, those of preset {shape.name}",
            next="ask the coordinator to draft the study again",
            code="wrong_window",
        )
    sets = card(shape)["adapters"]
    if study.model.adapters not in sets:
        raise ModelRefusal(
            "adapters of an unknown name",
            allowed=", ".join(sorted(sets)),
            next="ask the coordinator to draft the study again",
            code="unknown_adapters",
        )


def check_base(path: Path, study: Study) -> None:
    """Refuse base weights whose SHA-256 is not the study's.

    Raises:
        ModelRefusal: code ``wrong_base``.
    """
    try:
        found = digest(read_regular(path))
    except OSError:
        found = "no readable file"
    if found != study.model.base_sha256:
        raise ModelRefusal(
            f"base weights {found[:16]}",
            allowed=f"base weights {study.model.base_sha256[:16]}",
            next="get the base weights that the study names",
            code="wrong_base",
        )


def _plain(value: float) -> str:
    return format(Decimal(repr(value)), "f")


def _not_approved(found: str) -> PolicyRefusal:
    return PolicyRefusal(
        found,
        allowed="a study under a current approval of this site's approver, for this code",
        next="run oncofed-site approve",
        code="not_approved",
    )
