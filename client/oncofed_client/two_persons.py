"""When is a yes the yes of two persons? Plain checks on what a ledger's rows add up to: nothing here writes.

Where the policy says ``approvers = 2``, an approval counts only with two signatures over the very same bytes:
that of the approver, and that of the second approver, whose key the approver has put into the ledger
(a row ``approver``, signed by both). The latest such row holds. What takes back needs the approver alone.

Two keys under two passphrases are what can be checked; that two persons hold them is for the hospital to see
to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oncofed_client.charges import Charges
from oncofed_client.policy import Policy
from oncofed_common.errors import PolicyRefusal
from oncofed_common.identity import PublicKey

PERSONS = 2


def seconded(
    charges: Charges, approval: Mapping[str, Any], *, policy: Policy, approver: PublicKey
) -> dict[str, str]:
    """What the second approver adds to an approval's row (field ``second``); nothing, where one person is
    enough.

    Args:
        approval: objects ``approval`` and ``signature``, and perhaps ``second``; the first signature holds.

    Raises:
        PolicyRefusal: codes ``no_second_approver``, ``same_person``, ``second_missing``.
        IdentityRefusal: code ``bad_signature``.
    """
    if policy.approvers < PERSONS:
        return {}
    key = second_key(charges)
    refuse_same(key, approver)
    second = approval.get("second")
    if not isinstance(second, str):
        raise second_missing("an approval that one person signed")
    key.verify("approval", approval["approval"], second)
    return {"second": second}


def second_key(charges: Charges) -> PublicKey:
    """The second approver's key.

    Raises:
        PolicyRefusal: code ``no_second_approver``.
    """
    if not charges.second_key:
        raise PolicyRefusal(
            "a policy that asks for two approvers, at a site that has one",
            allowed="a second approver, whom the first has let in",
            next="run oncofed-site add-approver, with the second person beside you",
            code="no_second_approver",
        )
    return PublicKey(charges.second_key)


def refuse_same(key: PublicKey, approver: PublicKey) -> None:
    """Nothing, for a key that is not the approver's own.

    Raises:
        PolicyRefusal: code ``same_person``.
    """
    if key == approver:
        raise same_person("a second yes under the key of the first")


def refuse_alone(charges: Charges, terms: Mapping[str, Any], *, policy: Policy) -> None:
    """Nothing, if these very terms are those that the ledger reserved, signed by as many persons as the
    policy demands today.

    Raises:
        PolicyRefusal: code ``not_approved``.
    """
    study = charges.studies.get(str(terms["study_hash"]))
    if study is None or dict(study.terms) != dict(terms):
        raise PolicyRefusal(
            "an approval that was signed, but is not the one that the ledger reserved",
            allowed="the approval whose terms audit shows",
            next="find out who put another approval.json into the study's folder, and restore the right one",
            code="not_approved",
        )
    if policy.approvers >= PERSONS > study.signers:
        raise PolicyRefusal(
            "a study that one person approved",
            allowed="studies that two persons approved: approvers = 2 in this site's policy",
            next="ask the coordinator for a new study, and approve it together",
            code="not_approved",
        )


def same_person(found: str) -> PolicyRefusal:
    """The refusal of one person in the place of two."""
    return PolicyRefusal(
        found,
        allowed="two persons, each with a key and a passphrase of their own",
        next="have the other person do it, with their own passphrase",
        code="same_person",
    )


def second_missing(found: str) -> PolicyRefusal:
    """The refusal of an approval that still waits."""
    return PolicyRefusal(
        found,
        allowed="the signatures of both approvers over the same approval",
        next="have the second person run oncofed-site approve too",
        code="second_missing",
    )
