"""The health check believes an answer and nothing less."""

import datetime
import http.server
import importlib.util
import json
import os
import socket
import ssl
import threading
import time

import pytest
from deploy_manifests import DEPLOY

from oncofed_common.durable import locked
from oncofed_server.certificates import make_certificates

_SPEC = importlib.util.spec_from_file_location("healthcheck", DEPLOY / "healthcheck.py")
healthcheck = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(healthcheck)

WELL = b"HTTP/1.1 404 Not Found\r\n\r\n"
LONG_AGO_S = 10_000
LISTENING = "   0: 0100007F:23F1 00000000:0000 0A 00000000:00000000\n"
CONNECTED = "   1: 0100007F:23F1 0100007F:A1B2 01 00000000:00000000\n"
ELSEWHERE = "   2: 0B00007F:8235 00000000:0000 0A 00000000:00000000\n"
HEADER = "  sl  local_address rem_address   st tx_queue rx_queue\n"


def _aged(path, age_s):
    """The file, as if it had been written so long ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    then_s = time.time() - age_s
    os.utime(path, (then_s, then_s))
    return path


def _hear(home, *, age_s=0):
    _aged(home / "courier" / "heard", age_s)


@pytest.fixture
def processes(tmp_path, monkeypatch):
    """The kernel's list of processes, in which SuperExec runs, and of locks, in which there is none."""
    folder = tmp_path / "proc"
    (folder / "17").mkdir(parents=True)
    (folder / "17" / "cmdline").write_bytes(
        b"python\0-c\0from flwr import flower_superexec as main\0"
    )
    (folder / "locks").write_text("")
    monkeypatch.setattr(healthcheck, "PROCESSES", folder)
    return folder


def _silent(role, home, *, port=0, rows=LISTENING):
    table = home / "tcp"
    table.write_text(HEADER + rows)
    return healthcheck.silent_parts(role, home=home, port=port, connections=table)


def _serve(listener, answer):
    """Answer every caller of ``listener`` with these bytes until it is closed."""

    def loop():
        while True:
            try:
                caller, _ = listener.accept()
            except OSError:
                return
            with caller:
                caller.recv(1024)
                caller.sendall(answer)

    threading.Thread(target=loop, daemon=True).start()


@pytest.fixture
def trainer_socket(tmp_path, request):
    """A unix socket in a home that answers as told by the test's parameter."""
    (tmp_path / "run").mkdir()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = os.open(tmp_path / "run", os.O_RDONLY)
    listener.bind(f"/proc/self/fd/{folder}/trainer.sock")  # a pytest path may be too long for one
    listener.listen()
    _serve(listener, request.param)
    yield tmp_path
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    os.close(folder)


@pytest.mark.parametrize("trainer_socket", [b"HTTP/1.1 404 Not Found\r\n\r\n"], indirect=True)
def test_a_service_that_answers_strangers_with_its_one_page_is_well(trainer_socket):
    _hear(trainer_socket)
    assert _silent("trainer", trainer_socket) == []
    assert _silent("courier", trainer_socket) == []


@pytest.mark.parametrize(
    "trainer_socket",
    [b"", b"HTTP/1.1 503 Service Unavailable\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"],
    indirect=True,
)
def test_a_service_that_says_nothing_or_something_else_is_not_well(trainer_socket):
    assert _silent("trainer", trainer_socket) == ["service"]


def test_a_socket_that_is_not_there_is_no_service(tmp_path):
    assert _silent("trainer", tmp_path) == ["service"]


@pytest.mark.parametrize("rows", ["", CONNECTED, ELSEWHERE], ids=["none", "connected", "elsewhere"])
@pytest.mark.parametrize("trainer_socket", [b"HTTP/1.1 404 Not Found\r\n\r\n"], indirect=True)
def test_a_node_that_does_not_listen_on_loopback_is_missed(trainer_socket, rows):
    _hear(trainer_socket)
    assert _silent("courier", trainer_socket, rows=rows) == ["node"]


@pytest.mark.parametrize("trainer_socket", [WELL], indirect=True)
def test_a_courier_whom_the_coordinator_has_not_answered_for_a_while_is_not_well(trainer_socket):
    assert _silent("courier", trainer_socket) == ["coordinator"]
    _hear(trainer_socket, age_s=healthcheck.HEARD_WITHIN_S + 5)
    assert _silent("courier", trainer_socket) == ["coordinator"]
    _hear(trainer_socket, age_s=healthcheck.HEARD_WITHIN_S - 10)
    assert _silent("courier", trainer_socket) == []


@pytest.mark.parametrize(
    ("done", "age_s", "began_s", "silent"),
    [
        (3, 10, LONG_AGO_S, []),
        (3, 5000, LONG_AGO_S, ["training"]),
        (6, 5000, LONG_AGO_S, []),
        (3, 5000, 60, []),
    ],
    ids=["goes on", "stands still", "has ended", "of a trainer before this one"],
)
@pytest.mark.parametrize("trainer_socket", [WELL], indirect=True)
def test_a_round_that_stands_still_is_noticed(trainer_socket, done, age_s, began_s, silent):
    told = _aged(trainer_socket / "trainer" / "progress.json", 0)
    told.write_text(json.dumps({"what": "round 1", "done": done, "total": 6}))
    _aged(told, age_s)
    _aged(trainer_socket / "trainer" / "state.json", began_s)
    assert _silent("trainer", trainer_socket) == silent


class _Health(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_): ...


@pytest.fixture
def superlink(tmp_path, request):
    """A TLS server on loopback with a coordinator's certificates; its home and port."""
    now = datetime.datetime.now(datetime.UTC)
    make_certificates(tmp_path / "tls", names=["coordinator"], now=now)
    make_certificates(tmp_path / "stranger" / "tls", names=["coordinator"], now=now)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls" / "server.pem", tmp_path / "tls" / "server.key")
    server = http.server.HTTPServer(("127.0.0.1", 0), _Health)
    server.handle_error = lambda *_: None  # a client that hangs up is what the test is about
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield tmp_path, server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_superlink_under_the_coordinator_s_own_authority_is_well(superlink, processes):
    home, port = superlink
    assert _silent("coordinator", home, port=port) == []


def test_a_superlink_without_superexec_can_begin_no_run(superlink, processes):
    home, port = superlink
    (processes / "17" / "cmdline").write_bytes(b"python\0")
    assert _silent("coordinator", home, port=port) == ["superexec"]


@pytest.mark.parametrize(
    ("held", "age_s", "silent"),
    [(True, 60, []), (True, 10_000, ["run"]), (False, 10_000, [])],
    ids=["goes on", "stands still", "nobody conducts it"],
)
def test_a_run_whose_round_does_not_end_is_noticed(superlink, processes, held, age_s, silent):
    home, port = superlink
    run = home / "runs" / "1f"
    log = _aged(run / "log.jsonl", age_s)
    (run / "run.json").write_text(json.dumps({"study_hash": "ab"}))
    study = home / "studies" / "ab" / "study.toml"
    study.parent.mkdir(parents=True)
    study.write_text("[aggregation]\nround_deadline_s = 600\n")
    inode = _aged(run / "run.lock", 0).stat().st_ino
    if held:
        (processes / "locks").write_text(f"1: FLOCK  ADVISORY  WRITE 17 fe:00:{inode} 0 EOF\n")
    assert log.exists()
    assert _silent("coordinator", home, port=port) == silent


def test_a_lock_that_a_process_holds_is_seen_in_the_kernel_s_own_list(tmp_path):
    with locked(tmp_path / "run.lock", wait=False, busy="held"):
        assert healthcheck._is_held(tmp_path / "run.lock")
    assert not healthcheck._is_held(tmp_path / "run.lock")


def test_a_superlink_under_another_authority_is_not_ours(superlink, processes):
    home, port = superlink
    assert _silent("coordinator", home / "stranger", port=port) == ["superlink"]


def test_a_port_that_nobody_listens_on_is_no_superlink(tmp_path, processes):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    make_certificates(tmp_path / "tls", names=[], now=datetime.datetime.now(datetime.UTC))
    assert _silent("coordinator", tmp_path, port=port) == ["superlink"]


@pytest.mark.parametrize("arguments", [[], ["nginx"], ["trainer", "courier"]])
def test_a_role_that_there_is_not_is_a_usage_error(arguments, capsys):
    assert healthcheck.main(arguments) == 2
    assert "usage" in capsys.readouterr().out


def test_a_part_that_is_silent_makes_the_container_unhealthy(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(healthcheck, "HOME", tmp_path)
    assert healthcheck.main(["trainer"]) == 1
    assert capsys.readouterr().out == "service: silent\n"
