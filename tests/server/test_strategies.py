"""One update out of many, and the next weights out of it: whole numbers, in any order, on any machine."""

from __future__ import annotations

import math
import statistics
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from _lying_sites import LIES, NAMES, STRATEGIES, a_study_with, error, in_units, moved, table
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from study_builder import a_study

from oncofed_common.errors import StudyRefusal, WireRefusal
from oncofed_common.study import parse_study
from oncofed_common.tensors import TensorTerm, pack_tensors
from oncofed_common.update_bound import is_longer, norm_limit_units, squared_length
from oncofed_server.draft import study_toml
from oncofed_server.strategies.bounded import is_within, shortened
from oncofed_server.strategies.robust import (
    coordinate_median,
    krum,
    multi_krum,
    nearest,
    trimmed_mean,
)
from oncofed_server.strategies.strategy import apply, fold, init, nothing

MOST = 2**31 - 1
SCHEMA = (TensorTerm(name="a", shape=(2, 3)), TensorTerm(name="b", shape=()))
extremes = st.integers(-MOST, MOST) | st.integers(-5, 5)
updates = st.fixed_dictionaries(
    {
        "a": hnp.arrays(np.int32, (2, 3), elements=extremes),
        "b": hnp.arrays(np.int32, (), elements=extremes),
    }
)


def many(fewest: int):
    """Updates of so many sites or more, by name."""
    return st.lists(updates, min_size=fewest, max_size=7).map(
        lambda found: dict(zip(NAMES, found, strict=False))
    )


def values(found, at: int) -> list[int]:
    """Every site's value in one place, of seven."""
    return [int(np.concatenate([u["a"].ravel(), u["b"].ravel()])[at]) for u in found.values()]


def means(total) -> list[Fraction]:
    flat = np.concatenate([np.ravel(total.totals[name]) for name in ("a", "b")])
    return [Fraction(int(value), total.weight) for value in flat]


@given(found=many(1))
def test_the_median_is_that_of_each_value(found):
    total = coordinate_median(found, SCHEMA, attackers=0)
    for at, mean in enumerate(means(total)):
        assert mean == statistics.median([Fraction(value) for value in values(found, at)])


@given(found=many(5), attackers=st.integers(1, 2))
def test_a_trimmed_mean_leaves_the_ends_out(found, attackers):
    total = trimmed_mean(found, SCHEMA, attackers=attackers)
    for at, mean in enumerate(means(total)):
        inner = sorted(values(found, at))[attackers:-attackers]
        assert mean == Fraction(sum(inner), len(inner))


@given(found=many(5))
def test_krum_takes_who_is_near_all_but_the_attackers(found):
    """Against every set of neighbours, in whole numbers without limit."""
    sites = sorted(found)

    def apart(one, other):
        pairs = (
            (values({"": found[one]}, at)[0], values({"": found[other]}, at)[0]) for at in range(7)
        )
        return sum((a - b) ** 2 for a, b in pairs)

    def score(site):
        others = [apart(site, other) for other in sites if other != site]
        return min(sum(some) for some in combinations(others, len(sites) - 1 - 2))

    best = sorted(sites, key=lambda site: (score(site), site))
    assert nearest(found, attackers=1) == best
    assert means(krum(found, SCHEMA, attackers=1)) == [
        Fraction(values({"": found[best[0]]}, at)[0]) for at in range(7)
    ]
    liked = {site: found[site] for site in best[: len(sites) - 1]}
    assert means(multi_krum(found, SCHEMA, attackers=1)) == [
        Fraction(sum(values(liked, at)), len(liked)) for at in range(7)
    ]


@given(update=updates)
def test_a_squared_length_is_exact(update):
    assert squared_length(update) == sum(
        value**2 for value in (values({"": update}, at)[0] for at in range(7))
    )


@given(update=updates, more=st.integers(-3, 3), times=st.sampled_from([0.5, 1.0, 2.0]))
def test_whether_an_update_is_longer_is_decided_in_whole_numbers(update, more, times):
    """Also where float32 could not tell."""
    squared = squared_length(update)
    limit = max(0, round(math.isqrt(squared) * times) + more)
    assert is_longer(update, limit_units=limit) == (squared > limit**2)


@pytest.mark.parametrize(
    "apart", [-(2.0**-8), -(2.0**-11), -(2.0**-30), 2.0**-30, 2.0**-11, 2.0**-8]
)
def test_so_it_is_of_a_long_update_near_its_limit(apart):
    """Of many values of one sign and size, whose roundings all go the same way."""
    update = {"w": np.full(300_001, 2**31 - 2**6 - 1, np.int32)}
    squared = squared_length(update)
    assert squared == 300_001 * (2**31 - 2**6 - 1) ** 2
    limit = math.isqrt(round(squared * (1 + apart)))
    assert is_longer(update, limit_units=limit) == (apart < 0)


@given(update=updates, bound=st.floats(2**-20, 2**20))
def test_a_shortened_update_is_within_its_bound_and_points_the_same_way(update, bound):
    short = shortened(update, bound=bound)
    assert is_within(short, bound=bound)
    assert is_within(update, bound=bound) == (squared_length(update) == squared_length(short))
    share = min(1.0, bound * 2**24 / max(1.0, squared_length(update) ** 0.5))
    for name, was in update.items():
        assert short[name].dtype == np.int32
        # bound, length and value are each rounded by less than one unit, all towards shorter
        assert (np.abs(short[name] - was * share) <= 3 + np.abs(was) * 1e-6).all()


@given(data=st.data(), strategy=st.sampled_from(STRATEGIES))
def test_the_next_weights_are_the_same_in_any_order_of_replies(data, strategy):
    study = a_study_with(strategy, "yogi")
    sent = {
        name: {
            "w": np.random.default_rng(data.draw(st.integers(0, 99))).integers(
                -9999, 9999, 400, np.int32
            )
        }
        for name in NAMES
    }
    shuffled = {name: sent[name] for name in data.draw(st.permutations(NAMES))}
    assert after(study, sent) == after(study, shuffled)


def after(study, sent) -> tuple[bytes, bytes]:
    memory, gathered = init(study), nothing(study)
    for site, update in sent.items():
        gathered = fold(gathered, update, site=site, memory=memory, study=study)
    zeros = {"w": np.zeros(400, np.float32)}
    weights, memory = apply(zeros, gathered, memory=memory, study=study)
    return pack_tensors(weights), pack_tensors(memory)


@pytest.mark.parametrize("optimizer", ["momentum", "adam", "yogi"])
def test_an_optimiser_follows_its_formula_over_three_rounds(optimizer):
    """By another way: one value at a time, in the float64 of Python."""
    study = a_study_with("weighted_mean", optimizer, sites=1)
    rng = np.random.default_rng(1)
    weights, memory = {"w": np.zeros(400, np.float32)}, init(study)
    w, m, v = [0.0] * 400, [0.0] * 400, [1e-6] * 400
    for _ in range(3):
        update = in_units(rng.normal(size=400) * 0.01)
        gathered = fold(nothing(study), update, site="s0", memory=memory, study=study)
        weights, memory = apply(weights, gathered, memory=memory, study=study)
        for at, units in enumerate(update["w"].tolist()):
            d = units / 2**24
            if optimizer == "momentum":
                m[at] = 0.9 * m[at] + d
                w[at] += m[at]
                continue
            m[at] = 0.9 * m[at] + 0.1 * d
            sign = (v[at] > d * d) - (v[at] < d * d)
            v[at] = (
                0.99 * v[at] + 0.01 * d * d if optimizer == "adam" else v[at] - 0.01 * d * d * sign
            )
            w[at] += m[at] / (v[at] ** 0.5 + 1e-3)
    np.testing.assert_allclose(weights["w"], w, rtol=1e-5, atol=1e-8)


def test_the_bound_that_adapts_ends_at_its_quantile():
    """Nine sites with updates of length 0.001 to 0.009: half of them are within 0.005."""
    study = a_study_with("adaptive_clipping")
    sent = {}
    for number, name in enumerate(NAMES, start=1):
        one = np.zeros(400)
        one[number] = number / 1000
        sent[name] = in_units(one)
    weights, memory, bounds = {"w": np.zeros(400, np.float32)}, init(study), []
    for _ in range(80):
        gathered = nothing(study)
        for site, update in sent.items():
            gathered = fold(gathered, update, site=site, memory=memory, study=study)
        weights, memory = apply(weights, gathered, memory=memory, study=study)
        bounds.append(float(memory["bound"]))
    assert np.mean(bounds[-20:]) == pytest.approx(0.005, rel=0.15)


WITHSTOOD = {
    "weighted_mean": {"sign flip", "free rider"},
    "norm_bounded_mean": set(LIES),
    "adaptive_clipping": set(LIES),
    "coordinate_median": set(LIES),
    "trimmed_mean": set(LIES),
    "multi_krum": set(LIES),
    "krum": set(),
}


def test_who_withstands_which_lie_of_two_sites_among_nine():
    """A round still goes where honest sites would: its error stays below 0.7 of the way."""
    found = table(rounds=6)
    assert {
        name: {lie for lie in LIES if row[lie] < 0.7} for name, row in found.items()
    } == WITHSTOOD
    assert all(row["honest"] < 0.45 for name, row in found.items() if name != "krum")
    assert found["krum"]["honest"] > 0.9, "one site's update alone has all of its noise"


def test_one_strategy_more_would_be_missed():
    """Each that a study may name is in the table."""
    assert set(WITHSTOOD) == set(STRATEGIES)
    assert error("weighted_mean", None, seed=0) < 1


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"strategy": "trimed_mean"}, "did you mean trimmed_mean?"),
        ({"strategy": "fedavg"}, "correct aggregation.strategy"),
        ({"strategy": "krum"}, "krum needs attackers"),
        ({"attackers": 1}, "weighted_mean has no attackers"),
        ({"strategy": "krum", "attackers": 1, "fewest_sites": 2}, "fewest_sites of 5"),
        (
            {"server_optimizer": "adam", "server_momentum": 0.9},
            "weighted_mean with adam needs server_floor",
        ),
        ({"server_momentum": 0.9}, "weighted_mean has no server_momentum"),
        ({"strategy": "adaptive_clipping", "update_bound": 0.1}, "needs bound_quantile"),
    ],
)
def test_a_rule_with_other_parameters_than_its_own_is_refused(fields, says):
    text = study_toml(a_study())
    for name, value in fields.items():
        spelled = f'"{value}"' if isinstance(value, str) else value
        kept = [line for line in text.splitlines() if not line.startswith(f"{name} = ")]
        at = kept.index("[aggregation]") + 1
        text = "\n".join([*kept[:at], f"{name} = {spelled}", *kept[at:]])
    with pytest.raises(StudyRefusal) as refused:
        parse_study(text)
    assert says in str(refused.value)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_update_that_does_not_fit_reaches_no_sum(strategy):
    """Other dtypes, shapes and names, whatever the strategy does with updates first."""
    study, honest = a_study_with(strategy), in_units(np.full(400, 0.01))
    gathered = fold(nothing(study), honest, site="s0", memory=init(study), study=study)
    before = gathered.total.totals["w"].copy()
    for wrong in (
        {"w": honest["w"].astype(np.float32)},
        {"w": honest["w"].astype(np.int64)},
        {"w": honest["w"][:-1]},
        {"v": honest["w"]},
        {**honest, "v": honest["w"]},
        {"w": np.full(400, np.nan, np.float32)},
    ):
        with pytest.raises(WireRefusal):
            fold(gathered, wrong, site="s1", memory=init(study), study=study)
        assert np.array_equal(gathered.total.totals["w"], before)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_update_that_no_trainer_of_the_study_makes_reaches_no_sum(strategy):
    """Nor is it made shorter first, where the strategy has a bound of its own."""
    study, memory = a_study_with(strategy), init(a_study_with(strategy))
    gathered = fold(
        nothing(study), in_units(np.full(400, 0.01)), site="s0", memory=memory, study=study
    )
    before = gathered.total.totals["w"].copy()
    limit = norm_limit_units(study, declared_patients=study.site("s1").declared_patients)
    longest = {"w": np.full(400, limit // 20, np.int32)}  # 20 is the root of 400
    with pytest.raises(WireRefusal) as refused:
        fold(gathered, {"w": longest["w"] + 1}, site="s1", memory=memory, study=study)
    assert refused.value.code == "too_large"
    assert np.array_equal(gathered.total.totals["w"], before)
    fold(gathered, longest, site="s1", memory=memory, study=study)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nine_sites_of_one_mind_move_the_weights_by_what_they_say(strategy):
    update = in_units(np.random.default_rng(0).normal(size=400) * 1e-4)
    step = moved(a_study_with(strategy), dict.fromkeys(NAMES, update))
    np.testing.assert_array_equal(step, update["w"] / 2**24)
