"""A ServerApp with a trivial round loop: Flower imports it from the PYTHONPATH of the test.

It sends every site that is online one task a round, and again to who is silent for long, and writes what came
to ``said-RUN.json``.
"""

import json
import os
import threading
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Message, MessageType, RecordDict
from flwr.serverapp import ServerApp
from flwr.superlink.grid import http_grid

from oncofed_common.tensors import pack_tensors, read_tensors
from oncofed_common.wire import frame, unframe
from oncofed_server.grid import FRAME_CAP_BYTES, GridSites
from oncofed_server.incoming import PatientGrid
from oncofed_server.superlink import HOME_VARIABLE, read_nodes

ROUNDS = 2
WEIGHTS = int(os.environ.get("TEST_WEIGHTS", "3"))
EXPIRES_S = int(os.environ.get("TEST_EXPIRES_S", "300"))
AGAIN_AFTER_S = 20.0

app = ServerApp()
hanging = ServerApp()


@hanging.main()
def hang(grid, _context):
    """Announce a task to every site, and then send its content to none, for as long as SuperExec lives."""
    parent = os.getppid()

    def never(*_args, **_kwargs):
        while os.getppid() == parent:
            time.sleep(0.2)

    nodes = read_nodes(Path(os.environ[HOME_VARIABLE]))
    GridSites(PatientGrid(grid), nodes=nodes, now_s=time.time, sleep=time.sleep).online(60.0)
    http_grid.push_objects = never
    for node in nodes:
        content = RecordDict({"task": ArrayRecord([np.arange(3)])})
        message = Message(content, node, MessageType.TRAIN, ttl=float(EXPIRES_S))
        threading.Thread(target=grid.push_messages, args=([message],), daemon=True).start()
    never()


@app.main()
def main(grid, context):
    home = Path(os.environ[HOME_VARIABLE])
    nodes = read_nodes(home)
    sites = GridSites(PatientGrid(grid), nodes=nodes, now_s=time.time, sleep=time.sleep)
    names = sites.online(60.0)
    said = {"online": sorted(names), "rounds": [], "seconds": []}
    for number in range(1, ROUNDS + 1):
        started = time.monotonic()
        weights = {"w": np.full(WEIGHTS, number, np.float32)}
        due_s, got = dict.fromkeys(names, 0.0), {}
        while len(got) < len(names):
            for name in [name for name in names if name not in got and due_s[name] < time.time()]:
                task = frame(f"{name} {number}".encode(), pack_tensors(weights))
                sites.send({name: task}, expires_s=int(time.time()) + EXPIRES_S)
                due_s[name] = time.time() + AGAIN_AFTER_S
            for arrival in sites.poll():
                if arrival.code == "unavailable":  # a node that was not heard for a while: again
                    due_s[arrival.site] = time.time() + 2.0
                    continue
                found = opened(arrival.frame)
                if not found or found[0].endswith(f" {number}"):  # else a late one, asked for twice
                    got[arrival.site] = [arrival.code, *found]
            time.sleep(0.1)
        said["rounds"].append(got)
        said["seconds"].append(time.monotonic() - started)
    path = home / f"said-{context.run_config['run']}.json"
    path.with_suffix(".tmp").write_text(json.dumps(said))
    path.with_suffix(".tmp").replace(path)


def opened(reply):
    """What it says, and the first three of its numbers, if all are the same."""
    if reply is None:
        return []
    envelope, tensors = unframe(reply, cap_bytes=FRAME_CAP_BYTES)
    values = read_tensors(tensors)["w"]
    return [envelope.decode(), values[:3].tolist() if (values == values[0]).all() else []]
