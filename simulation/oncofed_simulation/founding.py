"""A whole federation of virtual hospitals on one machine, ready to run its first round.

Coordinator's home, a virtual home for each cohort, enrolment, answer, one published study, and every
site's approval: the same functions that the commands of hospital and coordinator call.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from oncofed_client import consent, new_home
from oncofed_client import home as site_home
from oncofed_client.courier.node import make_node_key
from oncofed_client.home import Home
from oncofed_client.ledger import Ledger
from oncofed_client.policy import Policy
from oncofed_common.durable import write_private
from oncofed_common.identity import PublicKey, canonical
from oncofed_common.model.presets import preset
from oncofed_common.model.weights import base_path
from oncofed_common.study import Study
from oncofed_server.draft import study_toml
from oncofed_server.home import init_home
from oncofed_server.registry import enrol, read_ca
from oncofed_server.studies import publish

LIFE_DAYS = 30
PASSPHRASE_FILE = "passphrase"  # noqa: S105  the name of a file


@dataclass(frozen=True, kw_only=True)
class Site:
    """One virtual hospital: its home, its cohort, and who its patients are."""

    home: Home
    cohort: Path
    identities: Path

    @property
    def name(self) -> str:
        return self.home.site


@dataclass(frozen=True, kw_only=True)
class Federation:
    """Homes of the coordinator and of every site, and the study they agreed on."""

    coordinator: Path
    sites: tuple[Site, ...]
    study: Study


def found_sites(
    root: Path,
    cohorts: Sequence[Path],
    *,
    declared_patients: int,
    lifetime_epsilon: str,
    lifetime_delta: str,
    bytes_per_round: int,
    filter_order: str,
    seed: int | None,
) -> list[Site]:
    """Make a virtual home under ``root`` for each cohort folder; its name is the folder's.

    Args:
        seed: the study's, from which the sites' secrets follow, and so who is held out; None: fresh ones.
    """
    root.mkdir(parents=True, exist_ok=True)
    sites: list[Site] = []
    for cohort in cohorts:
        passphrase = secrets.token_hex(16).encode()
        home = new_home.create(
            root / cohort.name,
            site=cohort.name,
            declared_patients=declared_patients,
            policy=Policy.parse(
                lifetime_epsilon=lifetime_epsilon,
                lifetime_delta=lifetime_delta,
                filter_order=filter_order,
                declared_patients=declared_patients,
                bytes_per_round=bytes_per_round,
            ),
            virtual=True,
            passphrase=passphrase,
            node_key=make_node_key(),
            secret=None if seed is None else _seeded_secret(seed, cohort.name),
        )
        write_private(home.root / "approver" / PASSPHRASE_FILE, passphrase)
        sites.append(Site(home=home, cohort=cohort, identities=identities_of(cohort)))
    return sites


def identities_of(cohort: Path) -> Path:
    """The table beside a virtual cohort that says which hospital number a participant has."""
    return cohort.with_name(f"{cohort.name}.identities.tsv")


def found_coordinator(root: Path, *, address: str) -> Path:
    """A coordinator's home whose study key has no passphrase: a simulation's only."""
    init_home(
        root,
        name="coordinator",
        address=address,
        passphrase=None,
        task_key_days=30,
        now_s=int(time.time()),
    )
    return root


def introduce(coordinator: Path, sites: Sequence[Site], *, address: str) -> None:
    """Enrol every site and let it join; the fingerprint is compared as a person would."""
    for site in sites:
        answer = enrol(
            coordinator,
            site.home.root / "enrolment.json",
            address=address,
            ca_pem=read_ca(coordinator),
            now_s=int(time.time()),
        )
        key = PublicKey(answer["coordinator_key"])
        site_home.join(site.home, answer, coordinator=key.fingerprint)


def agree(coordinator: Path, sites: Sequence[Site], *, study: Study) -> Federation:
    """Publish the study and have every site approve it."""
    base = base_path(preset(study.model.preset))
    draft = coordinator / "study.toml"
    draft.write_text(study_toml(study), encoding="utf-8")
    publish(coordinator, draft, base=base, passphrase=None, now_s=int(time.time()))
    folder = coordinator / "studies" / study.hash
    for site in sites:
        passphrase = (site.home.root / "approver" / PASSPHRASE_FILE).read_bytes()
        with Ledger.open(site.home) as ledger:
            proposal = consent.propose(site.home, ledger, folder, base=base)
            consent.agree(site.home, ledger, proposal, passphrase=passphrase)
    return Federation(coordinator=coordinator, sites=tuple(sites), study=study)


def last_day() -> dt.date:
    """The last day (UTC) of a study whose settings name none."""
    return dt.datetime.now(tz=dt.UTC).date() + dt.timedelta(days=LIFE_DAYS)


def lifetime_for(epsilon: float) -> str:
    """A lifetime budget with room for one study of this cost and its conversion."""
    return str(Decimal(repr(2 * epsilon)))


def _seeded_secret(seed: int, site: str) -> bytes:
    """A virtual site's secret: the same for the same seed and name."""
    label = canonical({"seed": seed, "site": site})
    return hashlib.sha256(b"oncofed seeded secret\x00" + label).digest()
