"""Why a run failed, what it cost, and what can be done: in words, from its signed records alone.

A study has one run, so a failed one is not repeated. What a site spent stands in its own ledger: the
coordinator knows who answered, and not who trained without being heard.
"""

from __future__ import annotations

from pathlib import Path

from oncofed_common.errors import OncofedError
from oncofed_common.study import Study
from oncofed_common.wire import Participation
from oncofed_server.participation import read_record
from oncofed_server.runs import open_run
from oncofed_server.studies import load_published


def why_failed(home: Path, run: str) -> OncofedError:
    """What the commands end with after a run that failed; code ``run_failed``.

    Raises:
        SystemRefusal: code ``unknown_run``.
    """
    card, folder = open_run(home, run)
    study = load_published(home, card.study_hash).study
    signed = [read_record(folder.record(n)) for n in range(1, study.training.rounds + 1)]
    records = [one.record for one in signed if one is not None]
    return OncofedError(
        _found(records),
        allowed=f"{study.aggregation.fewest_sites} sites or more that count in every round",
        next=f"{_cost(records, study)}; {_what_next(records, study)}",
        code="run_failed",
    )


def _found(records: list[Participation]) -> str:
    if not records:
        return "a run that ended before any round was closed"
    last = records[-1]
    counted = sum(site.outcome == "counted" for site in last.sites)
    absent = [
        f"{site.site} ({site.code or site.reason.replace('_', ' ')})"
        for site in last.sites
        if site.outcome != "counted"
    ]
    return (
        f"a run that failed in round {last.round}: {counted} of {len(last.sites)} sites counted, "
        f"not {', '.join(absent)}"
    )


def _cost(records: list[Participation], study: Study) -> str:
    answers = {
        site.name: sum(
            one.site == site.name and one.outcome == "counted" for r in records for one in r.sites
        )
        for site in study.sites
    }
    spent = [f"{name} {count}" for name, count in answers.items() if count]
    rounds = f"of the {study.training.rounds} rounds of epsilon {study.privacy.epsilon:g}"
    known = f"spent {rounds}: {', '.join(spent)}" if spent else f"no site answered any {rounds}"
    return f"{known}; who trained without an answer that counted has paid too (oncofed-site budget)"


def _what_next(records: list[Participation], study: Study) -> str:
    expired = bool(records) and any(site.code == "expired" for site in records[-1].sites)
    again = "publish a new study: this one had its run"
    if not expired:
        return again
    return (
        f"{again}; a run that was interrupted is resumed within its round's "
        f"{study.aggregation.round_deadline_s} s, later its tasks have expired"
    )
