"""Which bundle may run: by hash alone, and none of its code ever."""

import hashlib
import json
import subprocess
import sys

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime import run_clientapp as clientapp

from oncofed_client.courier.gate import APPROVED_FILE, approved_bundles, close_gate, is_approved

BUNDLE = b"the bytes of a bundle"


@pytest.fixture(autouse=True)
def _in_a_task_of_flower(monkeypatch):
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in ("install_from_fab", "get_load_client_app_fn"):
        monkeypatch.setattr(clientapp, name, getattr(clientapp, name))  # put back afterwards
    monkeypatch.setenv("ONCOFED_TRAINER_SOCKET", str(tmp_path / "no.sock"))
    return tmp_path


def approve(home, *bundles):
    digests = [hashlib.sha256(bundle).hexdigest() for bundle in bundles]
    (home / APPROVED_FILE).write_text(json.dumps(digests))


def code_for(bundle, *, home, refuse_all=False):
    """What Flower's client process would answer, asked in Flower's own way."""
    close_gate(home, refuse_all=refuse_all)
    clientapp.install_from_fab(bundle, skip_prompt=True)
    load = clientapp.get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)
    app = load("publisher/name", "1/../../../tmp", "0" * 64)
    content = RecordDict({"oncofed": ConfigRecord({"envelope": b"task"})})
    message = Message(content, dst_node_id=7, message_type="train")
    message.metadata.__dict__["_message_id"] = "1"
    context = Context(run_id=1, node_id=7, node_config={}, state=RecordDict(), run_config={})
    return app(message=message, context=context).content["oncofed"]["code"]


def test_an_approved_bundle_is_answered_by_the_installed_courier(home):
    approve(home, BUNDLE)
    assert code_for(BUNDLE, home=home) == "malformed"  # the courier looked: there are no weights


def test_another_bundle_is_refused_and_nothing_is_unpacked_or_put_on_the_path(home):
    approve(home, b"another bundle")
    before = list(sys.path)
    assert code_for(BUNDLE, home=home) == "not_approved"
    assert sys.path == before
    assert [path.name for path in home.iterdir()] == [APPROVED_FILE]


def test_a_withdrawn_approval_counts_from_the_next_message_on(home):
    approve(home, BUNDLE)
    assert is_approved(BUNDLE, home=home)
    approve(home)
    assert not is_approved(BUNDLE, home=home)


def test_a_task_of_another_kind_is_refused_whatever_the_bundle(home):
    approve(home, BUNDLE)
    assert code_for(BUNDLE, home=home, refuse_all=True) == "not_approved"


@pytest.mark.parametrize("text", [None, "", "{}", "[1]", '"0"', "[", '{"a": "b"}'])
def test_a_missing_or_damaged_list_approves_nothing(tmp_path, text):
    if text is not None:
        (tmp_path / APPROVED_FILE).write_text(text)
    assert approved_bundles(tmp_path) == frozenset()


KILLED = """
import os, signal, time
from pathlib import Path
from oncofed_client.courier.gate import _ForkingExecutor
executor = _ForkingExecutor(Path("."))
for how in (signal.SIGTERM, signal.SIGKILL):
    child = os.fork()
    if child == 0:
        if how == signal.SIGTERM:
            os._exit(1)  # failed by itself: Flower is told
        time.sleep(60)
    if how == signal.SIGKILL:
        os.kill(child, how)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has asked yet
    executor.reconcile()
    print("goes on", flush=True)
"""


def test_a_gate_whose_task_process_was_killed_ends(tmp_path):
    """And with it the courier, which is started anew; a task that failed by itself ends nobody else."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stdout.split("\n")[:-1]) == (1, ["goes on"])
