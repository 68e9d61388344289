"""Task frames to Flower's messages and back, over a grid that is a dictionary."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from oncofed_common.tensors import pack_tensors
from oncofed_common.wire import frame
from oncofed_server.grid import GridSites
from oncofed_server.sites import Arrival, Sites

WEIGHTS = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones(1, np.float32)}
UPDATE = {"b": np.full((2, 3), -3, np.int32), "a": np.array([2**31 - 1], np.int32)}
NODES = {2**63 + 11: "north", 22: "south"}
TASK = frame(b"task", pack_tensors(WEIGHTS))


@pytest.fixture(autouse=True)
def _in_a_task_of_flower(monkeypatch):
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


class Memory(Grid):
    """Flower's grid with its six methods; replies are put in by the test."""

    def __init__(self, *, online=(), takes=True):
        self.online, self.takes = online, takes
        self.sent, self.waiting = {}, []

    def set_run(self, run): ...

    @property
    def run(self):
        raise NotImplementedError

    def create_message(self, *_, **__):
        raise NotImplementedError

    def get_node_ids(self):
        return self.online() if callable(self.online) else self.online

    def push_messages(self, messages):
        names = [f"message-{len(self.sent) + i}" for i in range(len(messages))]
        self.sent |= dict(zip(names, messages, strict=True))
        return names if self.takes else [None] * len(names)

    def pull_messages(self, message_ids):
        ready = [m for m in self.waiting if m.metadata.reply_to_message_id in message_ids]
        self.waiting = [m for m in self.waiting if m not in ready]
        return ready

    def send_and_receive(self, *_, **__):
        raise NotImplementedError

    def answer(self, name, content):
        message = self.sent[name]
        message.metadata.__dict__["_message_id"] = name
        self.waiting.append(Message(content, reply_to=message))


class Clock:
    def __init__(self):
        self.time, self.slept = 1_000.0, 0.0

    def now_s(self):
        return self.time

    def sleep(self, seconds):
        self.time += seconds
        self.slept += seconds


def sites_over(grid, clock=None):
    clock = clock or Clock()
    return GridSites(grid, nodes=NODES, now_s=clock.now_s, sleep=clock.sleep)


def reply(*, envelope=b"reply", code="ok", update=UPDATE):
    body = frame(envelope, pack_tensors(update) if update else b"")
    return said(code, Array(np.frombuffer(body, np.uint8)))


def said(code, array):
    return RecordDict(
        {"oncofed": ConfigRecord({"code": code}), "reply": ArrayRecord({"frame": array})}
    )


def test_the_adapter_is_what_the_round_loop_asks_for():
    assert isinstance(sites_over(Memory()), Sites)


def test_a_task_is_addressed_to_the_sites_node_and_expires_with_it():
    grid = Memory()
    sites_over(grid).send({"north": TASK}, expires_s=1_090)
    (message,) = grid.sent.values()
    assert message.metadata.dst_node_id == 2**63 + 11
    assert message.metadata.ttl == pytest.approx(90)
    assert list(message.content) == ["task"]
    assert message.content["task"]["frame"].numpy().tobytes() == TASK


def test_a_message_is_one_array_whatever_the_number_of_tensors():
    grid = Memory()
    many = {f"w{number}": np.ones(3, np.float32) for number in range(100)}
    sites_over(grid).send({"north": frame(b"task", pack_tensors(many))}, expires_s=1_090)
    (message,) = grid.sent.values()
    assert len(message.content["task"]) == 1


def test_a_reply_comes_back_as_the_frame_that_the_trainer_wrote():
    grid = Memory()
    sites = sites_over(grid)
    sites.send({"north": TASK, "south": TASK}, expires_s=1_090)
    assert sites.poll() == []
    grid.answer("message-1", reply())
    assert sites.poll() == [
        Arrival(site="south", frame=frame(b"reply", pack_tensors(UPDATE)), code="ok")
    ]
    grid.answer("message-0", reply(update={}))
    assert sites.poll() == [Arrival(site="north", frame=frame(b"reply", b""), code="ok")]
    assert sites.poll() == []


def test_a_reply_counts_for_the_site_that_was_asked_once_and_whatever_it_says():
    grid = Memory()
    sites = sites_over(grid)
    sites.send({"north": TASK}, expires_s=1_090)
    grid.answer("message-0", reply(envelope=b"I am south"))
    grid.answer("message-0", reply(envelope=b"again"))
    assert [arrival.site for arrival in sites.poll()] == ["north"]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (reply(envelope=b"", code="unavailable", update={}), "unavailable"),
        (reply(envelope=b"", code="not_approved", update={}), "not_approved"),
        (reply(code="<script>"), "malformed"),
        (reply(envelope=b"x" * 300_000), "too_large"),
        (RecordDict({"oncofed": ConfigRecord({"code": "ok"})}), "malformed"),
        (RecordDict(), "malformed"),
        (RecordDict({"oncofed": ArrayRecord(), "reply": ArrayRecord()}), "malformed"),
        (said("ok", Array(np.zeros(3, np.float32))), "malformed"),
        (said("ok", Array(np.frombuffer(b"OFD1 not quite", np.uint8))), "malformed"),
        (said("ok", Array("uint8", (2,), "numpy.ndarray", b"junk")), "malformed"),
    ],
)
def test_what_is_not_a_reply_is_a_reason_code_and_no_frame(content, code):
    grid = Memory()
    sites = sites_over(grid)
    sites.send({"north": TASK}, expires_s=1_090)
    grid.answer("message-0", content)
    assert sites.poll() == [Arrival(site="north", frame=None, code=code)]


def test_an_error_of_flower_is_unavailable_and_its_text_goes_no_further():
    grid = Memory()
    sites = sites_over(grid)
    sites.send({"north": TASK}, expires_s=1_090)
    message = grid.sent["message-0"]
    message.metadata.__dict__["_message_id"] = "message-0"
    grid.waiting.append(Message(Error(code=3, reason="a path of the hospital"), reply_to=message))
    assert sites.poll() == [Arrival(site="north", frame=None, code="unavailable")]


@pytest.mark.parametrize(
    ("grid", "site", "expires_s"),
    [(Memory(takes=False), "north", 1_090), (Memory(), "nowhere", 1_090), (Memory(), "north", 999)],
)
def test_a_task_that_flower_does_not_take_arrives_as_unavailable(grid, site, expires_s):
    sites = sites_over(grid)
    sites.send({site: TASK}, expires_s=expires_s)
    assert sites.poll() == [Arrival(site=site, frame=None, code="unavailable")]
    assert sites.poll() == []


def test_waiting_for_sites_ends_when_all_are_there():
    clock = Clock()
    grid = Memory(online=lambda: [*NODES][: 1 + (clock.slept >= 1.5)])
    assert sites_over(grid, clock).online(60.0) == {"north", "south"}
    assert clock.slept == pytest.approx(1.5)


def test_waiting_for_sites_ends_at_its_limit_and_strangers_do_not_count():
    clock = Clock()
    grid = Memory(online=[22, 999])
    assert sites_over(grid, clock).online(2.2) == {"south"}
    assert clock.slept == pytest.approx(2.2)
    assert sites_over(grid, clock).online(0.0) == {"south"}
    assert clock.slept == pytest.approx(2.2)
