"""The seam to the sites: who is there, tasks out, replies in. Flower is one implementation.

The round loop knows nothing else of the outside. An adapter retries what is transient; an
``OncofedError`` from it ends the process, and the run stays resumable.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """Something that came from a site.

    Args:
        site: its name, as the carrier knows it.
        frame: the whole reply frame, or None when the courier could not get one.
        code: "ok" with a frame; else the courier's reason. ``unavailable`` is tried again
            while the round is open; any other reason is final for the round.
    """

    site: str
    frame: bytes | None
    code: str


@runtime_checkable
class Sites(Protocol):
    """What carries tasks to sites and replies back."""

    def online(self, wait_s: float) -> AbstractSet[str]:
        """Names of the sites that can be reached now, waiting at most ``wait_s`` for them."""
        ...

    def send(self, tasks: Mapping[str, bytes], *, expires_s: int) -> None:
        """Hand over whole task frames by site; drop them after ``expires_s`` (seconds since 1970).

        The same frame may be handed over more than once.
        """
        ...

    def poll(self) -> Sequence[Arrival]:
        """What arrived since the last call, without waiting long."""
        ...


class Nobody:
    """Sites of which none can be reached: to end a run with what it has."""

    def online(self, wait_s: float) -> AbstractSet[str]:
        """Nobody."""
        return frozenset()

    def send(self, tasks: Mapping[str, bytes], *, expires_s: int) -> None:
        """To nobody."""

    def poll(self) -> Sequence[Arrival]:
        """Nothing."""
        return ()


@runtime_checkable
class Clock(Protocol):
    """Time, so that tests need not wait for it."""

    def now_s(self) -> int:
        """Seconds since 1970, UTC."""
        ...

    def sleep(self, seconds: float) -> None:
        """Return after ``seconds``."""
        ...


class SystemClock:
    """The clock of this machine."""

    def now_s(self) -> int:
        return int(time.time())

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
