"""How the courier is started: its key, its environment, its command."""

import subprocess
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    load_ssh_private_key,
    load_ssh_public_key,
)
from flwr.common.constant import HEARTBEAT_MIN_INTERVAL
from flwr.proto.node_pb2 import Node
from flwr.supercore import heartbeat
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.supercore.retry import http_retry
from flwr.supernode import fleet_http_connection, start_client_internal
from flwr.supernode.fleet_http_client import FleetHttpClient

from oncofed_client.courier.node import make_node_key, node_command, node_environment
from oncofed_client.courier.supernode import _mend_flower, _PatientClient, _pushing


def test_a_node_key_is_what_flower_reads_and_new_each_time():
    private, public = make_node_key()
    key = load_ssh_private_key(private, None)
    assert isinstance(key.curve, ec.SECP384R1)
    assert load_ssh_public_key(public.encode()) == key.public_key()
    assert make_node_key()[1] != public


def environment(**changes):
    given = {"https_proxy": None, "no_proxy": []} | changes
    return node_environment(home=Path("/h"), socket_path=Path("/s/trainer.sock"), **given)


def test_the_courier_inherits_nothing_and_tells_nobody_outside(monkeypatch):
    monkeypatch.setenv("HOSPITAL_PASSWORD", "secret")
    found = environment()
    assert "HOSPITAL_PASSWORD" not in found
    assert found["FLWR_TELEMETRY_ENABLED"] == "0"
    assert found["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert found["ONCOFED_TRAINER_SOCKET"] == "/s/trainer.sock"
    assert not any("proxy" in name.lower() for name in found.keys() - {"NO_PROXY", "no_proxy"})


def test_proxies_are_given_in_both_spellings_and_loopback_goes_round_them():
    found = environment(https_proxy="http://proxy:3128", no_proxy=["pacs.local"])
    for name in ("HTTPS_PROXY", "HTTP_PROXY"):
        assert found[name] == found[name.lower()] == "http://proxy:3128"
    assert found["NO_PROXY"] == found["no_proxy"] == "127.0.0.1,localhost,pacs.local"


def test_the_command_hides_what_it_is_told_to_hide(tmp_path):
    command = node_command(
        superlink="coordinator:443", poll_s=0.5, level="landlock", home=tmp_path / "courier",
        socket_path=tmp_path / "run" / "trainer.sock", hidden=[tmp_path / "cohort"],
    )  # fmt: skip
    jail, courier = command[: command.index("--")], command[command.index("--") + 1 :]
    assert jail[:3] == [sys.executable, "-m", "oncofed_client.courier.jail"]
    assert jail[jail.index("--hidden") + 1] == str(tmp_path / "cohort")
    assert jail[jail.index("--socket-dir") + 1] == str(tmp_path / "run")
    assert courier[1:3] == ["-m", "oncofed_client.courier.supernode"]


def test_a_home_behind_a_link_is_named_as_it_is_in_the_jail_where_only_real_paths_exist(tmp_path):
    for name in ("real/courier", "real/run"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    home, socket_path = tmp_path / "link/courier", tmp_path / "link/run/trainer.sock"
    command = node_command(
        superlink="c:1", poll_s=1.0, level="none", home=home, socket_path=socket_path, hidden=[]
    )
    found = node_environment(home=home, socket_path=socket_path, https_proxy=None, no_proxy=[])
    assert "/link/" not in " ".join([*command, *found.values()])
    assert found["ONCOFED_TRAINER_SOCKET"] == str(tmp_path / "real/run/trainer.sock")


def test_a_piece_that_is_stored_already_ends_no_reply():
    """Its first answer was lost on the way; the repetition is told that nothing was stored."""
    pushed = []

    def push(request):
        pushed.append((request.object_id, request.object_content))
        return SimpleNamespace(stored=False)

    _pushing(push, Node(node_id=1), 1, "session")("name", b"piece")
    assert pushed == [("name", b"piece")]


class Doorkeeper:
    """A SuperLink that refuses so many times by this status, and then lets in."""

    def __init__(self, monkeypatch, *, times, status):
        self.asked, self.times, self.status, self.slept = 0, times, status, []
        monkeypatch.setattr(FleetHttpClient, "ActivateNode", self._answer)
        clock = SimpleNamespace(monotonic=lambda: sum(self.slept), sleep=self.slept.append)
        monkeypatch.setattr("oncofed_client.courier.supernode.time", clock)

    def _answer(self, request):
        self.asked += 1
        if self.asked > self.times:
            return "in"
        response = httpx.Response(self.status, request=httpx.Request("POST", "https://c/"))
        raise httpx.HTTPStatusError("no", request=response.request, response=response)


def knock():
    return object.__new__(_PatientClient).ActivateNode("who I am")


def test_a_successor_knocks_until_its_predecessor_is_taken_for_gone(monkeypatch):
    door = Doorkeeper(monkeypatch, times=20, status=412)
    assert knock() == "in"
    assert (door.asked, door.slept) == (21, [1.0] * 20)


def test_a_node_that_is_never_let_in_says_so_in_the_end(monkeypatch):
    """By then no predecessor of it can be taken for alive: it is somebody else, or a revoked site."""
    door = Doorkeeper(monkeypatch, times=1000, status=412)
    with pytest.raises(httpx.HTTPStatusError):
        knock()
    assert sum(door.slept) > 2 * HEARTBEAT_MIN_INTERVAL


@pytest.mark.parametrize("status", [400, 401, 403, 500, 503])
def test_any_other_answer_is_flowers_own_business_at_once(monkeypatch, status):
    door = Doorkeeper(monkeypatch, times=1, status=status)
    with pytest.raises(httpx.HTTPStatusError):
        knock()
    assert (door.asked, door.slept) == (1, [])


def test_the_courier_notes_every_answer_and_nothing_else(monkeypatch, tmp_path):
    """Of whichever call, so also the heartbeat's while a trainer works for hours."""
    heard, answers = tmp_path / "heard", [httpx.ConnectError("no"), "an answer"]

    def ask(_self, **_request):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(FleetHttpClient, "_unary_unary", ask)
    monkeypatch.setattr(_PatientClient, "heard", heard, raising=False)
    client = object.__new__(_PatientClient)
    with pytest.raises(httpx.ConnectError):
        client.SendNodeHeartbeat("alive")
    assert not heard.exists()
    assert client.SendNodeHeartbeat("alive") == "an answer"
    assert heard.stat().st_mode & 0o777 == 0o600


def test_flower_is_mended_to_try_again_behind_a_proxy_and_to_ask_more_often(monkeypatch, tmp_path):
    monkeypatch.setattr(
        http_retry, "_RETRYABLE_TRANSPORT_ERRORS", http_retry._RETRYABLE_TRANSPORT_ERRORS
    )
    slept = []
    monkeypatch.setattr(start_client_internal, "time", start_client_internal.time)
    before = fleet_http_connection.make_push_object_fn_protobuf
    monkeypatch.setattr(fleet_http_connection, "make_push_object_fn_protobuf", before)
    monkeypatch.setattr("oncofed_client.courier.supernode.time.sleep", slept.append)
    for module in (fleet_http_connection, heartbeat):
        kept = module.HEARTBEAT_DEFAULT_INTERVAL
        monkeypatch.setattr(module, "HEARTBEAT_DEFAULT_INTERVAL", kept)
    monkeypatch.setattr(http_retry, "MAX_RETRY_DELAY", http_retry.MAX_RETRY_DELAY)
    monkeypatch.setattr(fleet_http_connection, "FleetHttpClient", FleetHttpClient)
    monkeypatch.setattr(start_client_internal, "pull_objects", pull_objects)
    heard = tmp_path / "heard"
    monkeypatch.setattr(_PatientClient, "heard", heard, raising=False)
    _mend_flower(poll_s=0.5, heard=heard)
    assert httpx.ProxyError in http_retry._RETRYABLE_TRANSPORT_ERRORS
    invoker = http_retry.make_simple_http_retry_invoker()  # reads the list when it is made
    assert max(islice(invoker.wait_gen_factory(), 20)) == 5  # seconds, however long nobody answers
    start_client_internal.time.sleep(3)
    start_client_internal.time.sleep(0.1)
    assert slept == [0.5, 0.1]
    assert not heard.exists()  # to wait is to hear nothing
    assert fleet_http_connection.make_push_object_fn_protobuf is _pushing
    assert fleet_http_connection.FleetHttpClient is _PatientClient
    mended = start_client_internal.pull_objects
    assert (mended.func, mended.keywords) == (pull_objects, {"backoff_cap": 2})  # seconds
    # a successor is let in twice so long after the last sign of one that was killed
    assert fleet_http_connection.HEARTBEAT_DEFAULT_INTERVAL == HEARTBEAT_MIN_INTERVAL
    assert heartbeat.HEARTBEAT_DEFAULT_INTERVAL == HEARTBEAT_MIN_INTERVAL


@pytest.mark.parametrize("module", ["node", "jail", "carry", "app", "gate"])
def test_the_courier_loads_no_model_and_nothing_that_reads_a_scan(module):
    program = (
        f"import sys, oncofed_client.courier.{module};"
        "print([m for m in ('torch', 'nibabel', 'monai', 'oncofed_client.trainer') if m in sys.modules],"
        "'flwr' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    knows_flower = module in ("app", "gate")
    assert done.stdout.split() == ["[]", str(knows_flower)]
