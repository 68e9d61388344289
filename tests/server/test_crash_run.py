"""A round loop that dies at any moment: the run ends with the same bytes, and nobody trains twice.

The coordinator's home as every crash may leave it (``crash_images``): at each write, fsync and rename, and
whenever a task leaves or a reply comes; with and without what was not synced. Sites are other machines: they
have answered every task that had been sent by then.
"""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from crash_images import Images
from honest_sites import HonestSites, federation

from oncofed_common.identity import digest
from oncofed_server.runs import describe
from oncofed_server.verify import verify

TWO = {"north": 3, "south": 5}


class Noted(HonestSites):
    """Tells ``images`` of every task that leaves."""

    def __init__(self, sites, images):
        super().__init__(sites)
        self.images = images

    def send(self, tasks, *, expires_s):
        super().send(tasks, expires_s=expires_s)
        for name, number, body in self.sent[-len(tasks) :]:
            self.images.note(f"{name} {number} {digest(body)}".encode())

    def poll(self):
        arrived = super().poll()
        for arrival in arrived:
            self.images.note(f"{arrival.site} answers".encode())
        return arrived


def tasks_in(notes):
    """(site, round) -> digest of the task that it was sent."""
    said = [note.decode().split() for note in notes]
    return {(words[0], int(words[1])): words[2] for words in said if len(words) == 3}


def images_of(fed):
    with Images(fed.home).taken() as images:
        done = fed.conduct(Noted(fed.sites, images))
    assert done.status == "complete"
    assert images.unseen == []
    return images


def laid_out(fed, crash, folder):
    """What a new process finds, and the tasks that the sites had been sent by then."""
    crash.laid_out(folder / "home")
    sent = tasks_in(crash.notes)
    sites = {
        name: replace(
            site,
            answered={n: reply for n, reply in site.answered.items() if (name, n) in sent},
            trained=sum(of == name for of, _ in sent),
        )
        for name, site in fed.sites.items()
    }
    return replace(fed, home=folder / "home", sites=sites), sent


def resumed(fed, crash, folder):
    """What a new process makes of one image; the federation, and all tasks that the sites were ever sent."""
    again, sent = laid_out(fed, crash, folder)
    if describe(again.home, again.run)["release"]:
        return again, sent
    carrier = HonestSites(again.sites)
    assert again.conduct(carrier).status == "complete", crash
    for name, number, body in carrier.sent:
        told = sent.setdefault((name, number), digest(body))
        assert told == digest(body), f"another task for {name} in round {number}: {crash}"
    return again, sent


def check(fed, crashes, root):
    wanted = (fed.folder / "release/weights.safetensors").read_bytes()
    rounds = fed.study.training.rounds
    for number, crash in enumerate(crashes):
        folder = root / f"crash-{number}"
        again, sent = resumed(fed, crash, folder)
        assert (again.folder / "release/weights.safetensors").read_bytes() == wanted, crash
        assert len(sent) == rounds * len(fed.sites), crash
        assert {site.trained for site in again.sites.values()} == {rounds}, crash
        verdict = verify(
            again.folder / "release", audit=again.folder / "audit", base=fed.base, trust=None
        )
        assert (verdict.first_fault, verdict.sums) == (None, rounds), crash
        shutil.rmtree(folder)


def test_a_run_that_is_cut_at_any_moment_ends_with_the_same_bytes(tmp_path):
    fed = federation(tmp_path / "whole", TWO, training={"rounds": 2})
    images = images_of(fed)
    assert {call.name for call in images.calls} >= {
        "create", "write", "fsync", "replace", "rename", "unlink", "mkdir", "ftruncate",
    }  # fmt: skip
    assert {crash.loses for crash in images.crashes} >= {"nothing", "data", "names"}
    check(fed, images.crashes, tmp_path)


@pytest.mark.faults
def test_a_run_that_is_cut_again_while_it_recovers_ends_with_the_same_bytes(tmp_path):
    """Some crashes, and every crash of the life after each."""
    fed = federation(tmp_path / "whole", TWO, training={"rounds": 2})
    first = images_of(fed).crashes
    for crash in first[20 :: len(first) // 5]:
        root = tmp_path / str(first.index(crash))
        cut, sent = laid_out(fed, crash, root)
        noted = [f"{name} {number} {told}".encode() for (name, number), told in sent.items()]
        with Images(cut.home).taken() as images:
            cut.conduct(Noted(cut.sites, images))
        later = [replace(one, notes=(*noted, *one.notes)) for one in images.crashes]
        check(replace(fed, sites=cut.sites), later, root)
