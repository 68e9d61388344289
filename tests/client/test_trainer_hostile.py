"""Whatever is written to the trainer's socket: nothing unapproved leaves, and the service stays up.

A real service in a process of its own, over a real home with two studies. Each attack must get, to the
byte, a fixed page, a signed refusal or nothing; the home must be as it was but for one row about the refusal.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import numpy as np
import pytest
import schemathesis
from hostile_requests import CANARY, REQUESTS, Request
from hostile_service import STALLED_S, Service, pages, read_to_end, refusals_of, serving
from hostile_tasks import TASKS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from site_builder import code_of, zeros

from oncofed_client.trainer import service as product
from oncofed_client.trainer.service import create_app
from oncofed_common.identity import digest
from oncofed_common.tensors import unpack_tensors
from oncofed_common.wire import unframe

MEMORY_MOST_BYTES = 48 * 2**20
"""What all attacks together may leave behind in memory: half of the bodies that are sent, 96 MiB."""

PATIENCE_S = 90.0
"""Longer than the service waits, on the slowest machine; shorter than for ever."""

PAGE_CODES = {404: "no_route", 400: "no_http"}

lenient = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("h")) as running:
        yield running


def refused(service: Service, sent: bytes, code: str) -> None:
    """Send a task; it gets ``code`` in a reply that says nothing else, and leaves one row behind."""
    before, rows = service.state(), service.refusals()
    answer = service.post(sent)
    body = answer.partition(b"\r\n\r\n")[2]
    assert code_of(body) == code
    assert answer in refusals_of(service.home, sent, code)
    assert service.state() == before
    (row,) = (r for r in service.refusals()[len(rows) :] if r["code"] == code)
    assert codes(service, rows) == [code]
    said = (row["code"], row["size"], row["digest"], row["sent_size"], row["sent_digest"])
    assert said == (code, len(sent), digest(sent), len(body), digest(body))


def paged(service: Service, request: Request) -> None:
    """Send what is no task; it gets the fixed pages that it must, and nothing moves."""
    before, rows = service.state(), service.refusals()
    answer = service.raw(request.sent, cut=request.cut)
    assert answer == pages(*request.said, body=not request.name.startswith("method HEAD"))
    assert service.state() == before
    assert sorted(codes(service, rows)) == sorted(PAGE_CODES[status] for status in request.said)


def codes(service: Service, rows: list[dict[str, object]]) -> list[object]:
    """Codes of the rows since ``rows``.

    That somebody hung up is noted when the service sees it, perhaps of an earlier test: it does not count.
    """
    new = (row["code"] for row in service.refusals()[len(rows) :])
    return [code for code in new if code not in ("cut", "stalled")]


def test_there_are_a_hundred_attacks_and_more() -> None:
    """Each with a name and bytes of its own."""
    assert len({request.name for request in REQUESTS}) == len(REQUESTS)
    assert len({name for name, _, _ in TASKS}) == len(TASKS)
    assert len({request.sent for request in REQUESTS}) >= 150
    assert len(TASKS) >= 150


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request.name)
def test_what_is_no_task_gets_the_fixed_page(service: Service, request_: Request) -> None:
    """Or is closed without a word where it never ended."""
    paged(service, request_)


@pytest.mark.parametrize("attack", TASKS, ids=lambda attack: attack[0])
def test_a_task_that_is_not_as_it_should_be_gets_a_code(service: Service, attack) -> None:
    """The right one, signed; and nobody is charged, nothing is stored, nothing leaves."""
    _, code, make = attack
    refused(service, make(service.kit), code)


def test_a_replay_gets_the_stored_bytes_and_moves_nothing(service: Service) -> None:
    """However often."""
    before, rows = service.state(), service.refusals()
    for _ in range(5):
        assert service.post(service.kit.first).endswith(b"\r\n\r\n" + service.kit.reply)
    assert service.state() == before
    assert codes(service, rows) == []


@pytest.mark.parametrize(
    ("what", "values"),
    [
        ("pixels, and all that a float holds", [0, 31, 62, 255, 3.4e38, -3.4e38, 1e30, -1e30]),
        (
            "next to nothing, and low bits",
            [-0.0, 1e-45, -1e-40, 2e-40, *(1 + 2.0**-23 * np.arange(4))],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_weights_that_say_something_get_an_update_and_nothing_of_themselves(
    service: Service, what: str, values: list[float]
) -> None:
    """Whoever may send weights may send these; what leaves is whole units, of one size, and no echo."""
    names = sorted(zeros(service.honest.study))
    weights = dict(zip(names, np.split(np.float32(values), 2), strict=True))
    body = service.honest_round(weights)
    _, tensors = unframe(body, cap_bytes=10**6)
    schema = service.honest.study.schema_terms
    assert set(unpack_tensors(tensors, schema=schema, dtype="int32")) == set(names)
    assert all(tensor.tobytes() not in body for tensor in weights.values())


@lenient
@given(data=st.data())
def test_a_task_with_any_bytes_changed_is_refused(service: Service, data: st.DataObject) -> None:
    """Cut out, put in, or written over, wherever it is."""
    task = service.kit.second()
    where = data.draw(st.integers(0, len(task)))
    until = data.draw(st.integers(where, min(len(task), where + 40)))
    new = data.draw(st.binary(max_size=40))
    changed = task[:where] + new + task[until:]
    if changed != task:
        answer = service.post(changed)
        code = code_of(answer.partition(b"\r\n\r\n")[2])
        assert code not in ("ok", "unavailable")
        assert answer in refusals_of(service.home, changed, code)


@lenient
@given(data=st.binary(max_size=600))
def test_any_bytes_get_a_page_or_nothing(service: Service, data: bytes) -> None:
    """No word of the server under us, and nothing of what was sent."""
    answer = service.raw(data, cut=True)
    assert re.fullmatch(rb"(HTTP/1\.1 40[04][ -~]*\r\n([ -~]+\r\n)*\r\nnothing here\n)*", answer)


def described() -> dict[str, object]:
    """The API as FastAPI would describe it, were the description not off, and a body that is bytes."""
    app = create_app(lambda body: (body, 0.0), log=product.Quiet.log)
    assert app.openapi_url is None
    found = app.openapi()
    body = {
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    }
    found["paths"]["/v1/task"]["post"]["requestBody"] = body
    return found


CASES = schemathesis.openapi.from_dict(described())["/v1/task"]["POST"].as_strategy()


@lenient
@given(case=CASES)
def test_whatever_follows_from_the_description_is_refused(
    service: Service, case: schemathesis.Case
) -> None:
    """Bodies that schemathesis makes of it, on the real socket: it knows nothing else to vary."""
    asked = case.as_transport_kwargs(base_url="http://trainer")
    body = asked.get("data") or b""
    body = body.encode() if isinstance(body, str) else body
    assert isinstance(body, bytes)
    answer = service.post(body)
    code = code_of(answer.partition(b"\r\n\r\n")[2])
    assert code == "malformed"
    assert answer in refusals_of(service.home, body, code)


# Slow and cut connections


def stalled(line: socket.socket) -> bool:
    """Whether the service closes a connection in the time it has for that."""
    began = time.monotonic()
    read_to_end(line)
    return time.monotonic() - began < PATIENCE_S


HALVES = [
    b"",
    b"POST /v1/ta",
    b"POST /v1/task HTTP/1.1\r\nhost: trainer\r\n",
    b"POST /v1/task HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf",
    b"POST /v1/task HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nff\r\nhalf",
    b"GET /x HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf",
]


def test_who_stops_in_the_middle_is_cut_off(service: Service) -> None:
    """In a first request or behind one; all at once, and somebody else is answered meanwhile."""
    with ExitStack() as stack:
        lines = [stack.enter_context(service.connect()) for _ in (*HALVES, "behind one")]
        for line, half in zip(lines, HALVES, strict=False):
            line.sendall(half)
        lines[-1].sendall(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n")
        answer, whole = b"", pages(404, last=b"")
        while len(answer) < len(whole):
            answer += lines[-1].recv(1000) or whole
        assert answer == whole
        lines[-1].sendall(b"GET /x HT")
        assert service.post(b"") in refusals_of(service.home, b"", "malformed")
        assert all(stalled(line) for line in lines)


def test_who_sends_byte_after_byte_for_ever_is_cut_off(service: Service) -> None:
    """Each byte in its time, the whole never; headers, and a body."""
    with ExitStack() as stack:
        lines = [stack.enter_context(service.connect()) for _ in range(2)]
        lines[0].sendall(b"POST /v1/task HTTP/1.1\r\nx: ")
        lines[1].sendall(b"POST /v1/task HTTP/1.1\r\nhost: x\r\ncontent-length: 99999\r\n\r\n")
        until = time.monotonic() + PATIENCE_S
        while lines and time.monotonic() < until:
            for line in list(lines):
                try:
                    line.sendall(b"a")
                except OSError:
                    lines.remove(line)
            time.sleep(STALLED_S / 10)
        assert lines == []


def test_a_task_that_comes_slowly_is_answered_like_any_other(service: Service) -> None:
    """In pieces of a few bytes."""
    task = service.kit.second(site="south")
    head = b"POST /v1/task HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
    whole = head % len(task) + task
    with service.connect() as line:
        for start in range(0, len(whole), 16):
            line.sendall(whole[start : start + 16])
            time.sleep(0.0005)
        assert read_to_end(line) in refusals_of(service.home, task, "wrong_site")


def test_who_takes_no_reply_is_cut_off(service: Service) -> None:
    """However much has been asked for: what waits to be taken is held for a while, not for ever."""
    with service.connect() as line:
        line.settimeout(PATIENCE_S)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            line.sendall(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n" * 100_000)


def test_who_hangs_up_takes_nothing_along(service: Service) -> None:
    """A hundred half tasks, cut in the middle: at most, whoever comes next has to ask again."""
    task = service.kit.second(site="south")
    head = b"POST /v1/task HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(task)
    before = service.state()
    for _ in range(100):
        with service.connect() as line, suppress(BrokenPipeError):  # one connection too many
            line.sendall(head + task[: len(task) // 2])
    answer, until = b"", time.monotonic() + PATIENCE_S
    while not answer and time.monotonic() < until:
        answer = service.post(task)
    assert answer in refusals_of(service.home, task, "wrong_site")
    assert service.state() == before


def test_a_body_over_the_cap_gets_the_fixed_page(service: Service) -> None:
    """As soon as it is over it; nobody reads the rest."""
    head = b"POST /v1/task HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
    size = product.TASK_CAP_BYTES + 1
    assert service.raw(head % size + bytes(size)) == pages(413)


def test_after_all_of_it_the_service_is_what_it_was(service: Service) -> None:
    """Memory, open files and threads are after every attack as after some of each kind; no canary stays."""
    for step in (8, 1):
        for request in REQUESTS[::step]:
            service.raw(request.sent, cut=request.cut)
        for _, _, make in TASKS[::step]:
            service.post(make(service.kit))
        for number in range(24 // step):
            service.post(b"x" * 4 * 2**20 + bytes([number]))
        if step > 1:
            _, threads, memory = service.settled()
    after = service.settled()
    assert after[0] <= service.files
    assert after[1] <= max(threads, product.CONNECTIONS + 2)
    assert after[2] - memory < MEMORY_MOST_BYTES
    service.honest_round(zeros(service.honest.study))
    kept = [
        p for p in service.home.root.rglob("*") if p.is_file() and CANARY.encode() in p.read_bytes()
    ]
    assert kept == []
