"""From a study file to a published study: everything that can be wrong is found before anybody approves.

Publishing checks the study against the base weights (hash, names, shapes, finite first values), the
roster (every site enrolled, under the key that the study names, real or virtual alike), the price
(epsilon recomputed by the loss distribution) and the sum (no overflow, the update fits its byte cap);
then the study key signs. A published study never changes: its folder's name is its hash.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, time
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from oncofed_common.durable import new_folder, read_object
from oncofed_common.errors import StudyRefusal
from oncofed_common.identity import canonical
from oncofed_common.pricing import event_of, events_of
from oncofed_common.privacy.accountant import pld_epsilon, refuse_understated
from oncofed_common.study import Study, read_study, sign_study, verify_study
from oncofed_common.tensors import (
    pack_tensors,
    reply_bytes,
    unpack_tensors,
)
from oncofed_server.aggregate import WEIGHT_CAP
from oncofed_server.base import first_values
from oncofed_server.bundle import bundle_hash, thin_bundle
from oncofed_server.home import DAY_S, load_study_key, renew_task_certificate
from oncofed_server.roster import Roster, read_roster


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published study: its file byte for byte, its signature, and the first values it starts from."""

    study: Study
    toml: bytes
    sig: bytes
    first: dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a study costs every patient of every site, whoever is drawn."""

    epsilon_stated: float
    epsilon_pld: float
    delta: float
    steps: int


def publish(
    home: Path, study_path: Path, *, base: Path, passphrase: bytes | None, now_s: int
) -> tuple[Study, Cost]:
    """Check and sign the study in ``study_path``; publishing it again changes nothing.

    Args:
        base: the base weights that the study names.

    Raises:
        StudyRefusal, ModelRefusal, PrivacyRefusal: what is wrong with the study.
        IdentityRefusal: the study key. SystemRefusal: not a home, or the disk.
    """
    study = read_study(study_path)
    refuse_unpublishable(study, read_roster(home), now_s=now_s)
    cost = price(study)
    first = first_values(base, sha256=study.model.base_sha256, schema=study.schema_terms)
    key = load_study_key(home, passphrase=passphrase)
    renew_task_certificate(home, key, until_s=_last_second(study), now_s=now_s)
    folder = home / "studies" / study.hash
    if not folder.exists():
        with new_folder(folder) as temporary:
            (temporary / "study.toml").write_bytes(study_path.read_bytes())
            (temporary / "study.sig").write_bytes(canonical(sign_study(study, key)))
            (temporary / "first.safetensors").write_bytes(pack_tensors(first))
            bundle = {"sha256": bundle_hash(thin_bundle())}
            (temporary / "bundle.json").write_bytes(canonical(bundle))
    return load_published(home, study.hash).study, cost


def refuse_unpublishable(study: Study, roster: Roster, *, now_s: int) -> None:
    """Refuse what no coordinator of this roster may publish today, whatever it costs.

    Raises:
        StudyRefusal: expired, without a slot, too much for its integers, or sites that are not
            enrolled as it names them, revoked, or of both kinds; code ``one_slot``, a deadline before a
            second reply could come.
    """
    study.check_not_expired(now_s)
    study.check_slot()
    _refuse_one_slot(study)
    refuse_overflow(study)
    _refuse_strangers(study, roster)


def _refuse_one_slot(study: Study) -> None:
    """A reply that misses its slot leaves at the end of the next one, and has to come in time."""
    slot_s, deadline_s = study.outbound.reply_after_s, study.aggregation.round_deadline_s
    if 2 * slot_s >= deadline_s:
        raise StudyRefusal(
            f"outbound.reply_after_s of {slot_s}, twice of it not before the deadline",
            allowed=f"less than half of aggregation.round_deadline_s, {deadline_s}: a site that is late "
            "for one slot replies after the next",
            next="state a longer deadline, or a shorter slot, and publish the study with it",
            code="one_slot",
        )


def load_published(home: Path, study_hash: str) -> Published:
    """A study that this home has published, checked again.

    Raises:
        StudyRefusal: code ``not_published``; or its files do not hold any more.
    """
    folder = home / "studies" / study_hash
    if not folder.is_dir():
        known = sorted(path.name for path in (home / "studies").glob("?" * 64))
        raise StudyRefusal(
            "a study that this home has not published",
            allowed=", ".join(known) or "no study yet",
            next="run oncofed-coordinator publish first",
            code="not_published",
        )
    study = read_study(folder / "study.toml")
    signed = read_object(folder / "study.sig", what="a study signature")
    key = verify_study(study, signed, coordinator=None)
    if key.hex != read_roster(home).coordinator.study_key or study.hash != study_hash:
        raise StudyRefusal(
            "a published study that is not this coordinator's, or has been changed",
            allowed="the study as it was published",
            next="restore the studies folder from a backup",
            code="wrong_study",
        )
    first = unpack_tensors(
        (folder / "first.safetensors").read_bytes(), schema=study.schema_terms, dtype="float32"
    )
    return Published(
        study=study,
        toml=(folder / "study.toml").read_bytes(),
        sig=(folder / "study.sig").read_bytes(),
        first=first,
    )


def resolve_study(home: Path, prefix: str) -> str:
    """The hash of the one published study that begins with ``prefix``.

    Raises:
        StudyRefusal: code ``not_published``; none, or more than one.
    """
    known = sorted(path.name for path in (home / "studies").glob("?" * 64))
    found = [name for name in known if prefix and name.startswith(prefix)]
    if len(found) == 1:
        return found[0]
    raise StudyRefusal(
        "a study that this home has not published" if not found else "the start of two studies",
        allowed=", ".join(known) or "no study yet",
        next="give the study's hash, or enough of it",
        code="not_published",
    )


def price(study: Study) -> Cost:
    """What ``study`` costs a patient, trained on or held out, recomputed.

    Raises:
        PrivacyRefusal: more than it states (code ``understated``), or nothing that can be stated.
    """
    epsilon, delta = study.privacy.epsilon, study.privacy.delta
    for event in events_of(study):
        refuse_understated(epsilon, event=event, delta=delta)
    return Cost(
        epsilon_stated=epsilon,
        epsilon_pld=max(pld_epsilon(event, delta) for event in events_of(study)),
        delta=delta,
        steps=event_of(study).steps,
    )


def refuse_overflow(study: Study) -> None:
    """Nothing, if a sum over all sites cannot wrap and an update fits its byte cap.

    Raises:
        StudyRefusal: codes ``weights``, ``byte_cap``.
    """
    if sum(site.weight for site in study.sites) > WEIGHT_CAP:
        raise StudyRefusal(
            "weights of sites that sum to more than 2^32",
            allowed="a sum of sites[].weight of at most 2^32",
            next="divide all weights by a common factor",
            code="weights",
        )
    least = reply_bytes(study.reply_terms)
    if study.outbound.bytes_per_round < least:
        raise StudyRefusal(
            f"outbound.bytes_per_round of {study.outbound.bytes_per_round}",
            allowed=f"at least {least}: one update of this study must fit",
            next="raise the cap, or train fewer tensors",
            code="byte_cap",
        )


def _refuse_strangers(study: Study, roster: Roster) -> None:
    for site in study.sites:
        member = roster.invited(site.name)
        if member.fingerprint != site.fingerprint:
            raise StudyRefusal(
                f"site {site.name} under another fingerprint than it enrolled with",
                allowed=member.fingerprint,
                next="copy the fingerprint from oncofed-coordinator status",
                code="wrong_fingerprint",
            )
    kinds = {member.virtual for member in roster.sites if member.site in _names(study)}
    if len(kinds) > 1 or (study.virtual is not None and kinds != {1}):
        raise StudyRefusal(
            "real hospitals in a seeded study, or beside virtual ones",
            allowed="a study among virtual homes only, or among real ones without a seed",
            next="remove [virtual], or invite virtual homes only",
            code="virtual",
        )


def _names(study: Study) -> set[str]:
    return {site.name for site in study.sites}


def _last_second(study: Study) -> int:
    """The end of the day after the study's last, so that its last round can still be closed."""
    start = datetime.combine(study.study.expires, time(), tzinfo=UTC)
    return int(start.timestamp()) + 2 * DAY_S
