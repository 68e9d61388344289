"""Replies piece by piece, from a SuperLink that announces them before their pieces are there."""

from types import SimpleNamespace

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid.http_grid import HttpGrid

from oncofed_server.incoming import PatientGrid


@pytest.fixture(autouse=True)
def _in_a_task_of_flower(monkeypatch):
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


class SuperLink:
    """What a Runtime API client is asked; ``there`` is what it can hand out of each reply's pieces."""

    def __init__(self):
        self.announced, self.pieces, self.there, self.gone = {}, {}, set(), set()
        self.asked, self.confirmed = [], []

    def reply(self, text, *, to):
        """Announce a reply; returns the names of its pieces."""
        question = Message(RecordDict({}), 7, "train", ttl=60.0)
        question.metadata.__dict__["_message_id"] = to
        answer = Message(RecordDict({"said": ConfigRecord({"text": text})}), reply_to=question)
        answer.metadata.__dict__["_message_id"] = answer.object_id
        self.announced[to] = (message_to_proto(answer), get_object_tree(answer))
        made = {name: one.deflate() for name, one in get_all_nested_objects(answer).items()}
        self.pieces |= made
        return list(made)

    def PullMessages(self, request):
        self.asked.append(list(request.message_ids))
        told = [self.announced.pop(n) for n in request.message_ids if n in self.announced]
        return SimpleNamespace(
            messages_list=[proto for proto, _ in told],
            message_object_trees=[tree for _, tree in told],
        )

    def PullObject(self, request):
        name = request.object_id
        return SimpleNamespace(
            object_found=name not in self.gone,
            object_available=name in self.there,
            object_content=self.pieces[name],
        )

    def ConfirmMessageReceived(self, request):
        self.confirmed.append(request.message_object_id)


@pytest.fixture
def link():
    return SuperLink()


@pytest.fixture
def grid(link):
    flower = HttpGrid(token="none")
    flower._client = link
    flower.set_run(Run.create_empty(run_id=1))
    return PatientGrid(flower)


def said(replies):
    return [reply.content["said"]["text"] for reply in replies]


def test_a_reply_whose_pieces_are_not_there_holds_up_no_other_and_comes_when_they_are(link, grid):
    slow = link.reply("slow", to="a")
    link.there |= set(link.reply("quick", to="b"))
    assert said(grid.pull_messages(["a", "b"])) == ["quick"]
    link.there |= set(slow[1:])
    assert grid.pull_messages(["a"]) == []
    link.there |= set(slow)
    (reply,) = grid.pull_messages(["a"])
    assert (said([reply]), reply.metadata.reply_to_message_id) == (["slow"], "a")
    assert len(link.confirmed) == 2


def test_an_announced_reply_is_not_asked_for_again_for_superlink_tells_it_once(link, grid):
    link.reply("slow", to="a")
    grid.pull_messages(["a", "b"])
    grid.pull_messages(["a", "b"])
    assert link.asked == [["a", "b"], ["b"]]


def test_a_reply_whose_pieces_are_gone_is_forgotten(link, grid):
    link.gone |= set(link.reply("lost", to="a"))
    assert grid.pull_messages(["a"]) == []
    assert link.confirmed == []
    link.there |= set(link.reply("again", to="c"))
    assert said(grid.pull_messages(["a", "c"])) == ["again"]
    assert link.asked[-1] == ["a", "c"]
