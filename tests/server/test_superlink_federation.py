"""Coordinator and two hospitals as real processes: TLS, node keys, jails, gates, a task and its reply."""

import datetime
import hashlib
import io
import json
import ssl
import subprocess
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from fault_proxy import Link
from flwr.proto.control_pb2 import ListRunsRequest
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from oncofed_client.courier.jail import jail_level
from oncofed_client.courier.node import make_node_key, node_command, node_environment
from oncofed_common.errors import SystemRefusal
from oncofed_server import control, superlink
from oncofed_server.bundle import bundle_hash, thin_bundle

HERE = Path(__file__).parent
TRAINER = HERE.parent / "client" / "stand_in_trainer.py"
BUNDLE = thin_bundle(server_app="conducting:app")
PATIENCE_S = 240.0


def hostile_bundle():
    """The same server side; at the sites, code of its own, also under the name of the installed one."""
    plant = "import os, pathlib; pathlib.Path(os.environ['HOME'], 'planted').touch()\n"
    evil = plant + "from flwr.clientapp import ClientApp\napp = ClientApp()\n"
    files = {
        "evil.py": evil,
        "oncofed_client/__init__.py": plant,
        "oncofed_client/courier/__init__.py": plant,
        "oncofed_client/courier/app.py": evil,
        "sitecustomize.py": plant,
    }
    with zipfile.ZipFile(
        io.BytesIO(thin_bundle(server_app="conducting:app", client_app="evil:app"))
    ) as thin:
        files |= {
            name: thin.read(name).decode() for name in thin.namelist() if "CONTENT" not in name
        }
    rows = [
        f"{name},{hashlib.sha256(text.encode()).hexdigest()},{8 * len(text)}"
        for name, text in files.items()
    ]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, text in (files | {".info/CONTENT": "\n".join(rows)}).items():
            archive.writestr(name, text)
    return packed.getvalue()


@dataclass(frozen=True)
class Federation:
    home: Path
    sites: dict
    running: superlink.Running

    def conduct(self, bundle, run, *, patience_s=PATIENCE_S):
        """Submit a run and return what its round loop wrote down."""
        run_id = superlink.submit(self.running.link, bundle, run=run)
        path, ends_s = self.home / f"said-{run}.json", time.monotonic() + patience_s
        while not path.exists():
            assert time.monotonic() < ends_s, superlink.run_status(self.running.link, run_id)
            time.sleep(0.05)
        return json.loads(path.read_text())


@pytest.fixture(scope="module")
def federation():
    with running() as found:
        yield found


@contextmanager
def running(*, over=None, **environment):
    """Two sites and their coordinator; ``over``: a link by which the sites call it."""
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fed-")))
        home = root / "coordinator"
        home.mkdir()
        superlink.prepare(home, names=["localhost"], now=datetime.datetime.now(datetime.UTC))
        sites, keys = {}, {}
        for name in ("north", "south"):
            sites[name] = root / name
            for part in ("courier", "run", "trainer"):
                (root / name / part).mkdir(parents=True)
            (root / name / "trainer/key.pem").write_text("a key")
            private, keys[name] = make_node_key()
            (root / name / "courier/node_key").write_bytes(private)
            (root / name / "courier/ca.pem").write_bytes((home / "tls/ca.pem").read_bytes())
            argv = [sys.executable, str(TRAINER), str(root / name / "run/trainer.sock")]
            start(stack, [*argv, str(root / name / "trainer/key.pem")], root / name / "trainer.log")
        approve(sites["north"], BUNDLE)
        approve(sites["south"])
        running = superlink.start(
            home=home, host="127.0.0.1", port=None, within_s=PATIENCE_S,
            environment=superlink.link_environment(home) | {"PYTHONPATH": str(HERE)} | environment,
        )  # fmt: skip
        stack.callback(running.stop, grace_s=0.0)
        superlink.sync_nodes(running.link, keys)
        port = running.link.port
        if over is not None:
            over.target_port = port
            port = stack.enter_context(over.up()).port
        for site in sites.values():
            command = node_command(
                superlink=f"localhost:{port}", poll_s=0.25, level=jail_level(),
                home=site / "courier", socket_path=site / "run/trainer.sock",
                hidden=[site / "trainer", home],
            )  # fmt: skip
            settings = node_environment(
                home=site / "courier", socket_path=site / "run/trainer.sock",
                https_proxy=None, no_proxy=[],
            )  # fmt: skip
            start(stack, command, site / "courier/log", env=settings)
        yield Federation(home=home, sites=sites, running=running)


def start(stack, argv, log, **settings):
    output = stack.enter_context(log.open("wb"))
    process = stack.enter_context(
        subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT, **settings)
    )
    stack.callback(process.kill)


def approve(site, *bundles):
    digests = [bundle_hash(bundle) for bundle in bundles]
    (site / "courier" / "approved_bundles.json").write_text(json.dumps(digests))


def test_a_site_that_approved_the_bundle_answers_every_round_and_another_says_why_not(federation):
    said = federation.conduct(BUNDLE, "aa")
    assert said["online"] == ["north", "south"]
    assert said["rounds"] == [
        {"north": ["ok", f"answer to north {n}", [2 * n] * 3], "south": ["not_approved"]}
        for n in (1, 2)
    ]
    assert min(said["seconds"]) < 12  # the bar for a round's overhead; 1 to 2.5 s where it is calm


def test_a_hostile_bundle_gets_no_answer_and_none_of_its_code_runs_or_is_unpacked(federation):
    bundle = hostile_bundle()
    said = federation.conduct(bundle, "bb")
    assert said["rounds"] == [{"north": ["not_approved"], "south": ["not_approved"]}] * 2
    for site in federation.sites.values():
        left = {path.name for path in (site / "courier").rglob("*")}
        assert not left & {"planted", "evil.py", "oncofed_client", "apps"}
        assert bundle_hash(bundle) in (site / "courier/log").read_text()
    assert "evil.py" in {path.name for path in federation.home.rglob("*")}  # Flower did unpack it


def test_who_ends_what_a_dead_round_loop_left_frees_the_nodes_that_wait_for_what_never_comes(
    federation, monkeypatch
):
    """Their round loop hangs here and still says that it lives: Flower by itself would wait for hours."""
    link = federation.running.link
    logs = [site / "courier/log" for site in federation.sites.values()]
    known = [log.read_text().count("Receiving: ") for log in logs]
    hanging = superlink.submit(link, thin_bundle(server_app="conducting:hanging"), run="cc")
    ends_s = time.monotonic() + PATIENCE_S
    while any(
        log.read_text().count("Receiving: ") == n for log, n in zip(logs, known, strict=True)
    ):
        assert time.monotonic() < ends_s
        time.sleep(0.05)
    assert superlink.stop_others(link, "c", but=0) == []
    assert superlink.stop_others(link, "cc", but=hanging) == []
    with control._control(link) as asked:
        listed = asked.ListRuns(ListRunsRequest())
    assert superlink.stop_others(link, "cc", but=0) == [hanging]
    assert superlink.stop_others(link, "cc", but=0) == []
    with monkeypatch.context() as patch:  # it ends by itself between the two questions
        patch.setattr(control._Control, "ListRuns", lambda *_: listed)
        assert superlink.stop_others(link, "cc", but=0) == [hanging]
    said = federation.conduct(BUNDLE, "cc")
    assert [got["north"][0] for got in said["rounds"]] == ["ok", "ok"]


@pytest.mark.faults
def test_a_long_reply_comes_whole_over_a_link_that_is_cut_more_often_than_it_takes():
    """2 MB take 4 s at 4 Mbit/s, and nothing lasts longer than 2: what arrived is not sent again."""
    weights, mbit = 500_000, 1e6 / 8
    link = Link(target_port=0, bytes_per_s=4 * mbit, delay_s=0.05, reset_every_s=2.0)
    with running(over=link, TEST_WEIGHTS=str(weights)) as found:
        said = found.conduct(BUNDLE, "aa", patience_s=1000.0)  # a round takes 20 to 50 s, or longer
    assert [got["north"] for got in said["rounds"]] == [
        ["ok", f"answer to north {n}", [2 * n] * 3] for n in (1, 2)
    ]
    assert link.resets > 4
    assert link.carried > 2 * 4 * weights  # what is the same twice travels once


def test_nobody_takes_tasks_from_superlink_without_its_secret(federation):
    verify = ssl.create_default_context(cafile=str(federation.running.link.ca_path))
    address = f"https://127.0.0.1:{federation.running.link.port}/v1/runtime/acquire-task"
    headers = dict.fromkeys(("content-type", "accept"), PROTOBUF_MEDIA_TYPE)
    with httpx.Client(verify=verify, trust_env=False) as client:
        assert client.post(address, headers=headers).status_code == httpx.codes.UNAUTHORIZED


@pytest.mark.parametrize("host", ["nonsense", "203.0.113.7", "::z"])
def test_a_host_that_this_machine_does_not_have_is_refused_at_once(tmp_path, host):
    with pytest.raises(SystemRefusal) as caught:
        superlink.start(home=tmp_path, host=host, port=None, environment={}, within_s=1.0)
    assert caught.value.code == "bad_host"


def test_a_port_in_use_is_refused_at_once(federation):
    with pytest.raises(SystemRefusal) as caught:
        superlink.start(
            home=federation.home, host="127.0.0.1", port=federation.running.link.port,
            environment={}, within_s=5.0,
        )  # fmt: skip
    assert caught.value.code == "port_in_use"


def test_a_site_that_is_revoked_is_unknown_to_superlink_from_then_on(federation):
    link, home = federation.running.link, federation.home
    before = superlink.read_nodes(home)
    _, extra = make_node_key()
    keys = {site: public_line(federation.sites[site]) for site in federation.sites}
    ids = superlink.sync_nodes(link, keys | {"east": extra})
    assert {node: site for site, node in ids.items() if site != "east"} == before
    assert superlink.read_nodes(home)[ids["east"]] == "east"
    assert superlink.sync_nodes(link, keys) == {site: node for node, site in before.items()}
    assert "east" not in superlink.read_nodes(home).values()
    assert superlink.sync_nodes(link, keys | {"east": make_node_key()[1]})["east"] != ids["east"]
    superlink.sync_nodes(link, keys)


def test_two_who_register_a_site_at_once_register_it_once(federation):
    """``oncofed-coordinator start`` does it when the roster changes, and ``run`` before it hands over."""
    link = federation.running.link
    keys = {site: public_line(federation.sites[site]) for site in federation.sites}
    keys |= {"east": make_node_key()[1], "west": make_node_key()[1]}
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: superlink.sync_nodes(link, keys), range(8)))
    assert all(ids == found[0] for ids in found)
    superlink.sync_nodes(link, {site: keys[site] for site in federation.sites})


def public_line(site):
    from cryptography.hazmat.primitives import serialization as form

    key = form.load_ssh_private_key((site / "courier/node_key").read_bytes(), None)
    return key.public_key().public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH).decode()
