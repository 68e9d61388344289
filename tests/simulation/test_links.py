"""Thin and broken links between real processes: the run is complete, and nobody trains twice for one."""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from fault_proxy import Link
from kept_federation import Kept, kept_up

ROUNDS = 2
MBIT = 1e6 / 8


def put_between(kept: Kept, links: list[Link]) -> None:
    """From now on each site calls the coordinator over a link of its own."""
    for site, link in zip(kept.federation.sites, links, strict=True):
        path = site.home.root / "answer.json"
        answer = json.loads(path.read_text())
        path.write_text(json.dumps(answer | {"address": f"127.0.0.1:{link.port}"}))


@pytest.mark.hours
@pytest.mark.timeout(1200)
def test_a_run_over_bad_links_is_complete_and_nobody_trains_twice() -> None:
    """One link is cut and falls silent in every round, the other is twenty times as slow."""
    with tempfile.TemporaryDirectory(prefix="link-") as folder, ExitStack() as stack:
        kept = stack.enter_context(kept_up(Path(folder), rounds=ROUNDS))
        broken = Link(
            target_port=kept.port,
            bytes_per_s=4 * MBIT,
            delay_s=0.1,
            reset_every_s=3.0,
            hole_every_s=7.0,
            hole_s=4.0,
        )
        thin = Link(target_port=kept.port, bytes_per_s=4 * MBIT / 20, delay_s=0.1)
        links = [stack.enter_context(link.up()) for link in (broken, thin)]
        put_between(kept, links)
        kept.until(kept.ended, what="the release")
        kept.stop()
        kept.check(rounds=ROUNDS)
        assert broken.resets >= ROUNDS
        assert broken.holes >= ROUNDS
        assert all(link.carried > ROUNDS * 20_000 for link in links)
        for site in kept.federation.sites:
            rows = (site.home.trainer / "log.jsonl").read_text().splitlines()
            trained = [row for row in map(json.loads, rows) if row.get("event") == "answered"]
            assert len(trained) == ROUNDS
