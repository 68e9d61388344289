"""A ServerApp with a trivial round loop: Flower imports it from the PYTHONPATH of the test.

It sends every site that is online one task a round and writes what came to ``said-RUN.json``.
"""

import json
import os
import time
from pathlib import Path

import numpy as np
from flwr.serverapp import ServerApp

from oncofed_common.tensors import pack_tensors, read_tensors
from oncofed_common.wire import frame, unframe
from oncofed_server.grid import GridSites
from oncofed_server.superlink import HOME_VARIABLE, read_nodes

ROUNDS = 2

app = ServerApp()


@app.main()
def main(grid, context):
    home = Path(os.environ[HOME_VARIABLE])
    sites = GridSites(grid, nodes=read_nodes(home), now_s=time.time, sleep=time.sleep)
    names = sites.online(60.0)
    said = {"online": sorted(names), "rounds": [], "seconds": []}
    for number in range(1, ROUNDS + 1):
        started = time.monotonic()
        weights = {"w": np.full(3, number, np.float32)}
        for name in names:
            task = frame(f"{name} {number}".encode(), pack_tensors(weights))
            sites.send({name: task}, expires_s=int(time.time()) + 60)
        got = {}
        while len(got) < len(names):
            for arrival in sites.poll():
                got[arrival.site] = [arrival.code, *opened(arrival.frame)]
            time.sleep(0.1)
        said["rounds"].append(got)
        said["seconds"].append(time.monotonic() - started)
    path = home / f"said-{context.run_config['run']}.json"
    path.with_suffix(".tmp").write_text(json.dumps(said))
    path.with_suffix(".tmp").replace(path)


def opened(reply):
    if reply is None:
        return []
    envelope, tensors = unframe(reply, cap_bytes=10_000)
    return [envelope.decode(), read_tensors(tensors)["w"].tolist()]
