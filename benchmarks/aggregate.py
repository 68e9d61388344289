"""What does it cost to add up many sites' updates exactly, and whose lies does each strategy withstand?

Speed: from the bytes of a reply to the sum, with spelling, names, shapes and length checked, against Flower's
own weighted average of the same number of float32 arrays, which checks nothing; CPU seconds, one thread, the
fastest of three that take turns. Memory: of a process that adds up replies as they arrive, beyond what it
has before the first, in float32 models. Overhead: ``_round_overhead``. Lies: ``_lying_sites``.

    .venv/bin/python benchmarks/aggregate.py --json out.json
    .venv/bin/python benchmarks/aggregate.py --values 100000    # does it run? no verdict on a toy
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from _figures import Figure, report, resident_kib
from _lying_sites import LIES, table
from _round_overhead import overhead_ms
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from rich.console import Console
from rich.table import Table

from oncofed_common.tensors import TensorTerm, pack_tensors, unpack_tensors
from oncofed_server.aggregate import empty_sum, fold

VALUES = 10_000_000
"""40 MB in float32."""
ADAPTER = 20_000
SITES = (8, 32, 128)
DIFFERENT = 4
"""So many updates are made, and come again and again."""
WEIGHT = 20
LIMIT_UNITS = 2**40
ROUNDS = 40


def schema(values: int) -> tuple[TensorTerm, ...]:
    return (TensorTerm(name="w", shape=(values,)),)


def update(values: int, number: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(number).integers(-(2**20), 2**20, values, dtype=np.int32)
    return {"w": draw}


def ours(replies: Sequence[bytes], sites: int, values: int) -> None:
    """Each reply is read, measured and added, and then forgotten."""
    total = empty_sum(schema(values))
    for reply in islice(cycle(replies), sites):
        found = unpack_tensors(reply, schema=schema(values), dtype="int32")
        total = fold(total, found, weight=WEIGHT, schema=schema(values), limit_units=LIMIT_UNITS)


def speed(values: int) -> list[Figure]:
    updates = [update(values, number) for number in range(DIFFERENT)]
    replies = [pack_tensors(one) for one in updates]
    records = [
        RecordDict(
            {
                "arrays": ArrayRecord({"w": Array(one["w"].astype(np.float32) * 2.0**-24)}),
                "metrics": MetricRecord({"weight": float(WEIGHT)}),
            }
        )
        for one in updates
    ]
    figures = []
    for sites in SITES[:2]:
        together = list(islice(cycle(records), sites))
        ways: dict[str, Callable[[], object]] = {
            "ours": lambda sites=sites: ours(replies, sites, values),
            "Flower": lambda together=together: aggregate_arrayrecords(together, "weight"),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(3):
            for way, work in ways.items():
                before = time.process_time()
                work()
                times[way].append(time.process_time() - before)
        rates = {way: sites * 4e-9 * values / min(found) for way, found in times.items()}
        where = f"{sites} x {4e-6 * values:.3g} MB"
        figures += [
            Figure(name=f"{way}, {where}", value=rate, unit="GB a CPU second")
            for way, rate in rates.items()
        ]
        ratio, floor = rates["ours"] / rates["Flower"], 2.0 if values == VALUES else None
        figures.append(
            Figure(name=f"ours over Flower, {where}", value=ratio, unit="x", floor=floor)
        )
    return figures


def memory(values: int) -> list[Figure]:
    """Peak of a process of its own in which freed arrays leave at once."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(1 << 16)
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.reply" for number in range(DIFFERENT)]
        for number, path in enumerate(paths):
            path.write_bytes(pack_tensors(update(values, number)))
        for sites in SITES:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                models = process.submit(peak_models, paths, sites, values).result()
            name = f"memory, {sites} sites, to a tenth of a model"
            bar = 3.0 if values == VALUES else None
            figures.append(Figure(name=name, value=round(models, 1), unit="models", bar=bar))
    return figures


def peak_models(paths: Sequence[Path], sites: int, values: int) -> float:
    """How much more is resident at most than before the first reply, in float32 models."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident_kib("VmRSS")
    total = empty_sum(schema(values))
    for path in islice(cycle(paths), sites):
        found = unpack_tensors(path.read_bytes(), schema=schema(values), dtype="int32")
        total = fold(total, found, weight=WEIGHT, schema=schema(values), limit_units=LIMIT_UNITS)
        del found
    return (resident_kib("VmHWM") - before) * 1024 / (4 * values)


def overhead() -> list[Figure]:
    """The least of five runs: whatever else the machine does only adds."""
    found = {
        sites: min(overhead_ms(sites=sites, values=ADAPTER) for _ in range(5))
        for sites in SITES[:2]
    }
    return [
        Figure(name=f"a round, for each of {sites} sites", value=cost, unit="ms of CPU", bar=1.0)
        for sites, cost in found.items()
    ]


def lies(rounds: int) -> tuple[list[Figure], list[dict[str, object]]]:
    """The table of ``_lying_sites``, shown, and as rows of the JSON file."""
    found = table(rounds=rounds)
    shown = Table("strategy", "honest", *LIES, title="error of a round, two of nine sites lying")
    for strategy, row in found.items():
        shown.add_row(strategy, *(f"{value:.2f}" for value in row.values()))
    Console(width=110).print(shown)
    rows: list[dict[str, object]] = [{"strategy": name, **row} for name, row in found.items()]
    worst = max(max(found[name].values()) for name in ("trimmed_mean", "norm_bounded_mean"))
    return [Figure(name="largest error of bounded and trimmed means", value=worst, unit="")], rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    parser.add_argument("--values", type=int, default=VALUES, help="of a model")
    asked = parser.parse_args()
    figures = overhead() + speed(asked.values) + memory(asked.values)
    more, rows = lies(ROUNDS)
    title = "Adding up many sites' updates"
    return report([*figures, *more], title=title, path=asked.json, rows=rows)


if __name__ == "__main__":
    sys.exit(main())
