"""The trainer's socket answers tasks with replies and everything else with one fixed page."""

from __future__ import annotations

import http.client
import logging
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oncofed_client.trainer import service
from oncofed_common.errors import SystemRefusal


class Running:
    """A served socket in this process; ``said`` is what it answers."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = folder / "t.sock"
        self.bodies: list[bytes] = []
        self.leaves_at_s = 0.0
        self.work: Callable[[bytes], None] = lambda body: None
        self._servers: list[uvicorn.Server] = []
        start = uvicorn.Server.run

        def remember(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
            self._servers.append(server)
            start(server, sockets=sockets)

        monkeypatch.setattr(uvicorn.Server, "run", remember)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        while not self.path.exists():
            time.sleep(0.01)

    def _serve(self) -> None:
        service.serve(self._answer, path=self.path, shared_group=None, log=logging.Logger("test"))

    def _answer(self, body: bytes) -> tuple[bytes, float]:
        self.bodies.append(body)
        self.work(body)
        if body == b"explode":
            raise RuntimeError("canary: Jane Doe")
        return b"reply to " + body[:10], self.leaves_at_s

    def raw(self, data: bytes) -> bytes:
        with closing(socket.socket(socket.AF_UNIX)) as line:
            line.settimeout(5)
            line.connect(os.fspath(self.path))
            line.sendall(data)
            line.shutdown(socket.SHUT_WR)
            parts = []
            try:
                while part := line.recv(65536):
                    parts.append(part)
            except (ConnectionResetError, TimeoutError):
                parts.append(b"")
            return b"".join(parts)

    def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes, dict[str, str]]:
        line = http.client.HTTPConnection("trainer", timeout=5)
        line.sock = socket.socket(socket.AF_UNIX)
        line.sock.connect(os.fspath(self.path))
        with closing(line):
            line.request(method, path, body)
            answer = line.getresponse()
            return answer.status, answer.read(), dict(answer.getheaders())

    def wait_until_empty(self) -> None:
        """Until nothing is worked at and nobody is connected: a test before may have left both."""
        states = [server.server_state for server in self._servers]
        give_up_at_s = time.time() + 30
        while any(state.tasks or state.connections for state in states):
            assert time.time() < give_up_at_s
            time.sleep(0.01)

    def stop(self) -> None:
        for server in self._servers:
            server.should_exit = True
        self._thread.join()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        made = Running(tmp_path_factory.mktemp("s"), patch)
        yield made
        made.stop()


def test_a_task_gets_its_reply(running: Running) -> None:
    """Bytes in, bytes out, and no header that says what serves them."""
    status, body, headers = running.ask("POST", "/v1/task", b"task")
    assert (status, body) == (200, b"reply to task")
    assert set(headers) <= {"content-length", "content-type", "connection"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/redoc"),
        ("GET", "/v1/task"),
        ("PUT", "/v1/task"),
        ("DELETE", "/v1/task"),
        ("POST", "/v1/task/"),
        ("POST", "/v1/files"),
        ("GET", "/v1/../etc/passwd"),
        ("GET", "/v1/task?path=/etc/passwd"),
        ("OPTIONS", "/v1/task"),
        ("TRACE", "/v1/task"),
        ("HEAD", "/metrics"),
    ],
)
def test_every_other_request_gets_the_same_page(running: Running, method: str, path: str) -> None:
    """No route can be told from another that does not exist."""
    status, body, headers = running.ask(method, path)
    assert status == 404
    assert body in (service.NOTHING_HERE, b"")
    assert set(headers) <= {"content-length", "content-type", "connection"}


def test_an_exception_shows_nothing(running: Running) -> None:
    """Not its text, not its class."""
    status, body, _ = running.ask("POST", "/v1/task", b"explode")
    assert (status, body) == (500, service.NOTHING_HERE)


def test_a_body_over_the_cap_is_cut_off(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anybody looks at it."""
    monkeypatch.setattr(service, "TASK_CAP_BYTES", 1000)
    before = len(running.bodies)
    status, _, _ = running.ask("POST", "/v1/task", bytes(1001))
    assert status == 413
    assert len(running.bodies) == before


def test_a_reply_waits_for_its_slot(running: Running) -> None:
    """Not a moment sooner, however fast the work was."""
    running.leaves_at_s = time.time() + 2.0
    running.ask("POST", "/v1/task", b"slow")
    assert time.time() >= running.leaves_at_s
    running.leaves_at_s = 0.0


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=400))
def test_broken_bytes_leave_the_service_standing(running: Running, data: bytes) -> None:
    """Whatever is written to the socket, the next task is answered."""
    answer = running.raw(data)
    assert b"Traceback" not in answer
    assert b"uvicorn" not in answer.lower()
    assert running.ask("POST", "/v1/task", b"task")[1] == b"reply to task"


def test_what_is_no_request_gets_the_same_page(running: Running) -> None:
    """The server under us has words of its own for it."""
    answer = running.raw(b"GARBAGE\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert service.NOTHING_HERE in answer
    assert b"Invalid" not in answer


def lines(running: Running, count: int) -> list[socket.socket]:
    made = []
    for _ in range(count):
        line = socket.socket(socket.AF_UNIX)
        line.settimeout(10)
        line.connect(os.fspath(running.path))
        made.append(line)
    return made


def test_a_connection_too_many_is_closed_without_a_word(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And makes room again when it goes."""
    running.wait_until_empty()
    monkeypatch.setattr(service, "CONNECTIONS", 3)
    with ExitStack() as stack:
        for line in lines(running, 3):
            stack.enter_context(line)
            line.sendall(b"POST /v1/task HTTP/1.1\r\n")
        (more,) = lines(running, 1)
        with more:
            assert closed(more)
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            assert running.ask("POST", "/v1/task", b"task")[0] == 200
        except (ConnectionError, http.client.HTTPException):
            continue
        return
    pytest.fail("no room again")


def closed(line: socket.socket) -> bool:
    try:
        return line.recv(100) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /v1/task HT",
        b"POST /v1/task HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf",
    ],
)
def test_who_sends_no_whole_request_is_cut_off(
    running: Running, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """Else a few that only wait would keep the door shut."""
    monkeypatch.setattr(service, "STALLED_S", 0.1)
    (line,) = lines(running, 1)
    with line:
        line.sendall(sent)
        assert closed(line)


def test_who_waits_for_a_slot_is_not_cut_off(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long that is."""
    monkeypatch.setattr(service, "STALLED_S", 0.3)
    running.leaves_at_s = time.time() + 2.0
    assert running.ask("POST", "/v1/task", b"slow")[0] == 200
    running.leaves_at_s = 0.0


def test_the_socket_is_the_owners_alone(running: Running) -> None:
    """Mode 0600."""
    assert stat.S_IMODE(running.path.stat().st_mode) == 0o600


def test_a_second_trainer_on_one_socket_is_refused(running: Running) -> None:
    """The first one goes on."""
    with pytest.raises(SystemRefusal) as refused:
        service.serve(
            lambda body: (body, 0.0),
            path=running.path,
            shared_group=None,
            log=logging.Logger("test"),
        )
    assert refused.value.code == "socket_in_use"
    assert running.ask("POST", "/v1/task", b"task")[0] == 200


def test_a_socket_left_by_a_dead_trainer_is_replaced(tmp_path: Path) -> None:
    """Nobody has to clean up after a crash."""
    with closing(socket.socket(socket.AF_UNIX)) as dead:
        dead.bind(os.fspath(tmp_path / "t.sock"))
    with closing(service._listen(tmp_path / "t.sock", shared_group=os.getgid())) as listener:
        assert stat.S_IMODE((tmp_path / "t.sock").stat().st_mode) == 0o660
        assert listener.getsockname() == os.fspath(tmp_path / "t.sock")


class Training:
    """A task that is worked at until it is let go; it begins when what others asked has left."""

    def __init__(self, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        running.wait_until_empty()
        self.over, self.begun = threading.Event(), threading.Semaphore(0)
        monkeypatch.setattr(running, "work", self._work)

    def _work(self, body: bytes) -> None:
        if body == b"train":
            self.begun.release()
            assert self.over.wait(30)

    def __enter__(self) -> Training:
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()


TRAIN = b"POST /v1/task HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\ntrain"


def asked_and_left(running: Running, training: Training, count: int) -> None:
    """Ask for the same training ``count`` times, and hang up as soon as each is worked at."""
    for _ in range(count):
        (line,) = lines(running, 1)
        with line:
            line.sendall(TRAIN)
            assert training.begun.acquire(timeout=10)


def test_who_asks_again_and_hangs_up_does_not_learn_when_training_ends(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal leaves at once however many wait for one who trains: no thread is waited for."""
    with Training(running, monkeypatch) as training:
        asked_and_left(running, training, service.CONNECTIONS // 2)
        assert running.ask("POST", "/v1/task", b"task")[0] == 200
        assert not training.over.is_set()


def test_a_request_counts_until_its_reply_has_left(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though nobody listens any more, and training ended before: else the door would tell that moment."""
    with Training(running, monkeypatch) as training:
        monkeypatch.setattr(service, "CONNECTIONS", 3)
        asked_and_left(running, training, 3)
        running.leaves_at_s = leaves_at_s = time.time() + 2.0
        training.over.set()
        for _ in range(20):
            (more,) = lines(running, 1)
            with more:
                assert closed(more) or time.time() > leaves_at_s - 0.5
            time.sleep(0.05)
    running.leaves_at_s = 0.0
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            assert running.ask("POST", "/v1/task", b"task")[0] == 200
        except (ConnectionError, http.client.HTTPException):
            continue
        return
    pytest.fail("no room again")


def test_all_requests_together_have_one_room(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes when it is full is sent away; it is free again as soon as one is answered."""
    monkeypatch.setattr(service, "ROOM_BYTES", 10)
    with Training(running, monkeypatch) as training:
        (line,) = lines(running, 1)
        with line:
            line.sendall(TRAIN)
            assert training.begun.acquire(timeout=10)
            assert running.ask("POST", "/v1/task", b"six  b")[:2] == (413, service.NOTHING_HERE)
            assert running.ask("POST", "/v1/task", b"five5")[0] == 200
            training.over.set()
            assert line.recv(1000).startswith(b"HTTP/1.1 200 OK")
    assert running.ask("POST", "/v1/task", b"ten bytes!")[0] == 200
