"""The sites as Flower reaches them: whole task frames become messages, messages become reply frames.

    task                                       ArrayRecord "task"  {frame: uint8}
    reply   ConfigRecord "oncofed" {code: str} ArrayRecord "reply" {frame: uint8}

One array, whatever the number of tensors: Flower fetches each array of a message by a request of its
own, at every hop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Protocol, get_args, runtime_checkable

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MessageType, RecordDict

from oncofed_common.errors import WireRefusal
from oncofed_common.wire import Code, unframe
from oncofed_server.sites import Arrival

FRAME_CAP_BYTES = 64 * 1024 * 1024
"""The longest task or reply, the same as at the courier."""

_LOOK_EVERY_S = 0.5


@runtime_checkable
class Carrier(Protocol):
    """What is needed of Flower's grid (``incoming.PatientGrid``)."""

    def get_node_ids(self) -> Iterable[int]:
        """Nodes that are online."""
        ...

    def push_messages(self, messages: list[Message]) -> Iterable[str | None]:
        """Their ids; None for one that is not taken."""
        ...

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to these messages that are there."""
        ...


class GridSites:
    """The sites as Flower reaches them; see ``sites.Sites`` for what each method promises.

    ``nodes`` says which site a Flower node id is, as the coordinator wrote it down when it registered
    the node's key. SuperLink lets nobody else speak for that id, and a reply counts for the site that
    its task was sent to.
    """

    def __init__(
        self,
        grid: Carrier,
        *,
        nodes: Mapping[int, str],
        now_s: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._grid = grid
        self._nodes = dict(nodes)
        self._now_s = now_s
        self._sleep = sleep
        self._asked: dict[str, str] = {}
        self._failed: list[Arrival] = []

    def online(self, wait_s: float) -> AbstractSet[str]:
        """Sites whose node is online: all of them as soon as they are, else those after ``wait_s``."""
        ends_s = self._now_s() + wait_s
        while True:
            found = {self._nodes[node] for node in self._grid.get_node_ids() if node in self._nodes}
            left_s = ends_s - self._now_s()
            if len(found) == len(self._nodes) or left_s <= 0:
                return found
            self._sleep(min(_LOOK_EVERY_S, left_s))

    def send(self, tasks: Mapping[str, bytes], *, expires_s: int) -> None:
        """Push one message a site; a site that Flower does not take one for arrives as unavailable."""
        node_of = {site: node for node, site in self._nodes.items()}
        for site, task in tasks.items():
            ttl_s = expires_s - self._now_s()
            pushed: list[str | None] = []
            if site in node_of and ttl_s > 0:
                message = Message(_task_content(task), node_of[site], MessageType.TRAIN, ttl=ttl_s)
                pushed = list(self._grid.push_messages([message]))
            if pushed and pushed[0]:
                self._asked[pushed[0]] = site
            else:
                self._failed.append(Arrival(site=site, frame=None, code="unavailable"))

    def poll(self) -> list[Arrival]:
        """Replies and failures since the last call."""
        arrived, self._failed = self._failed, []
        if not self._asked:
            return arrived
        for message in self._grid.pull_messages(list(self._asked)):
            site = self._asked.pop(message.metadata.reply_to_message_id, None)
            if site is not None:
                arrived.append(_arrival(site, message))
        return arrived


def _task_content(task: bytes) -> RecordDict:
    return RecordDict({"task": ArrayRecord({"frame": Array(np.frombuffer(task, np.uint8))})})


def _arrival(site: str, message: Message) -> Arrival:
    """What a message of that site holds; whatever is not a reply of ours is a code."""
    if message.has_error():
        return Arrival(site=site, frame=None, code="unavailable")
    try:
        code = message.content["oncofed"]["code"]
        if code != "ok":
            known = code in get_args(Code)
            return Arrival(site=site, frame=None, code=str(code) if known else "malformed")
        found = message.content["reply"]["frame"]
        if not isinstance(found, Array):
            raise TypeError
        if len(found.data) > FRAME_CAP_BYTES:
            return Arrival(site=site, frame=None, code="too_large")
        reply = found.numpy().astype(np.uint8, casting="safe").tobytes()
        unframe(reply, cap_bytes=FRAME_CAP_BYTES)
        return Arrival(site=site, frame=reply, code="ok")
    except WireRefusal as refusal:
        return Arrival(site=site, frame=None, code=refusal.code)
    except (KeyError, TypeError, ValueError, EOFError):
        return Arrival(site=site, frame=None, code="malformed")
