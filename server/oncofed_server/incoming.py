"""Replies as they come in over Flower, piece by piece, and nobody waits for anybody.

SuperLink hands out a reply as soon as it is announced, and its pieces when they are there. Flower's own
``pull_messages`` then waits for the pieces, two hours at the longest: one hospital whose link breaks in the
middle of a reply would hold up every other one, and the deadline. Here what is there is taken, and what is
not is asked for again the next time. A reply whose pieces are gone is forgotten: its site is asked again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    inflate_object_from_contents,
)
from flwr.superlink.grid.http_grid import HttpGrid


@dataclass(frozen=True, kw_only=True)
class _Coming:
    """A reply that is announced, to which message, and its pieces so far."""

    answers: str
    wanted: list[str]
    pieces: dict[str, bytes] = field(default_factory=dict)


class PatientGrid:
    """Flower's grid, as far as ``grid.GridSites`` needs it."""

    def __init__(self, grid: HttpGrid) -> None:
        self._grid = grid
        self._coming: dict[str, _Coming] = {}

    @property
    def port(self) -> int:
        """Of SuperLink on this machine, on which all of its interfaces are."""
        return int(self._grid._addr.rpartition(":")[2])

    def get_node_ids(self) -> Iterable[int]:
        """Nodes that are online."""
        found: Iterable[int] = self._grid.get_node_ids()
        return found

    def push_messages(self, messages: list[Message]) -> Iterable[str | None]:
        """Their ids; None for one that SuperLink does not take."""
        found: Iterable[str | None] = self._grid.push_messages(messages)
        return found

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies to these messages that are whole by now."""
        client = self._grid._runtime_client
        known = {coming.answers for coming in self._coming.values()}  # told once, and never again
        asked = [name for name in message_ids if name not in known]
        announced = client.PullMessages(PullAppMessagesRequest(message_ids=asked))
        for told, tree in zip(announced.messages_list, announced.message_object_trees, strict=True):
            wanted = [piece.object_id for piece in iterate_object_tree(tree)]
            self._coming[told.metadata.message_id] = _Coming(
                answers=told.metadata.reply_to_message_id, wanted=wanted
            )
        return [reply for name in list(self._coming) if (reply := self._taken(name)) is not None]

    def _taken(self, name: str) -> Message | None:
        """One reply, if the last of its pieces is there."""
        grid, coming = self._grid, self._coming[name]
        run_id = grid.run.run_id
        pull = make_pull_object_fn_protobuf(grid._runtime_client.PullObject, grid.node, run_id)
        try:
            for piece in coming.wanted:
                if piece not in coming.pieces:
                    coming.pieces[piece] = pull(piece)
        except ObjectUnavailableError:
            return None
        except ObjectPullError:
            del self._coming[name]
            return None
        del self._coming[name]
        grid._runtime_client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=grid.node, run_id=run_id, message_object_id=name)
        )
        reply: Any = inflate_object_from_contents(name, coming.pieces)
        reply.metadata.__dict__["_message_id"] = name
        assert isinstance(reply, Message)
        return reply
