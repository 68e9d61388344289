"""Saying yes: what the approver is shown, what changes against earlier yeses, and what is then done.

Everything is checked and shown before anything changes: the study's signature, its epsilon by two
accountants, the room in the lifetime filter, the base weights, the bundle. The site's own copy is on disk
before the yes reserves the whole study in the ledger, and in its place after it; then the bundle is let in.
Where the policy asks for two persons, the first one's yes only waits (``second_person``).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from oncofed_client import approval, second_person
from oncofed_client.courier.jail import jail_level
from oncofed_client.home import Home
from oncofed_client.isolation import NETWORKED, signed_isolation
from oncofed_client.ledger import Ledger
from oncofed_client.two_persons import PERSONS
from oncofed_common.durable import read_regular, write_private
from oncofed_common.errors import StudyRefusal
from oncofed_common.pricing import events_of
from oncofed_common.privacy.accountant import rdp_at
from oncofed_common.privacy.filter import filter_epsilon
from oncofed_common.study import Study, read_study
from oncofed_common.tensors import value_count

Persons = Literal["one", "the first of two", "the second of two"]
"""Whose yes is asked for; of two the second is asked when the first one waits."""


_NEXT: Mapping[Persons, str] = {
    "one": "",
    "the first of two": ": nothing is reserved until the second person has signed too",
    "the second of two": ": the approver has signed these terms; with this yes they are reserved",
}


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A study as the approver sees it, ready to be signed."""

    study: Study
    signed: Mapping[str, str]
    folder: Path
    base: Path
    terms: Mapping[str, Any]
    budget: Mapping[str, Any]
    persons: Persons


def propose(
    home: Home, ledger: Ledger, folder: Path, *, base: Path, networked: bool = False
) -> Proposal:
    """Check a published study and work out what a yes would mean. Nothing changes, but that an approval
    which was reserved and interrupted is finished.

    Args:
        networked: the yes shall also count for a trainer that can reach a network; for real homes.

    Raises:
        StudyRefusal: expired, another coordinator's, understated, without a bundle hash.
        PolicyRefusal: beyond the site's own limits. BudgetRefusal: no room in the lifetime filter.
        PrivacyRefusal: the accountants disagree. ModelRefusal: other base weights, window or tensors.
    """
    approval.finish(home, reserved=ledger.is_standing)
    let_bundles_in(home, ledger)
    study, signed = approval.read_published(folder, home=home, now_s=_now_s(ledger))
    policy, events = home.policy(), events_of(study)
    approval.refuse_mispriced(study)
    policy.refuse_study(study, site=home.site)
    approval.check_model(study)
    approval.check_base(base, study)
    terms = approval.terms(
        study,
        home=home,
        bundle_hash=_bundle_hash(folder),
        epsilon=Decimal(repr(study.privacy.epsilon)),
        filter_order=policy.filter_order,
        filter_rdp=max(_up(rdp_at(event, policy.filter_order)) for event in events),
        isolation=_isolation(home, networked=networked),
        sequence=ledger.next_approval(),
    )
    ledger.refuse_reservation(terms)
    return Proposal(
        study=study,
        signed=signed,
        folder=folder,
        base=base,
        terms=terms,
        budget=ledger.budget(),
        persons=_persons(home, ledger, terms),
    )


def agree(
    home: Home, ledger: Ledger, proposal: Proposal, *, passphrase: bytes
) -> approval.Approved | None:
    """Sign, write the copy, reserve in the ledger, put the copy in place, let the bundle in; in this order:
    a disk that is full costs nothing, and a process that dies costs no more than one command again.

    None: this was the first yes of two, and waits; nothing else was done.
    """
    if proposal.persons == "one":
        signed = approval.sign(proposal.terms, home.approver_key(passphrase))
    else:
        both = second_person.both(home, ledger, proposal.terms, passphrase=passphrase)
        if both is None:
            return None
        signed = both
    with approval.copied(home, proposal.folder, signed, signed=proposal.signed, base=proposal.base):
        ledger.reserve(signed.as_dict())
    second_person.forget(home, signed.study_hash)
    let_bundles_in(home, ledger)
    return approval.read_approved(home, signed.study_hash, now_s=_now_s(ledger))


def let_bundles_in(home: Home, ledger: Ledger) -> None:
    """Tell the courier which bundles may run: those of approvals that stand."""
    hashes = {
        str(approval.kept_approval(home, h).payload["bundle_hash"])
        for h in home.studies()
        if ledger.is_standing(h)
    }
    write_private(home.courier / "approved_bundles.json", json.dumps(sorted(hashes)).encode())


def page(proposal: Proposal, *, home: Home) -> list[tuple[str, str]]:
    """What a yes means, row by row, in the approver's words."""
    study, terms = proposal.study, proposal.terms
    train, site = study.training, study.site(home.site)
    return [
        ("study", study.study.title),
        ("contact", study.study.contact),
        ("ethics", study.study.ethics_reference),
        ("until", study.study.expires.isoformat()),
        ("hash", study.hash),
        ("who takes part", ", ".join(s.name for s in study.sites)),
        ("stated size of this site", f"{site.declared_patients} patients (public, rounded)"),
        (
            "what runs",
            f"rounds: {train.rounds}; steps in each: {train.steps_per_round}, with about "
            f"{train.sampling_rate:.0%} of the patients in a step",
        ),
        ("what leaves", _leaves(study)),
        (
            "reply leaves after",
            f"{study.outbound.reply_after_s} s from the round's beginning, however long training took",
        ),
        (
            "what it costs a patient",
            f"epsilon {study.privacy.epsilon:g} at delta {study.privacy.delta:g}",
        ),
        (
            "its share of the lifetime filter",
            f"{terms['filter_rdp']} at order {terms['filter_order']}; before it "
            f"{proposal.budget['left']} of {proposal.budget['allowed']} left",
        ),
        ("a lifetime, after a yes", _lifetime_words(proposal)),
        ("release", study.study.release.replace("_", " ")),
        ("code", str(terms["wheel_hash"])),
        ("bundle", str(terms["bundle_hash"])),
        ("coordinator", str(terms["coordinator"])),
        ("isolation", _isolation_words(str(terms["isolation"]))),
        ("who says yes", f"{proposal.persons}{_NEXT[proposal.persons]}"),
    ]


def changes(proposal: Proposal, earlier: Study | None) -> list[tuple[str, str, str]]:
    """Settings that differ from the study approved last: key, before, now."""
    if earlier is None:
        return []
    before, now = (
        _flat(earlier.model_dump(mode="json")),
        _flat(proposal.study.model_dump(mode="json")),
    )
    return [
        (key, str(before.get(key, "-")), str(now.get(key, "-")))
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def last_approved(home: Home) -> Study | None:
    """The study that was approved most recently, if any."""
    found = [
        (int(approval.kept_approval(home, study_hash).payload["sequence"]), study_hash)
        for study_hash in home.studies()
    ]
    return read_study(home.study_folder(max(found)[1]) / "study.toml") if found else None


def _persons(home: Home, ledger: Ledger, terms: Mapping[str, Any]) -> Persons:
    """Raises PolicyRefusal where the policy asks for a second person whom nobody has let in."""
    if home.policy().approvers < PERSONS:
        return "one"
    ledger.second_approver()
    return "the first of two" if second_person.waiting(home, terms) is None else "the second of two"


def _isolation(home: Home, *, networked: bool) -> str:
    signed = signed_isolation(virtual=home.virtual, networked=networked)
    return signed if home.virtual else f"{signed}+{jail_level()}"


def _isolation_words(signed: str) -> str:
    if not signed.startswith(NETWORKED):
        return signed
    return f"{signed}: NONE IS ASKED FOR. The trainer has the scans and may reach a network"


def _lifetime_words(proposal: Proposal) -> str:
    budget, terms = proposal.budget, proposal.terms
    spent = Decimal(budget["allowed"]) - Decimal(budget["left"]) + Decimal(terms["filter_rdp"])
    delta = budget["lifetime_delta"]
    after = filter_epsilon(float(spent), order=budget["filter_order"], delta=float(delta))
    return (
        f"epsilon {after:.4f} of {budget['lifetime_epsilon']} at delta {delta}, for the most-charged "
        "patient when all open studies have drawn everything"
    )


def _now_s(ledger: Ledger) -> int:
    return int(max(time.time(), ledger.latest_s()))


def _leaves(study: Study) -> str:
    count = value_count(study.schema_terms)
    return (
        f"{count} noised numbers in {len(study.schema_terms)} tensors a round, "
        f"{study.outbound.bytes_per_round} bytes at most; {_metrics(study)}"
    )


def _metrics(study: Study) -> str:
    if not study.outbound.metrics:
        return "no metrics"
    return "noised mean losses of those held out: " + ", ".join(study.outbound.metrics)


def _bundle_hash(folder: Path) -> str:
    try:
        fields = json.loads(read_regular(folder / "bundle.json"))
        found = fields["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        found = ""
    if not isinstance(found, str) or len(found) != 64 or set(found) - set("0123456789abcdef"):
        raise StudyRefusal(
            "a study without the hash of its app bundle",
            allowed="a published folder with bundle.json",
            next="get the whole folder from the coordinator",
            code="no_bundle",
        )
    return found


def _up(value: float) -> Decimal:
    """Six decimals, never less."""
    return (Decimal(value) + Decimal("1e-6")).quantize(Decimal("0.000001"))


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in fields.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
