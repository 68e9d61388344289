"""A trainer's service in a process of its own, and what can be seen of it from outside."""

from __future__ import annotations

import http.client
import json
import multiprocessing
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from hostile_kit import Kit
from site_builder import (
    PASSPHRASE,
    PATIENTS,
    Coordinator,
    Site,
    a_home,
    approved,
    code_of,
    joined,
    published,
    study_for,
)

from oncofed_client import consent
from oncofed_client.approval import Approved
from oncofed_client.chain import Chain
from oncofed_client.codehash import code_hash
from oncofed_client.home import Home
from oncofed_client.ledger import Ledger
from oncofed_client.trainer import refused, service
from oncofed_client.trainer.log import open_log, silence_libraries
from oncofed_client.trainer.refused import NAME
from oncofed_client.trainer.tasks import TaskDesk
from oncofed_client.trainer.training import Round
from oncofed_common.errors import OncofedError
from oncofed_common.identity import digest
from oncofed_common.tensors import pack_tensors
from oncofed_common.wire import NO_DIGEST, WIRE_VERSION, Reply, frame, read_task, seal, unframe

STALLED_S = 1.0
PAGE = b"nothing here\n"
_PLAIN = b"content-length: 13\r\ncontent-type: text/plain; charset=utf-8\r\n%b\r\n"
PAGES = {
    404: b"HTTP/1.1 404 Not Found\r\n" + _PLAIN,
    413: b"HTTP/1.1 413 Request Entity Too Large\r\n" + _PLAIN,
    400: b"HTTP/1.1 400 Bad Request\r\n" + _PLAIN,
}
REPLY_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\ncontent-type: application/octet-stream\r\n"
    b"Connection: close\r\n\r\n"
)
ROW = re.compile(
    r'\{"at_s": \d+, "code": "[a-z_]+", "digest": "[0-9a-f]{64}", "sent_digest": "[0-9a-f]{64}", '
    r'"sent_size": \d+, "size": \d+, "unlogged": 0\}'
)
MOVES = {
    ".room.tmp",
    "log.jsonl",
    "refused-head.json",
    *(f"{NAME}{end}" for end in ("", "-wal", "-shm")),
    "ledger.sqlite-shm",
}
"""Files that a refusal may change: the trainer's log, the refusals, the trial of room for them, their head,
and SQLite's marks of who reads. Of a connection that was cut they are written after the test went on."""
DRAFT = ".refused-head.json."


@dataclass(kw_only=True)
class Service:
    """The running service, the site that is attacked, and a study of it in which all goes well.

    Args:
        files: how many are open at rest.
        replies: what the site answered in the rounds of the study in which all goes well.
    """

    process: BaseProcess
    kit: Kit
    honest: Site
    files: int = 0
    replies: list[bytes] = field(default_factory=list)

    @property
    def home(self) -> Home:
        return self.kit.site.home

    def connect(self) -> socket.socket:
        line = socket.socket(socket.AF_UNIX)
        line.settimeout(90)
        line.connect(os.fspath(self.home.socket))
        return line

    def raw(self, sent: bytes, *, cut: bool = False) -> bytes:
        """Everything that comes back until the service closes the connection."""
        with closing(self.connect()) as line:
            with suppress(BrokenPipeError, ConnectionResetError):  # it may have heard enough
                line.sendall(sent)
            if cut:
                line.shutdown(socket.SHUT_WR)
            return read_to_end(line)

    def post(self, task: bytes) -> bytes:
        """The whole answer to a task, head and body."""
        head = b"POST /v1/task HTTP/1.1\r\nhost: trainer\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        return self.raw(head % len(task) + task)

    def refusals(self) -> list[dict[str, object]]:
        """The rows that were written about refusals; each holds what it may, and nothing more."""
        with closing(Chain(self.home.trainer / NAME)) as chain:
            rows = [dict(row.body) for row in chain.rows(after=1)]
        assert [row for row in rows if not ROW.fullmatch(json.dumps(row))] == []
        return rows

    def state(self) -> dict[str, str]:
        """Digests of all files of the home but those that a refusal may change."""
        found = {}
        for path in sorted(self.home.root.rglob("*")):
            moves = path.name in MOVES or path.name.startswith(DRAFT)
            if not moves and path.is_file():
                found[path.relative_to(self.home.root).as_posix()] = digest(path.read_bytes())
        return found

    def held(self) -> tuple[int, int, int]:
        """Open files, threads and resident bytes of the process."""
        process = psutil.Process(self.process.pid)
        return process.num_fds(), process.num_threads(), process.memory_info().rss

    def settled(self) -> tuple[int, int, int]:
        """As ``held``, once no more files are open than at the beginning, or after ten seconds."""
        until = time.monotonic() + 10
        while self.held()[0] > self.files and time.monotonic() < until:
            time.sleep(0.05)
        return self.held()

    def honest_round(self, weights: dict[str, np.ndarray]) -> bytes:
        """One more round as it should be: the answer's body."""
        number, coordinator = len(self.replies) + 1, self.kit.coordinator
        packed, record = pack_tensors(weights), None
        if self.replies:
            record = coordinator.record(
                self.honest,
                number=number - 1,
                reply=self.replies[-1],
                weights_after=digest(packed),
            )
        task = coordinator.task(self.honest, number=number, packed=packed, record=record)
        head, _, body = self.post(task).partition(b"\r\n\r\n")
        assert head + b"\r\n\r\n" == REPLY_HEAD % len(body)
        assert code_of(body) == "ok"
        self.replies.append(body)
        return body


@contextmanager
def serving(root: Path) -> Iterator[Service]:
    """The service over a new virtual home, with round 1 of its study answered."""
    coordinator = Coordinator(now_s=int(time.time()))
    home = joined(a_home(root), coordinator)
    site = approved(root, home, study_for(home), coordinator)
    other = study_for(
        home, training={"rounds": 8}, privacy={"noise_multiplier": 4.0, "epsilon": 3.0}
    )
    folder = published(root / "other", other, coordinator)
    with site.open:
        base = root / "other" / "base.safetensors"
        proposal = consent.propose(home, site.ledger, folder, base=base)
        consent.agree(home, site.ledger, proposal, passphrase=PASSPHRASE)
    process = multiprocessing.get_context("fork").Process(target=serve_home, args=[home])
    process.start()
    try:
        while not home.socket.exists():
            assert process.is_alive()
            time.sleep(0.02)
        first = coordinator.task(site)
        kit = Kit(
            site=site,
            coordinator=coordinator,
            stranger=Coordinator(run=coordinator.run, now_s=coordinator.now_s),
            first=first,
            reply=b"",
        )
        service = Service(process=process, kit=kit, honest=replace(site, study=other))
        kit.reply = service.post(first).partition(b"\r\n\r\n")[2]
        time.sleep(0.3)  # until that connection is gone
        service.files = service.held()[0]
        yield service
    finally:
        process.terminate()
        process.join(30)


def serve_home(home: Home) -> None:
    """The product's desk, ledger, door, spool, logs and socket; only the training is a stand-in.

    Each refusal gets its row: the allowance of rows is lifted, so that a test sees every one.
    """
    refused.AT_ONCE = 10**6
    service.STALLED_S = STALLED_S
    silence_libraries()
    with (
        Ledger.open(home) as ledger,
        open_log(
            home.trainer / "log.jsonl", head=home.refused_head_path, key=home.trainer_key()
        ) as log,
    ):
        desk = TaskDesk(
            home,
            ledger,
            isolation=lambda: "no_network",
            work=work,
            frame=lambda approved: ledger.may_be_drawn(approved.study_hash, PATIENTS),
            clock=time.time,
            log=log,
        )
        service.serve(desk.answer, path=home.socket, shared_group=None, log=log)


def work(_approved: Approved, weights: Mapping[str, Any], number: int) -> Round:
    """A small update that has nothing of the weights in it."""
    rng = np.random.default_rng(number)
    update = {name: rng.normal(0, 1e-3, w.shape).astype(np.float32) for name, w in weights.items()}
    return Round(update=update, protected=True, faults=())


def read_to_end(line: socket.socket) -> bytes:
    parts = []
    with suppress(ConnectionResetError):
        while part := line.recv(65536):
            parts.append(part)
    return b"".join(parts)


def pages(*statuses: int, last: bytes = b"Connection: close\r\n", body: bool = True) -> bytes:
    """The fixed pages in their order; the last one closes the connection."""
    said = b""
    for number, status in enumerate(statuses, 1):
        closes = last if number == len(statuses) else b""
        if status == http.client.BAD_REQUEST:
            closes = b"connection: close\r\n"
        said += PAGES[status] % closes + (PAGE if body else b"")
    return said


def refusals_of(home: Home, task: bytes, code: str) -> list[bytes]:
    """Replies, to the byte, that refuse ``task`` with ``code``: by name, or as one that nobody can read."""
    named = [(NO_DIGEST, NO_DIGEST[:32], 0)]
    with suppress(OncofedError):
        read, _ = read_task(unframe(task, cap_bytes=10**6)[0])
        named.append((read.study_hash, read.run, read.round))
    found = []
    for study_hash, run, number in named:
        reply = Reply.model_validate(
            {
                "wire_version": WIRE_VERSION,
                "task_digest": digest(task),
                "study_hash": study_hash,
                "run": run,
                "round": number,
                "site": home.site,
                "code": code,
                "payload_kind": "none",
                "update_digest": NO_DIGEST,
                "protected": 0,
                "wheel_hash": code_hash(),
                "trainer_certificate": home.trainer_certificate().as_dict(),
            }
        )
        body = frame(seal(reply, home.trainer_key()), b"")
        found.append(REPLY_HEAD % len(body) + body)
    return found
