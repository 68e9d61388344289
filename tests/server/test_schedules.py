"""A thousand schedules by chance: what is lost, late, doubled, mixed up or forged, and processes that die.

Each is a run of its own: the round loop is the real one, its home a real folder, and links and sites do what
a seeded stream says. However it goes, the run ends, the release verifies, nobody trains twice, and who was
counted in which round says what the weights are.
"""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from honest_sites import FIRST, FakeClock, Federation, HonestSites, Site, federation
from round_checks import WEIGHTS, expected, record, released

from oncofed_common.wire import read_task, unframe
from oncofed_server.sites import Arrival
from oncofed_server.verify import verify

SCHEDULES = 1000
SOME = 300
AT_A_TIME = 100
MOST_LIVES = 60
TIMED = (0.0, 0.0, 0.3, 2.0, 20.0, 45.0, 90.0)
"""Seconds that something is on its way; the deadline is a minute."""


class Gone(BaseException):
    """The process of the round loop is killed; nothing catches it."""


@dataclass(kw_only=True)
class Chance:
    """How often what happens, in one schedule."""

    lost: float
    failing: float
    doubled: float
    forged: float
    repeated: float
    killed: float
    slow: float

    @staticmethod
    def drawn(rng: random.Random) -> Chance:
        """Some schedules are calm, some have one kind of fault, some all."""
        often = [rng.choice((0.0, 0.0, 0.05, 0.25)) for _ in range(7)]
        return Chance(**dict(zip(Chance.__dataclass_fields__, often, strict=True)))


class Links(HonestSites):
    """Between the round loop and honest sites; it outlives the loop, as SuperLink may."""

    def __init__(self, sites: dict[str, Site], *, rng: random.Random, clock: FakeClock) -> None:
        super().__init__(sites)
        self.rng, self.clock, self.chance = rng, clock, Chance.drawn(rng)
        self.on_the_way: list[tuple[float, Arrival]] = []
        self.past: list[Arrival] = []

    def _with(self, chance: float) -> bool:
        return self.rng.random() < chance

    def _live(self) -> None:
        if self._with(self.chance.killed):
            if self._with(0.3):
                self.on_the_way.clear()  # SuperLink died as well
            raise Gone

    def online(self, wait_s: float) -> frozenset[str]:
        return frozenset(name for name in self.sites if not self._with(self.chance.lost))

    def send(self, tasks, *, expires_s):
        self._live()
        for name, body in tasks.items():
            number = read_task(unframe(body, cap_bytes=10**9)[0])[0].round
            self.sent.append((name, number, body))
            if self._with(self.chance.failing):
                self._put(Arrival(site=name, frame=None, code="unavailable"))
                continue
            reply = self.sites[name].answer(body)
            if self._with(self.chance.forged):
                self._put(Arrival(site=name, frame=self._forged(name, reply), code="ok"))
            if not self._with(self.chance.lost):
                self._put(Arrival(site=name, frame=reply, code="ok"))
            if self._with(self.chance.doubled):
                self._put(Arrival(site=name, frame=reply, code="ok"))
        self._live()

    def poll(self):
        self._live()
        due = [arrival for at_s, arrival in self.on_the_way if at_s <= self.clock.at_s]
        self.on_the_way = [one for one in self.on_the_way if one[0] > self.clock.at_s]
        if self.past and self._with(self.chance.repeated):
            due.append(self.rng.choice(self.past))
        self.rng.shuffle(due)
        self.past += due
        return due

    def _put(self, arrival: Arrival) -> None:
        late_s = self.rng.choice(TIMED) if self._with(self.chance.slow) else 0.0
        self.on_the_way.append((self.clock.at_s + late_s, arrival))

    def _forged(self, name: str, reply: bytes) -> bytes:
        """A byte changed, an end cut off, or what another site said."""
        others = [s.answered[n] for s in self.sites.values() for n in s.answered if s.name != name]
        place = self.rng.randrange(len(reply))
        kinds = [reply[:place] + bytes([reply[place] ^ 0x20]) + reply[place + 1 :], reply[:place]]
        return self.rng.choice([*kinds, *others])


@dataclass
class Ended:
    """How one schedule went."""

    fed: Federation
    outcome: object
    links: Links
    lives: int = field(default=1)


def ended(fed: Federation, seed: int) -> Ended:
    """Conduct it, and resume it as often as it dies."""
    rng, clock = random.Random(seed), FakeClock()
    links = Links(fed.sites, rng=rng, clock=clock)
    for life in range(1, MOST_LIVES + 1):
        try:
            return Ended(fed, fed.conduct(links, clock), links, life)
        except Gone:
            clock.sleep(rng.choice((0.0, 1.0, 10.0)))
            if life == MOST_LIVES - 1:
                links.chance = replace(links.chance, killed=0.0)
    raise AssertionError("unreachable")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return federation(tmp_path_factory.mktemp("first"), WEIGHTS)


@pytest.fixture(scope="module")
def whole(first, tmp_path_factory):
    """The weights of a run in which nothing goes wrong."""
    fed = copied(first, tmp_path_factory.mktemp("whole"))
    return (fed.conduct().release / "weights.safetensors").read_bytes()


def copied(fed: Federation, root) -> Federation:
    """The same home and the same keys before anything happened."""
    shutil.copytree(fed.home, root / "home")
    sites = {name: replace(site, answered={}, trained=0) for name, site in fed.sites.items()}
    return replace(fed, home=root / "home", sites=sites)


def check(went: Ended, whole: bytes, seed: int) -> tuple[str, bool]:
    fed, done = went.fed, went.outcome
    told = {}
    for name, number, body in went.links.sent:
        assert told.setdefault((name, number), body) == body, f"seed {seed}: another task"
    counted = []
    for number in range(1, done.rounds + 1):
        said = record(fed, number)
        assert list(said) == list(WEIGHTS), f"seed {seed}: a site without a word"
        assert all(o == "counted" or reason for o, reason, _ in said.values()), f"seed {seed}"
        counted.append([name for name, (outcome, _, _) in said.items() if outcome == "counted"])
    verdict = verify(done.release, audit=done.audit, base=fed.base, trust=None)
    assert verdict.first_fault is None, f"seed {seed}: {verdict.first_fault}"
    assert verdict.sums == done.rounds, f"seed {seed}"
    summed = [names for names in counted if len(names) >= fed.study.aggregation.fewest_sites]
    assert (done.status == "failed") == (len(summed) < len(counted)), f"seed {seed}"
    wanted = expected(summed)
    for name in FIRST:
        np.testing.assert_array_max_ulp(released(done)[name], wanted[name], maxulp=1)
    everybody = counted == [list(WEIGHTS)] * fed.study.training.rounds
    assert (done.status == "complete") == everybody, f"seed {seed}"
    if everybody:
        assert (done.release / "weights.safetensors").read_bytes() == whole, f"seed {seed}"
        assert {site.trained for site in fed.sites.values()} == {3}, f"seed {seed}"
    return done.status, went.lives > 1


def run_seeds(first, whole, root, seeds):
    """Every seed in a folder that is thrown away; how the runs were called, and how many had died."""
    words, died = [], 0
    for seed in seeds:
        fed = copied(first, root / str(seed))
        word, had_died = check(ended(fed, seed), whole, seed)
        words.append(word)
        died += had_died
        shutil.rmtree(root / str(seed))
    return words, died


def test_forty_schedules(first, whole, tmp_path):
    words, died = run_seeds(first, whole, tmp_path, range(40))
    assert set(words) >= {"complete", "partial"}
    assert died > 10


@pytest.mark.parametrize(
    "begin",
    [
        *(pytest.param(n, marks=pytest.mark.faults) for n in range(0, SOME, AT_A_TIME)),
        *(pytest.param(n, marks=pytest.mark.hours) for n in range(SOME, SCHEDULES, AT_A_TIME)),
    ],
)
def test_a_thousand_schedules(first, whole, tmp_path, begin):
    words, died = run_seeds(first, whole, tmp_path, range(begin, begin + AT_A_TIME))
    assert set(words) >= {"complete", "partial"}
    assert died > AT_A_TIME // 4
