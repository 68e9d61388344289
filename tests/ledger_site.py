"""A site's home as far as its ledger sees it: keys, secret, policy and two paths."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from oncofed_client.policy import Policy
from oncofed_common.identity import PublicKey, SigningKey

NOW_S = 1_800_000_000
POLICY = Policy.parse(
    lifetime_epsilon="10",
    lifetime_delta="1e-4",
    filter_order="4",
    declared_patients=20,
    bytes_per_round=200_000,
)


@dataclass(frozen=True, kw_only=True)
class LedgerSite:
    """Everything in one folder, with a clock that tests move."""

    root: Path
    site: str = "north"
    approver_signing: SigningKey = field(default_factory=SigningKey.generate)
    trainer_signing: SigningKey = field(default_factory=SigningKey.generate)
    site_secret: bytes = b"the secret of a site, for tests."
    limits: Policy = POLICY
    now: list[float] = field(default_factory=lambda: [float(NOW_S)])

    @property
    def approver(self) -> PublicKey:
        return self.approver_signing.public

    @property
    def ledger_path(self) -> Path:
        return self.root / "ledger.sqlite"

    @property
    def head_path(self) -> Path:
        return self.root / "head" / "ledger-head.json"

    def trainer_key(self) -> SigningKey:
        return self.trainer_signing

    def secret(self) -> bytes:
        return self.site_secret

    def policy(self) -> Policy:
        return self.limits

    def clock(self) -> float:
        return self.now[0]

    def but(self, **changes: Any) -> LedgerSite:
        """The same site with something changed."""
        return replace(self, **changes)

    def approval(
        self,
        study: str,
        *,
        number: int,
        rounds: int = 3,
        rdp: str = "0.9",
        key: SigningKey | None = None,
        **changes: Any,
    ) -> dict[str, Any]:
        """The approver's signed yes, as far as a ledger reads it."""
        terms = {
            "study_hash": study_hash(study),
            "site": self.site,
            "rounds": rounds,
            "filter_rdp": rdp,
            "filter_order": str(self.limits.filter_order),
            "epsilon": "2.5",
            "delta": "0.0001",
            "bytes_per_round": 100_000,
            "expires": "2099-12-31",
            "sequence": number,
        } | changes
        signer = key or self.approver_signing
        return {"approval": terms, "signature": signer.sign("approval", terms)}


def new_site(root: Path, **changes: Any) -> LedgerSite:
    """A site whose folders exist."""
    (root / "head").mkdir(parents=True)
    return LedgerSite(root=root, **changes)


def study_hash(name: str) -> str:
    """A study's hash, from one hex digit."""
    return name * 64


def patient(number: int) -> str:
    """A lifelong key."""
    return f"{number:064x}"
