"""Eight sites, and every way in which some of them may be missing: the right word, and a reason for each."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import product

import pytest
from honest_sites import FakeClock, HonestSites, deaf, federation, refusing, silent

from oncofed_server.participation import read_record
from oncofed_server.runs import describe

NAMES = tuple(f"site-{number}" for number in range(8))
FEWEST = 5
WAYS = (
    (silent, ("no_reply", "")),
    (deaf, ("unavailable", "unavailable")),
    (refusing("budget"), ("refused", "budget")),
    (refusing("unavailable"), ("unavailable", "unavailable")),
    (None, ("offline", "")),
)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """One study and its run, before anything happened."""
    return federation(
        tmp_path_factory.mktemp("eight"),
        dict.fromkeys(NAMES, 1),
        training={"rounds": 1},
        aggregation={"fewest_sites": FEWEST, "round_deadline_s": 10},
    )


@pytest.mark.parametrize("half", list(product((True, False), repeat=4)))
def test_every_pattern_of_eight_sites_gets_the_right_word(first, tmp_path, half):
    for number, rest in enumerate(product((True, False), repeat=4)):
        fed = replace(first, home=shutil.copytree(first.home, tmp_path / str(number)))
        gone = [name for name, here in zip(NAMES, half + rest, strict=True) if not here]
        ways = {name: WAYS[(NAMES.index(name) + number) % len(WAYS)] for name in gone}
        sites = HonestSites(
            {name: replace(site, answered={}) for name, site in first.sites.items()},
            script={(name, 1): behave for name, (behave, _) in ways.items() if behave},
            offline=frozenset(name for name, (behave, _) in ways.items() if not behave),
        )
        done = fed.conduct(sites, FakeClock())
        counted = len(NAMES) - len(gone)
        word = "complete" if not gone else "partial" if counted >= FEWEST else "failed"
        assert done.status == word, gone
        assert describe(fed.home, fed.run)["status"] == word
        record = read_record(fed.folder / "rounds/0001/participation.json").record
        assert record.status == word
        said = {site.site: (site.outcome, site.reason, site.code) for site in record.sites}
        assert tuple(said) == NAMES
        for name in NAMES:
            wanted = ("left_out", *ways[name][1]) if name in ways else ("counted", "", "ok")
            assert said[name] == wanted, (name, gone)
        assert (record.weights_after == record.weights_before) == (word == "failed")
        shutil.rmtree(fed.home)
