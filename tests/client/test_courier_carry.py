"""A task to the trainer's socket and back, and every way in which that can go wrong."""

import http.server
import json
import socketserver
import threading
import time
from contextlib import contextmanager, suppress
from typing import get_args

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from oncofed_client.courier import carry as carriage
from oncofed_client.courier.app import answer
from oncofed_client.courier.carry import CarriageCode, carry
from oncofed_common.errors import WireRefusal
from oncofed_common.wire import Code, frame

TASK = frame(b"task", bytes(range(256)))
REPLY = frame(b"reply", bytes(reversed(range(256))))


@pytest.fixture(autouse=True)
def _in_a_task_of_flower(monkeypatch):
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@contextmanager
def trainer(folder, say):
    """A real server on a socket; ``say(body, handler)`` writes whatever a trainer might answer."""
    path = folder / "trainer.sock"

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            say(self.rfile.read(int(self.headers["Content-Length"])), self)

        def log_message(self, *_):
            return

    class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        daemon_threads = True

    with Server(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield path
        finally:
            server.shutdown()
            thread.join()


def saying(body, *, status=200, length=None):
    def say(_task, handler):
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        handler.end_headers()
        handler.wfile.write(body)

    return say


def code_of(path, *, left_s=60.0):
    with pytest.raises(WireRefusal) as caught:
        carry(TASK, socket_path=path, expires_s=time.time() + left_s)
    return caught.value.code


def a_message(*, ttl_s=30.0):
    frames = ArrayRecord({"frame": Array(np.frombuffer(TASK, np.uint8))})
    return received(RecordDict({"task": frames}), ttl_s=ttl_s)


def received(content, *, ttl_s=30.0):
    message = Message(content, dst_node_id=7, message_type="train", ttl=ttl_s)
    message.metadata.__dict__["_message_id"] = "1"  # as after its journey
    return message


def test_the_trainer_gets_the_task_word_for_word_and_the_courier_its_reply(tmp_path):
    seen = []

    def say(task, handler):
        seen.append(task)
        saying(REPLY)(task, handler)

    with trainer(tmp_path, say) as path:
        assert carry(TASK, socket_path=path, expires_s=time.time() + 60) == REPLY
    assert seen == [TASK]


def test_no_trainer_and_a_socket_without_one_are_unavailable(tmp_path):
    assert code_of(tmp_path / "trainer.sock") == "unavailable"
    with trainer(tmp_path, saying(b"")) as path:
        pass
    assert code_of(path) == "unavailable"


@pytest.mark.parametrize(
    ("say", "code"),
    [
        (saying(b"nothing here\n", status=404), "unavailable"),
        (saying(b"Traceback: patient 17", status=500), "unavailable"),
        (saying(b"", status=413), "too_large"),
        (saying(b"OFD1 not quite"), "malformed"),
        (saying(REPLY[:-3]), "malformed"),
        (saying(REPLY[:-3], length=9999), "malformed"),
        (lambda _task, handler: handler.wfile.write(b"\0\0\0"), "unavailable"),
        (lambda _task, _handler: None, "unavailable"),
    ],
)
def test_whatever_a_trainer_says_that_is_no_reply_becomes_a_code(tmp_path, say, code):
    with trainer(tmp_path, say) as path:
        assert code_of(path) == code


def test_a_reply_over_the_cap_is_cut_off_there(tmp_path, monkeypatch):
    monkeypatch.setattr(carriage, "BODY_CAP_BYTES", 4 * 2**20)
    sent = []

    def say(_task, handler):
        saying(b"", length=2**40)(_task, handler)
        try:
            while True:
                sent.append(handler.wfile.write(bytes(2**20)))
        except OSError:
            return

    with trainer(tmp_path, say) as path:
        assert code_of(path) == "too_large"
    assert sum(sent) < 16 * 2**20


def test_a_task_over_the_cap_never_reaches_the_trainer(tmp_path, monkeypatch):
    monkeypatch.setattr(carriage, "BODY_CAP_BYTES", 100)
    with trainer(tmp_path, lambda *_: pytest.fail("the trainer was asked")) as path:
        assert code_of(path) == "too_large"


def test_a_trainer_that_is_slow_is_waited_for_until_the_task_expires_and_no_longer(tmp_path):
    no, expired, late = frame(b"reply", b""), threading.Event(), threading.Event()

    def slow(task, handler):
        time.sleep(0.6)
        saying(no)(task, handler)

    def slower(task, handler):
        if not expired.wait(30):
            late.set()
        with suppress(BrokenPipeError):
            saying(no)(task, handler)

    with trainer(tmp_path, slow) as path:
        assert carry(TASK, socket_path=path, expires_s=time.time() + 60) == no
    path.unlink()
    with trainer(tmp_path, slower) as path:
        assert code_of(path, left_s=0.2) == "expired"
        assert code_of(path, left_s=-1) == "expired"
        assert not late.is_set()
        expired.set()


def test_every_code_of_the_courier_is_a_code_of_the_wire():
    assert set(get_args(CarriageCode)) <= set(get_args(Code))


def test_a_message_becomes_a_reply_that_holds_one_frame(tmp_path):
    with trainer(tmp_path, saying(REPLY)) as path:
        reply = answer(a_message(), socket_path=path)
    assert reply.content["oncofed"] == ConfigRecord({"code": "ok"})
    assert reply.content["reply"]["frame"].numpy().tobytes() == REPLY
    assert len(reply.content["reply"]) == 1


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"task": ConfigRecord({"frame": b"task"})}),
        RecordDict({"task": ArrayRecord()}),
        RecordDict({"task": ArrayRecord({"frame": Array(np.zeros(3, np.float32))})}),
        RecordDict(
            {"task": ArrayRecord({"frame": Array("uint8", (2,), "numpy.ndarray", b"junk")})}
        ),
    ],
)
def test_a_message_that_is_no_task_is_answered_with_malformed(tmp_path, content):
    reply = answer(received(content), socket_path=tmp_path / "none")
    assert reply.content["oncofed"] == ConfigRecord({"code": "malformed"})
    assert reply.content["reply"]["frame"].numpy().tobytes() == b""


def test_no_text_of_an_exception_leaves_the_courier(tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise RuntimeError(json.dumps({"patient": "Erika Mustermann", "at": str(tmp_path)}))

    monkeypatch.setattr("oncofed_client.courier.app.carry", fail)
    reply = answer(a_message(), socket_path=tmp_path / "none")
    assert reply.content["oncofed"]["code"] == "unavailable"
    assert "Mustermann" not in repr(reply.content)
