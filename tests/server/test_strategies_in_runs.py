"""Strategies that remember, in whole runs: cut short, with a checkpoint lost, and checked offline."""

from __future__ import annotations

import json

import numpy as np
import pytest
from honest_sites import FIRST, HonestSites, federation
from round_checks import WEIGHTS, record, released

from oncofed_common.identity import digest
from oncofed_common.update_bound import norm_limit_units
from oncofed_server.checkpoint import load_newest
from oncofed_server.sites import Arrival
from oncofed_server.verify import Fingerprints, verify

SECOND = {"server_momentum": 0.9, "server_second_momentum": 0.99, "server_floor": 0.01}
RULES = {
    "momentum": {"server_optimizer": "momentum", "server_momentum": 0.9},
    "yogi on a trimmed mean": {
        "strategy": "trimmed_mean",
        "attackers": 1,
        "fewest_sites": 3,
        "server_optimizer": "yogi",
        **SECOND,
    },
    "adam under a bound that adapts": {
        "strategy": "adaptive_clipping",
        "update_bound": 0.05,
        "bound_quantile": 0.5,
        "bound_step": 0.3,
        "server_optimizer": "adam",
        **SECOND,
    },
}


class Stopping(HonestSites):
    """The machine goes when the tasks of the third round have left."""

    def send(self, tasks, *, expires_s):
        super().send(tasks, expires_s=expires_s)
        if self.sent[-1][1] == 3:
            raise OSError("the machine is gone")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("damaged", [False, True])
def test_a_run_that_was_cut_short_ends_with_the_same_bytes(tmp_path, rule, damaged):
    """What the strategy remembers is in the checkpoint, and comes again from replies if that is lost."""
    whole = federation(tmp_path / "whole", WEIGHTS, aggregation=RULES[rule]).conduct()
    fed = federation(tmp_path / "cut", WEIGHTS, aggregation=RULES[rule])
    with pytest.raises(OSError, match="machine"):
        fed.conduct(Stopping(fed.sites))
    if damaged:
        (fed.folder / "checkpoints/0002.ckpt").write_bytes(b"nothing")
    remembered = load_newest(fed.folder / "checkpoints", study=fed.study, run=fed.run).state.memory
    assert remembered
    done = fed.conduct()
    for name, values in released(whole).items():
        assert values.tobytes() == released(done)[name].tobytes()
        assert (values != FIRST[name]).any()


@pytest.mark.parametrize("rule", RULES)
def test_a_release_is_checked_with_what_the_strategy_remembers(tmp_path, rule):
    """By whoever has replies and study alone; with another rule the same replies give other weights."""
    fed = federation(tmp_path, WEIGHTS, aggregation=RULES[rule])
    done = fed.conduct()
    key = json.loads((done.release / "roster.json").read_bytes())["coordinator"]["study_key"]
    trust = Fingerprints(
        coordinator=digest(bytes.fromhex(key)),
        sites={name: site.approver.public.fingerprint for name, site in fed.sites.items()},
    )
    found = verify(done.release, audit=done.audit, trust=trust, base=fed.base)
    assert found.ok, found.first_fault
    plain = federation(tmp_path / "plain", WEIGHTS).conduct()
    assert any(
        not np.array_equal(values, released(plain)[name]) for name, values in released(done).items()
    )


def test_an_update_longer_than_any_that_the_study_can_give_reaches_no_sum(fed):
    """No trainer of ours sends it: whoever signs such a one is left out, and the record says why."""
    limit = norm_limit_units(fed.study, declared_patients=20)
    first = sorted(FIRST)[0]

    def of_length(units):
        update = {name: np.zeros(value.shape, np.int32) for name, value in FIRST.items()}
        update[first].flat[0] = units
        return lambda site, task: Arrival(
            site=site.name, frame=site.reply(task, update=update), code="ok"
        )

    sites = HonestSites(
        fed.sites, script={("south", 1): of_length(limit), ("south", 2): of_length(-limit - 1)}
    )
    done = fed.conduct(sites)
    assert done.status == "partial"
    assert record(fed, 1)["south"] == ("counted", "", "ok")
    assert record(fed, 2)["south"] == ("left_out", "bad_reply", "too_large")
