"""Which app bundle may run at this hospital: none of its code, ever; and only by an approved name.

Flower hands the coordinator's bundle to every site, unpacks it, puts its folder first on ``sys.path``
and imports what it names. Here a bundle is only hashed. If the site has approved the hash, the task is
answered by the installed ``courier/app.py``; if not, by the code ``not_approved``. Nothing is unpacked,
so a bundle that brings its own ``oncofed_client`` shadows nothing.

This is Flower's SuperExec with another executor: where Flower would start ``flwr-clientapp`` from the
PATH for each message, a prepared process forks (a tenth of a second instead of one). Messages for an
agent are answered by the same refusal; models and connectors are never taken.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

from flwr.app import Context, Message
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec import run_superexec as superexec
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult
from flwr.supernode.runtime import run_clientapp as clientapp

from oncofed_client.courier import app, kernel

APPROVED_FILE = "approved_bundles.json"

_ANSWERED = {TaskType.CLIENT_APP, TaskType.AGENT_APP}

_log = logging.getLogger("oncofed.courier")


def approved_bundles(home: Path) -> frozenset[str]:
    """SHA-256 digests (hex) of the bundles that the site has approved; none if unreadable."""
    try:
        digests = json.loads((home / APPROVED_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        _log.error("the list of approved bundles cannot be read: no bundle may run")
        return frozenset()
    if not isinstance(digests, list) or not all(isinstance(entry, str) for entry in digests):
        _log.error("the list of approved bundles is damaged: no bundle may run")
        return frozenset()
    return frozenset(digests)


def serve_tasks(*, home: Path, runtime_address: str, secret: bytes) -> None:
    """Take tasks from this site's SuperNode, one process each, until the SuperNode is gone."""
    executor = _ForkingExecutor(home)
    superexec.get_executor = lambda *_kind, **_settings: executor
    superexec.run_superexec(
        runtime_api_address=runtime_address,
        insecure=True,  # over loopback, inside one site
        superexec_auth_secret=secret,
        parent_pid=os.getppid(),
    )


def close_gate(home: Path, *, refuse_all: bool) -> None:
    """Replace, in this process, what Flower does with a bundle: hash it, and nothing else."""
    verdict = {"approved": False}

    def inspect(content: bytes, **_how_flower_would_install: object) -> None:
        verdict["approved"] = is_approved(content, home=home) and not refuse_all

    def load(**_which_app_flower_would_load: object) -> Callable[..., Callable[..., Message]]:
        return lambda *_names: partial(_answer, home=home) if verdict["approved"] else _refuse

    clientapp.install_from_fab = inspect
    clientapp.get_load_client_app_fn = load


def is_approved(bundle: bytes, *, home: Path) -> bool:
    """Whether the site has approved exactly these bytes."""
    digest = hashlib.sha256(bundle).hexdigest()
    approved = digest in approved_bundles(home)
    if not approved:
        _log.error("bundle %s refused: this site has not approved it", digest)
    return approved


def _answer(*, message: Message, context: Context, home: Path) -> Message:
    del context
    return app.answer(message, socket_path=Path(os.environ[app.SOCKET_VARIABLE]), home=home)


def _refuse(*, message: Message, context: Context) -> Message:
    del context
    return app.refuse(message, code="not_approved")


class _ForkingExecutor:
    """Flower's executor interface: one forked process a task, for messages and nothing else."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def get_eligible_capacity(
        self, supported_task_types: set[TaskType], **_transport: object
    ) -> tuple[set[TaskType], set[str]]:
        return supported_task_types & _ANSWERED, set()

    def wait_for_capacity(self, task_type: TaskType | None = None, **_transport: object) -> None:
        del task_type

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        if spec.task_type not in _ANSWERED:
            return LaunchResult.failed("this site runs client tasks only")
        if os.fork() == 0:
            close_gate(self._home, refuse_all=spec.task_type != TaskType.CLIENT_APP)
            _run_task(spec)
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Bury what has ended. What somebody killed, the node would wait for a minute: both begin anew."""
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0] != 0:
                if os.WIFSIGNALED(ended[1]):
                    _log.error("a task process was killed")
                    os._exit(1)
        except ChildProcessError:
            return

    def close(self) -> None: ...


def _run_task(spec: ExecutionSpec) -> None:
    """Flower's own client process, in this fork; never returns to the loop that it came from."""
    status = 1
    try:
        kernel.die_with_parent(signal.SIGKILL)
        clientapp.run_clientapp(
            runtime_api_address=spec.runtime_api_address,
            token=spec.token,
            insecure=spec.insecure,
            parent_pid=spec.parent_pid,
            runtime_dependency_install=False,
        )
    except SystemExit as finished:
        status = finished.code if isinstance(finished.code, int) else 1
    except BaseException as error:  # noqa: BLE001  nothing may unwind into the parent's loop
        _log.error("a task process failed: %s", type(error).__name__)
    finally:
        os._exit(status)
