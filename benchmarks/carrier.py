"""What Flower costs: starting coordinator and sites, and a round's overhead beyond training.

One SuperLink over TLS and three sites on this machine, each with a jailed courier and the trainer's real
service, which here only scales what it gets: 20 000 weights in 100 tensors, the largest adapter. A round
is from the first task handed over to the last reply taken.

    .venv/bin/python benchmarks/carrier.py --json out.json

Flower imports this file too: ``app`` is the round loop that is timed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from _figures import Figure, report
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from oncofed_client.courier.jail import jail_level
from oncofed_client.courier.node import make_node_key, node_command, node_environment
from oncofed_client.trainer.service import serve
from oncofed_common.processes import spawn
from oncofed_common.tensors import pack_tensors, read_tensors
from oncofed_common.wire import frame, unframe
from oncofed_server import superlink
from oncofed_server.bundle import bundle_hash, thin_bundle
from oncofed_server.grid import GridSites

SITES, ROUNDS, WEIGHTS, TENSORS = 3, 6, 20_000, 100
POLL_S = 0.5
PATIENCE_S = 120.0
RESULT = "timed.json"


app = ServerApp()


@app.main()
def timed_rounds(grid: Grid, context: Context) -> None:
    """Every site, every round; the times go to a file."""
    del context
    home = Path(os.environ[superlink.HOME_VARIABLE])
    began_s = time.time()
    sites = GridSites(grid, nodes=superlink.read_nodes(home), now_s=time.time, sleep=time.sleep)
    names = sites.online(PATIENCE_S)
    rounds, reply_bytes = [], 0
    for number in range(ROUNDS):
        values = np.random.default_rng(number).random((TENSORS, WEIGHTS // TENSORS), np.float32)
        weights = {f"w{row}": value for row, value in enumerate(values)}  # equal ones travel once
        task = frame(b"task", pack_tensors(weights))
        started = time.perf_counter()
        for name in names:
            sites.send({name: task}, expires_s=int(time.time() + PATIENCE_S))
        open_sites = set(names)
        while open_sites:
            for arrival in sites.poll():
                if arrival.frame is None:
                    raise SystemExit(f"a site said {arrival.code}")
                reply_bytes = len(arrival.frame)
                open_sites.discard(arrival.site)
            time.sleep(0.1)
        rounds.append(time.perf_counter() - started)
    (home / f"{RESULT}.tmp").write_text(
        json.dumps({"began_s": began_s, "rounds": rounds, "reply_bytes": reply_bytes})
    )
    (home / f"{RESULT}.tmp").replace(home / RESULT)


def scale(body: bytes) -> tuple[bytes, int]:
    """A trainer that has nothing to do."""
    envelope, packed = unframe(body, cap_bytes=2**26)
    update = {
        name: (2**30 * value).astype(np.int32) for name, value in read_tensors(packed).items()
    }
    return frame(envelope, pack_tensors(update)), int(time.time())


def measure(root: Path) -> list[Figure]:
    """Start everything, run the rounds, stop everything."""
    home = root / "coordinator"
    home.mkdir()
    superlink.prepare(home, names=["localhost"], now=datetime.datetime.now(datetime.UTC))
    bundle = thin_bundle(server_app="carrier:app")
    environment = superlink.link_environment(home) | {"PYTHONPATH": str(Path(__file__).parent)}
    with ExitStack() as stack:
        started = time.perf_counter()
        running = superlink.start(
            home=home, host="127.0.0.1", port=None, environment=environment, within_s=PATIENCE_S
        )
        stack.callback(running.stop, grace_s=0.0)
        link_up = time.perf_counter() - started
        keys = {
            f"site-{number}": make_site(root / f"site-{number}", running.link, bundle)
            for number in range(SITES)
        }
        started = time.perf_counter()
        superlink.sync_nodes(running.link, keys)
        registered = time.perf_counter() - started
        for name in keys:
            start_site(root / name, running.link, stack)
        started = time.perf_counter()
        while len(superlink.online_sites(running.link)) < SITES:
            patient(started)
            time.sleep(0.05)
        online = time.perf_counter() - started
        submitted, submitted_s = time.perf_counter(), time.time()
        superlink.submit(running.link, bundle, run="0" * 32)
        while not (home / RESULT).exists():
            patient(submitted)
            time.sleep(0.1)
        timed = json.loads((home / RESULT).read_text())
    return [
        Figure(name="SuperLink answers", value=link_up, unit="s"),
        Figure(name=f"{SITES} nodes registered", value=1000 * registered, unit="ms"),
        Figure(name=f"{SITES} couriers online", value=online, unit="s"),
        Figure(
            name="round loop runs after submission", value=timed["began_s"] - submitted_s, unit="s"
        ),
        Figure(name="first round", value=timed["rounds"][0], unit="s", bar=12.0),
        Figure(
            name="a round, median", value=statistics.median(timed["rounds"]), unit="s", bar=12.0
        ),
        Figure(name="a round, slowest", value=max(timed["rounds"]), unit="s", bar=12.0),
        Figure(name="a reply", value=timed["reply_bytes"] / 1000, unit="kB", bar=200.0),
    ]


def make_site(folder: Path, link: superlink.Link, bundle: bytes) -> str:
    """A courier's home that has approved ``bundle``; the public line of its node key."""
    for name in ("courier", "run", "trainer"):
        (folder / name).mkdir(parents=True)
    private, public = make_node_key()
    (folder / "courier" / "node_key").write_bytes(private)
    (folder / "courier" / "ca.pem").write_bytes(link.ca_path.read_bytes())
    (folder / "courier" / "approved_bundles.json").write_text(json.dumps([bundle_hash(bundle)]))
    return public


def start_site(folder: Path, link: superlink.Link, stack: ExitStack) -> None:
    """Trainer and courier of one site; both end with ``stack``."""
    path = folder / "run" / "trainer.sock"
    trainer = [sys.executable, __file__, "--trainer", str(path)]
    courier = node_command(
        superlink=f"127.0.0.1:{link.port}",
        poll_s=POLL_S,
        level=jail_level(),
        home=folder / "courier",
        socket_path=path,
        hidden=[folder / "trainer", link.home],
    )
    settings = node_environment(
        home=folder / "courier", socket_path=path, https_proxy=None, no_proxy=[]
    )
    for argv, environment in ((trainer, {"PATH": os.defpath}), (courier, settings)):
        with (folder / "log").open("ab") as log:
            child = spawn(argv, environment=environment, log=log, folder=folder)
        stack.callback(end, child)


def end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()


def patient(started: float) -> None:
    if time.perf_counter() - started > PATIENCE_S:
        raise SystemExit(f"not there after {PATIENCE_S:g} s")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--trainer", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.trainer is not None:
        serve(scale, path=asked.trainer, shared_group=None, log=logging.getLogger())
        return 0
    with tempfile.TemporaryDirectory(prefix="carrier-") as root:
        figures = measure(Path(root))
    title = f"Flower as the carrier, {SITES} sites, {jail_level()}"
    return report(figures, title=title, path=asked.json)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
