"""What a ledger refuses, as plain checks on what its rows add up to: nothing here writes.

What is refused depends on study, policy and clock. Who has no room left, or withdrew, is no reason to
refuse: such a patient leaves the sampling frame, and nobody outside can tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from oncofed_client.chain import behind
from oncofed_client.charges import Charges, StudyAccount
from oncofed_client.policy import UNITS, Policy
from oncofed_common.errors import (
    BudgetRefusal,
    IdentityRefusal,
    PolicyRefusal,
    SystemRefusal,
    WireRefusal,
)

DAY_S = 86_400


def check_reservation(
    charges: Charges, terms: Mapping[str, Any], *, policy: Policy, site: str, today: str
) -> None:
    """Nothing, if a study with these terms (of an approval) fits beside all that is reserved.

    Raises:
        BudgetRefusal: no room, or ``ledger_behind``. PolicyRefusal: ``already_approved``,
            ``approval_order``, ``filter_order``, ``studies_at_once``.
    """
    refuse_alarm(charges)
    earlier = charges.studies.get(str(terms["study_hash"]))
    if earlier is not None:
        stands = earlier.state == "open"
        raise PolicyRefusal(
            "a study that this site has approved already"
            if stands
            else f"a study that was approved here and is {earlier.state}",
            allowed="one approval of each study",
            next="nothing more is needed: its approval stands"
            if stands
            else "ask the coordinator for a new study",
            code="already_approved",
        )
    if terms["site"] != site or terms["sequence"] != charges.approvals + 1:
        raise _not_allowed(
            "an approval out of its order, or of another site",
            allowed=f"approval number {charges.approvals + 1} of this site",
            code="approval_order",
        )
    if str(terms["filter_order"]) != str(policy.filter_order):
        raise _not_allowed(
            f"a charge at order {terms['filter_order']}",
            allowed=f"a charge at order {policy.filter_order}",
            code="filter_order",
        )
    open_now = sum(study.is_open(today=today) for study in charges.studies.values())
    if open_now >= policy.studies_at_once:
        raise _beyond(
            f"a study beside {open_now} that are open",
            allowed=f"{policy.studies_at_once} at once",
            code="studies_at_once",
        )
    charge = _charge_of(terms)
    room = policy.room_units - charges.reserved(today=today)
    if charge > room:
        raise no_budget(
            f"a study that costs a Rényi loss of {loss(charge)} at order {policy.filter_order}, "
            f"with room for {loss(max(room, 0))}"
        )


def check_draw(
    charges: Charges,
    study: StudyAccount,
    round: int,
    *,
    policy: Policy,
    today: str,
    now_s: float,
) -> None:
    """Nothing, if one more round of the study lies within its reservation and the day's bytes.

    Raises:
        BudgetRefusal: beyond the reservation. PolicyRefusal: ``bytes_per_day``, ``hours``.
    """
    if not study.is_open(today=today) or not 1 <= round <= study.rounds:
        raise no_budget(
            f"round {round} of a study with {study.rounds} rounds reserved until "
            f"{study.terms['expires']}"
        )
    hour = int(now_s % DAY_S) // 3600
    if not policy.may_begin(hour):
        raise _beyond(
            f"a round in hour {hour} of the day (UTC)",
            allowed="from {} to {}".format(*policy.hours_utc),
            code="hours",
        )
    sent = charges.bytes_since(now_s - DAY_S)
    coming = min(int(study.terms["bytes_per_round"]), policy.bytes_per_round)
    if sent + coming > policy.bytes_per_day:
        raise _beyond(
            f"{sent} bytes in the last day and {coming} more to come",
            allowed=f"{policy.bytes_per_day} bytes a day",
            code="bytes_per_day",
        )


def frame_of(
    charges: Charges, study: StudyAccount, patients: Sequence[str], *, policy: Policy
) -> list[str]:
    """Those who are not excluded and have room for one round more, in the order given."""
    gone = charges.excluded | set(
        charges.exhausted(patients, charge=study.round_units, room=policy.room_units)
    )
    return [patient for patient in patients if patient not in gone]


def standing(charges: Charges, study_hash: str) -> StudyAccount:
    """The account of a study whose approval stands.

    Raises:
        PolicyRefusal: codes ``not_approved``, ``withdrawn``.
    """
    study = known(charges, study_hash)
    if study.state != "open":
        raise _not_allowed(
            f"a study that is {study.state}",
            allowed="a study whose approval stands",
            code="withdrawn",
        )
    return study


def known(charges: Charges, study_hash: str) -> StudyAccount:
    """The account of a study that was ever approved.

    Raises:
        PolicyRefusal: code ``not_approved``.
    """
    found = charges.studies.get(study_hash)
    if found is None:
        raise _not_allowed(
            "a study for which nothing was reserved",
            allowed="a study under a current approval",
            code="not_approved",
        )
    return found


def named(charges: Charges, prefix: str) -> str:
    """The hash of the one study approved here that begins with ``prefix``.

    Raises:
        PolicyRefusal: code ``unknown_study``; none, or more than one.
    """
    found = [study for study in charges.studies if prefix and study.startswith(prefix)]
    if len(found) == 1:
        return found[0]
    raise PolicyRefusal(
        "the start of two studies" if found else "a study that was never approved here",
        allowed=", ".join(charges.studies) or "no study yet",
        next="give the study's hash, or enough of it: oncofed-site budget lists them",
        code="unknown_study",
    )


def refuse_old(study: StudyAccount, *, run: str, round: int, task_digest: str) -> None:
    """Nothing, for the next round of the study's one run, or for a draw's own task again.

    Raises:
        WireRefusal: codes ``task_conflict``, ``wrong_run``, ``wrong_round``.
    """
    drawn = study.draws.get(round)
    if drawn is not None:
        if drawn.task_digest != task_digest:
            raise conflict("a second, different task for one round", code="task_conflict")
        return
    if any(other.run != run for other in study.draws.values()):
        raise conflict("a task of a second run", code="wrong_run")
    if study.draws and round < max(study.draws):
        raise conflict("a round before one that was drawn", code="wrong_round")


def refuse_lost_reply(study: StudyAccount, round: int) -> None:
    """Nothing, for a round that was not answered: one draw pays for one result.

    Raises:
        SystemRefusal: code ``reply_lost``.
    """
    if round in study.replies:
        raise SystemRefusal(
            "a round that was answered, without its stored reply",
            allowed="the stored reply, byte for byte",
            next="restore the trainer's spool; a second result would be unpaid",
            code="reply_lost",
        )


def refuse_distrusted(charges: Charges, fingerprint: str) -> None:
    """Nothing, for a coordinator's key that is not distrusted.

    Raises:
        IdentityRefusal: code ``bad_certificate``.
    """
    if fingerprint in charges.distrusted:
        raise IdentityRefusal(
            "a coordinator's key that this site distrusts",
            allowed="a coordinator whose key is trusted",
            next="agree on a new key, and join again with its fingerprint",
            code="bad_certificate",
        )


def refuse_lower_epoch(charges: Charges, revocation_epoch: int) -> None:
    """Nothing, for a revocation epoch as high as any that was seen.

    Raises:
        IdentityRefusal: code ``bad_certificate``.
    """
    if revocation_epoch < charges.epoch:
        raise IdentityRefusal(
            f"a revocation epoch of {revocation_epoch}",
            allowed=f"{charges.epoch} or later: epochs never go down",
            next="ask the coordinator for a task under its current keys",
            code="bad_certificate",
        )


def refuse_alarm(charges: Charges) -> None:
    """Nothing, unless somebody showed a head of ours that this ledger does not know.

    Raises:
        BudgetRefusal: code ``ledger_behind``.
    """
    if charges.alarm:
        raise behind("a ledger that is behind a head it once had")


def loss(units: int) -> Decimal:
    """Rényi loss from billionths."""
    return Decimal(units) / UNITS


def no_budget(found: str) -> BudgetRefusal:
    """The refusal of a charge for which nothing is reserved or nothing is left."""
    return BudgetRefusal(
        found,
        allowed="what the approval reserved, within the lifetime of this site's policy",
        next="see oncofed-site budget; another study needs its own approval",
    )


def conflict(found: str, *, code: str) -> WireRefusal:
    """The refusal of a task or reply beside one that stands."""
    return WireRefusal(
        found,
        allowed="one task for each study and round, in the order of one run",
        next="send the task that was persisted; doing it again is a new study",
        code=code,
    )


def _charge_of(terms: Mapping[str, Any]) -> int:
    try:
        charge = StudyAccount(terms=terms).reserved_units
    except (ArithmeticError, ValueError):
        charge = 0
    if charge < 1:
        raise _not_allowed(
            "an approval without a charge",
            allowed="one round or more, and a Rényi loss above zero",
            code="no_charge",
        )
    return charge


def _not_allowed(found: str, *, allowed: str, code: str) -> PolicyRefusal:
    return PolicyRefusal(found, allowed=allowed, next="run oncofed-site approve", code=code)


def _beyond(found: str, *, allowed: str, code: str) -> PolicyRefusal:
    """A limit of the site's own policy that stands in the way for now."""
    return PolicyRefusal(found, allowed=allowed, next="wait, or change policy.toml", code=code)
