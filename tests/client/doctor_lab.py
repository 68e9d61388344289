"""A site that joined a coordinator on this machine, and the doctor as a hospital runs it."""

from __future__ import annotations

import ctypes
import datetime as dt
import json
import multiprocessing
import os
import shutil
import ssl
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from doctor_servers import Handler, certificate_of, serving, superlink
from site_builder import Coordinator, a_home

from oncofed_client import home as site_home
from oncofed_client.home import Home
from oncofed_server.certificates import make_certificates

HOST = "127.0.0.3"
"""The coordinator's address: on this machine, and no address that goes round every proxy."""
NAMES = [HOST, "fed.example.org", "10.99.0.2"]
_LIBC = ctypes.CDLL(None, use_errno=True)
_NEW_MOUNTS, _NEW_NETWORK = 0x20000, 0x40000000
_PRIVATE_BELOW = 0x4000 | 0x40000


@dataclass
class Lab:
    """One site, its coordinator's certificates, and what is open while a fault is planted.

    ``words``, ``environment`` and ``prefix`` are added to the doctor's command line; ``enter_far`` takes a
    thread into the network at the other end of a cable, where one was laid.
    """

    home: Home
    tls: Path
    open: ExitStack
    words: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    prefix: list[str] = field(default_factory=list)
    enter_far: Callable[[], None] = lambda: None

    def serve(
        self, handler: Handler, *, host: str = HOST, tls: ssl.SSLContext | None = None
    ) -> int:
        """Something on this machine that is called; behind TLS where ``tls`` is given."""
        return self.open.enter_context(serving(handler, host=host, tls=tls))

    def coordinator(
        self, handler: Handler | None = None, *, tls: ssl.SSLContext | None = None
    ) -> int:
        """The coordinator that this site joined: honest SuperLink, or what is given."""
        port = self.serve(handler or superlink(), tls=tls or certificate_of(self.tls))
        self.joined(f"{HOST}:{port}")
        return port

    def joined(self, address: str) -> None:
        """From now on the answer that this site keeps says another address."""
        answer = json.loads((self.home.root / "answer.json").read_text())
        (self.home.root / "answer.json").write_text(json.dumps(answer | {"address": address}))

    def doctor(self) -> dict[str, Any]:
        """The one JSON object that the command prints."""
        argv = [*self.prefix, sys.executable, "-m", "oncofed_client", "doctor", "--json"]
        argv += ["--home", str(self.home.root), *self.words]
        kept = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
        done = subprocess.run(
            argv,
            env=kept | self.environment,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode in (0, 2), done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        assert (done.returncode == 0) == ("error" not in found)
        return found


@contextmanager
def a_lab(root: Path, model: Lab | None = None) -> Iterator[Lab]:
    """A new site in ``root``, or a copy of one, with nothing planted yet."""
    with ExitStack() as stack:
        if model is not None:
            shutil.copytree(model.home.root, root / "north", symlinks=True)
            yield Lab(home=replace(model.home, root=root / "north"), tls=model.tls, open=stack)
            return
        make_certificates(root / "tls", names=NAMES, now=dt.datetime.now(tz=dt.UTC))
        home, coordinator = a_home(root, virtual=False), Coordinator()
        answer = {
            "site": home.site,
            "approver_key": home.approver.hex,
            "address": f"{HOST}:1",
            "ca_pem": (root / "tls/ca.pem").read_text(),
            "coordinator_key": coordinator.study_key.public.hex,
        }
        site_home.join(home, answer, coordinator=coordinator.study_key.public.fingerprint)
        yield Lab(home=home, tls=root / "tls", open=stack)


def codes(found: Mapping[str, Any], verdict: str = "fault") -> list[str]:
    """The codes of all findings with a verdict."""
    return [one["code"] for one in found["findings"] if one["verdict"] == verdict]


def apart(act: Callable[[], Any], *, network: bool = False) -> Any:
    """What ``act`` returns in a process with mounts, and perhaps a network, of its own."""
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_child, args=(theirs, act, network))
    child.start()
    theirs.close()
    try:
        done, result = ours.recv()
    finally:
        child.join()
        ours.close()
    assert done, result
    return result


def mount(source: Path, target: Path) -> None:
    """Show ``source`` in the place of ``target``, in this process and its children."""
    _call(_LIBC.mount(os.fsencode(source), os.fsencode(target), None, 0x1000, None), "bind")


def small_disk(folder: Path, options: str) -> None:
    """``folder``, as it is, on a file system of its own in memory, in this process and its children."""
    kept = folder.with_name("kept")
    shutil.copytree(folder, kept, symlinks=True)
    _call(_LIBC.mount(b"none", os.fsencode(folder), b"tmpfs", 0, options.encode()), "tmpfs")
    shutil.copytree(kept, folder, symlinks=True, dirs_exist_ok=True)
    shutil.copystat(kept, folder)


def hide_jail() -> None:
    """From now on the kernel gives this process no mount namespace and no Landlock (seccomp(2))."""
    nr, first = (0x20, 0, 0, 0), (0x20, 0, 0, 16)  # load the call's number; its first argument
    rules = [
        nr, (0x15, 3, 0, 444),  # landlock_create_ruleset: forbidden
        (0x15, 0, 3, 272), first,  # unshare: forbidden where it asks for mounts
        (0x45, 0, 1, _NEW_MOUNTS), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000),
    ]  # fmt: skip
    packed = b"".join(struct.pack("HBBI", *rule) for rule in rules)
    kept = ctypes.create_string_buffer(packed)
    program = struct.pack("HxxxxxxQ", len(rules), ctypes.addressof(kept))
    _call(_LIBC.prctl(38, 1, 0, 0, 0), "no new privileges")
    _call(_LIBC.prctl(22, 2, program), "seccomp")


def own_network() -> None:
    """This thread, and what it starts, gets a network of its own: nothing but loopback."""
    _call(_LIBC.unshare(_NEW_NETWORK), "unshare")
    ip("link", "set", "lo", "up")


def ip(*words: str) -> None:
    """iproute2's program."""
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


def has_iproute() -> bool:
    """Whether networks can be made on this machine by this user."""
    return os.geteuid() == 0 and shutil.which("ip") is not None


def _child(line: Any, act: Callable[[], Any], network: bool) -> None:
    try:
        _call(_LIBC.unshare(_NEW_MOUNTS), "unshare")
        _call(_LIBC.mount(b"none", b"/", None, _PRIVATE_BELOW, None), "private")
        if network:
            own_network()
        line.send((True, act()))
    except BaseException:  # noqa: BLE001  the parent says it
        line.send((False, traceback.format_exc()))


def _call(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), what)
