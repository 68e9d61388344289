"""Noised means that come with updates: summed exactly, in the signed record, and moving no weight."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pytest
from honest_sites import HonestSites, federation, refusing, update_of
from rich.console import Console
from round_checks import WEIGHTS, expected, released
from study_builder import a_study

from oncofed_common.errors import PrivacyRefusal
from oncofed_common.identity import canonical, digest
from oncofed_common.privacy.accountant import pld_epsilon
from oncofed_common.privacy.events import SubsampledGaussian
from oncofed_common.wire import read_task, unframe
from oncofed_server.aggregate import mean_metrics
from oncofed_server.home import load_task_key
from oncofed_server.overview import run_tables
from oncofed_server.participation import parse_record, read_record, sign_record, spell
from oncofed_server.runs import describe
from oncofed_server.settings import _fill_in_noise
from oncofed_server.sites import Arrival
from oncofed_server.studies import price
from oncofed_server.verify import Fingerprints, verify

ASKED = ("all", "large")
STUDY = {
    "outbound": {"metrics": list(ASKED)},
    "privacy": {"metric_bound": 2.0, "metric_noise_multiplier": 3.0},
    "training": {"rounds": 2},
}


def means_of(site: str, number: int) -> np.ndarray:
    draw = np.random.default_rng([len(site), number])
    return draw.integers(-(2**30), 2**30, len(ASKED)).astype(np.int32)


def measuring(site, task):
    number = read_task(unframe(task, cap_bytes=10**9)[0])[0].round
    update = update_of(site.name, number) | {"metrics": means_of(site.name, number)}
    return Arrival(site=site.name, frame=site.reply(task, update=update), code="ok")


def without_means(site, task):
    return Arrival(site=site.name, frame=site.reply(task), code="ok")


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Two rounds; in the second, one site refuses."""
    fed = federation(tmp_path_factory.mktemp("measured"), WEIGHTS, **STUDY)
    script = {(site, number): measuring for site in WEIGHTS for number in (1, 2)}
    script["west", 2] = refusing("unavailable")
    return fed, fed.conduct(HonestSites(fed.sites, script=script))


def record(fed, number):
    return read_record(fed.folder / f"rounds/{number:04d}/participation.json").record


def test_the_record_holds_the_exact_sum_over_counted_sites(told):
    fed, _ = told
    for number, counted in ((1, list(WEIGHTS)), (2, ["north", "south"])):
        found = record(fed, number)
        sums = sum(WEIGHTS[site] * means_of(site, number).astype(object) for site in counted)
        assert found.metrics == tuple(map(str, sums))
        assert found.metrics_weight == sum(WEIGHTS[site] for site in counted)
        means = mean_metrics(found, fed.study)
        for at, name in enumerate(ASKED):
            assert means[name] == pytest.approx(int(sums[at]) / found.metrics_weight / 2**24)


def test_the_operator_sees_each_rounds_means(told):
    fed, _ = told
    found = describe(fed.home, fed.run)
    assert found["metrics"] == [mean_metrics(record(fed, n), fed.study) for n in (1, 2)]
    shown = Console(width=120, file=io.StringIO())
    for table in run_tables(found):
        shown.print(table)
    printed = shown.file.getvalue()
    assert f"{found['metrics'][0]['large']:.4f}" in printed
    assert "before each round" in printed


def test_settings_that_ask_for_metrics_get_the_least_noise_for_their_epsilon():
    """On training and on metrics, each by its own event; a study costs the dearer of both."""
    privacy = {"epsilon": 2.0, "delta": 1e-5, "clip_norm": 1.0, "metric_bound": 1.0}
    training = {"sampling_rate": 0.25, "rounds": 4, "steps_per_round": 3}
    _fill_in_noise(privacy, training, metrics=True)
    for noise, rate, steps in (
        (privacy["noise_multiplier"], 0.25, 12),
        (privacy["metric_noise_multiplier"], 1.0, 4),
    ):
        event = SubsampledGaussian(rate=rate, noise_multiplier=noise, steps=steps)
        assert 1.9 < pld_epsilon(event, 1e-5) <= 2.0


def test_a_study_whose_metrics_cost_more_than_it_states_is_not_published():
    """Whoever is held out pays as well; the price is that of the dearer event."""
    asked = {"outbound": {"metrics": ["all"]}}
    terms = {"metric_bound": 1.0, "metric_noise_multiplier": 3.0, "noise_multiplier": 2.0}
    fair = price(a_study(**asked, privacy=terms | {"epsilon": 4.0}))
    metrics = SubsampledGaussian(rate=1.0, noise_multiplier=3.0, steps=3)
    assert fair.epsilon_pld == pld_epsilon(metrics, 1e-5) > 2
    with pytest.raises(PrivacyRefusal):
        price(a_study(**asked, privacy=terms | {"epsilon": 4.0, "metric_noise_multiplier": 0.5}))


def test_metrics_move_no_weight(told):
    _, outcome = told
    wanted = expected([list(WEIGHTS), ["north", "south"]])
    for name, value in released(outcome).items():
        np.testing.assert_array_max_ulp(value, wanted[name], maxulp=1)


def test_a_site_that_sends_no_metrics_or_others_has_sent_a_bad_reply(tmp_path):
    fed = federation(tmp_path, WEIGHTS, **STUDY)
    script = {(site, number): measuring for site in WEIGHTS for number in (1, 2)}
    script["west", 1] = without_means
    fed.conduct(HonestSites(fed.sites, script=script))
    (west,) = (site for site in record(fed, 1).sites if site.site == "west")
    assert (west.outcome, west.reason) == ("left_out", "bad_reply")
    plain = federation(tmp_path / "plain", WEIGHTS, training={"rounds": 1})
    plain.conduct(HonestSites(plain.sites, script={("west", 1): measuring}))
    (west,) = (site for site in record(plain, 1).sites if site.site == "west")
    assert (west.outcome, west.reason) == ("left_out", "bad_reply")


def test_a_release_proves_its_metrics_too(told, tmp_path):
    """A signed record whose metrics do not follow from the replies is found."""
    fed, outcome = told
    release, audit = tmp_path / "release", tmp_path / "audit"
    shutil.copytree(outcome.release, release)
    shutil.copytree(outcome.audit, audit)
    key = json.loads((release / "roster.json").read_bytes())["coordinator"]["study_key"]
    trust = Fingerprints(
        coordinator=digest(bytes.fromhex(key)),
        sites={name: site.approver.public.fingerprint for name, site in fed.sites.items()},
    )
    asked = {"audit": audit, "trust": trust, "base": fed.base}
    assert verify(release, **asked).ok
    path = _records(release)[-1]
    signed = parse_record(path.read_bytes())
    better = signed.record.model_copy(update={"metrics": ("1", *signed.record.metrics[1:])})
    path.write_bytes(spell(sign_record(better, load_task_key(fed.home))))
    manifest = json.loads((release / "manifest.json").read_bytes())
    manifest["files"] = {name: digest((release / name).read_bytes()) for name in manifest["files"]}
    del manifest["signature"]
    manifest["signature"] = load_task_key(fed.home).sign("release", manifest)
    (release / "manifest.json").write_bytes(canonical(manifest))
    assert verify(release, **asked).first_fault.check == "metrics"


def _records(release):
    return sorted(p for p in release.rglob("*.json") if b'"weights_before"' in p.read_bytes())
