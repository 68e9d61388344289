"""How a second person comes in, and how the first one's yes waits for theirs.

The approver lets a second approver in: a new key under the second person's own passphrase, put into the
ledger by a row that both sign. From then on, where the policy says ``approvers = 2``, the approver's yes to a
study is a draft in the trainer's home: nothing is reserved for it, no task of it is answered. The second
person runs the same command on the same study with their own passphrase; everything is checked anew, and if
it still is what the first one signed, they sign the same bytes. A draft that says anything else by then
counts for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from oncofed_client.approval import WAITING, Approval, sign
from oncofed_client.home import Home
from oncofed_client.ledger import Ledger
from oncofed_client.two_persons import same_person
from oncofed_common.durable import read_object, sync_folder, write_private
from oncofed_common.errors import IdentityRefusal, PolicyRefusal, Refusal
from oncofed_common.identity import SigningKey, canonical
from oncofed_common.passphrase import refuse_weak


def add(home: Home, *, passphrase: bytes, second: bytes) -> str:
    """Let a second approver in, or another one in their place; the new key's fingerprint.

    Args:
        passphrase: the approver's.
        second: that of the second person.

    Raises:
        PolicyRefusal: code ``same_person``: one passphrase for both; or a weak one.
        IdentityRefusal: the approver's passphrase. SystemRefusal: the disk, or the ledger.
    """
    approver = home.approver_key(passphrase)
    if second == passphrase:
        raise same_person("one passphrase for two approvers")
    refuse_weak(second)
    new, draft = SigningKey.generate(), home.second_key_path.with_suffix(".next")
    draft.unlink(missing_ok=True)
    new.save(draft, passphrase=second)
    with Ledger.open(home) as ledger:
        ledger.add_approver(new, key=approver)
    draft.replace(home.second_key_path)
    sync_folder(draft.parent)
    return new.public.fingerprint


def both(
    home: Home, ledger: Ledger, terms: Mapping[str, Any], *, passphrase: bytes
) -> Approval | None:
    """The approval that both have signed by now; None: the first one signed just now, and waits.

    Raises:
        PolicyRefusal: codes ``no_second_approver``, ``same_person``; ``first_missing``: the second person
            before the first. IdentityRefusal: a passphrase that opens neither key, or a key that the ledger
            does not name.
    """
    allowed, first = ledger.second_approver(), waiting(home, terms)
    key = _whose(home, passphrase)
    if first is None:
        if key.public != home.approver:
            raise PolicyRefusal(
                "the second person's yes to a study, without the approver's to these very terms",
                allowed="the approver first, then the second person",
                next="have the approver run oncofed-site approve",
                code="first_missing",
            )
        signed = sign(terms, key)
        write_private(_path(home, signed.study_hash), canonical(signed.as_dict()))
        return None
    if key.public == home.approver:
        raise same_person("a second yes of the person who said the first")
    if key.public != allowed:
        raise IdentityRefusal(
            "a second approver's key other than the one that the approver let in last",
            allowed="the second approver whom the ledger names",
            next="run oncofed-site add-approver again, with the second person beside you",
            code="bad_key",
        )
    return replace(first, second=sign(first.payload, key).signature)


def waiting(home: Home, terms: Mapping[str, Any]) -> Approval | None:
    """The approver's yes that waits, if it is to these very terms (but for the time at which it was said)."""
    path = _path(home, str(terms["study_hash"]))
    if not path.exists():
        return None
    try:
        found = Approval.from_dict(read_object(path, what="an approval"), approver=home.approver)
    except Refusal:
        return None  # damaged or another's: the approver says it again
    same = {**terms, "approved_at_s": found.payload["approved_at_s"]} == dict(found.payload)
    return found if same else None


def named(home: Home, prefix: str) -> str | None:
    """The one study that begins with ``prefix`` and waits for its second yes."""
    found = [path.name.removeprefix(WAITING) for path in home.study_folder("").glob(f"{WAITING}*")]
    found = [study for study in found if prefix and study.startswith(prefix)]
    return found[0] if len(found) == 1 else None


def forget(home: Home, study_hash: str) -> None:
    """Nothing waits any more for this study."""
    _path(home, study_hash).unlink(missing_ok=True)
    sync_folder(home.study_folder(""))


def _path(home: Home, study_hash: str) -> Path:
    return home.study_folder(f"{WAITING}{study_hash}")


def _whose(home: Home, passphrase: bytes) -> SigningKey:
    """The approver's key or the second one's, whichever the passphrase opens."""
    try:
        return home.approver_key(passphrase)
    except IdentityRefusal as refusal:
        try:
            return SigningKey.load(home.second_key_path, passphrase=passphrase)
        except IdentityRefusal:
            raise refusal from None
