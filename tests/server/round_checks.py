"""What a run of three sites should come to, by another way, and what it did come to."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from honest_sites import (
    FIRST,
    SCHEMA,
    update_of,
)

from oncofed_common.tensors import unpack_tensors
from oncofed_server.participation import read_record
from oncofed_server.runlog import parse_log

WEIGHTS = {"north": 3, "south": 5, "west": 1}


def released(outcome):
    data = (outcome.release / "weights.safetensors").read_bytes()
    return unpack_tensors(data, schema=SCHEMA, dtype="float32")


def expected(counted_by_round, *, rate=0.75):
    """The weights by another way: exact fractions, rounded once a round to float32."""
    weights = {name: value.copy() for name, value in FIRST.items()}
    for number, counted in enumerate(counted_by_round, start=1):
        divisor = sum(WEIGHTS[site] for site in counted)
        for name, value in weights.items():
            units = sum(WEIGHTS[s] * update_of(s, number)[name].astype(object) for s in counted)
            flat = [
                np.float32(
                    float(Fraction(float(w)) + Fraction(rate) * Fraction(int(u), 2**24) / divisor)
                )
                for w, u in zip(value.ravel(), np.ravel(units), strict=True)
            ]
            weights[name] = np.array(flat, dtype=np.float32).reshape(value.shape)
    return weights


def record(fed, number):
    signed = read_record(fed.folder / f"rounds/{number:04d}/participation.json")
    return {site.site: (site.outcome, site.reason, site.code) for site in signed.record.sites}


def events(fed):
    return [row.event for row in parse_log((fed.folder / "log.jsonl").read_bytes())]
