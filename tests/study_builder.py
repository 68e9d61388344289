"""A small valid study for tests, and ways to change it."""

from __future__ import annotations

import datetime as dt
from typing import Any

from oncofed_common.study import Study

FIELDS: dict[str, Any] = {
    "study": {
        "title": "A study for tests",
        "contact": "the coordinator",
        "ethics_reference": "none: virtual patients",
        "expires": dt.date(2099, 12, 31),
        "release": "weights_and_audit",
    },
    "cohort": {
        "modalities": ["T1w", "ce-gadolinium_T1w", "T2w", "FLAIR"],
        "label_scheme": {"NETC": 1, "SNFH": 2, "ET": 3, "RC": 4},
        "spacing_mm": 3.0,
        "crop_voxels": 32,
        "fewest_visits": 2,
        "held_out_fraction": 0.1,
    },
    "model": {"preset": "small", "base_sha256": "0" * 64, "adapters": "norm"},
    "training": {
        "rounds": 3,
        "steps_per_round": 2,
        "sampling_rate": 0.25,
        "pairs_per_patient": 2,
        "draws_per_patient": 2,
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "dtype": "float32",
        "threads": 1,
    },
    "privacy": {"clip_norm": 1.0, "noise_multiplier": 1.0, "epsilon": 8.0, "delta": 1e-5},
    "aggregation": {
        "strategy": "weighted_mean",
        "server_learning_rate": 1.0,
        "fewest_sites": 1,
        "round_deadline_s": 60,
    },
    "outbound": {"bytes_per_round": 200_000, "reply_after_s": 1, "metrics": []},
    "sites": [
        {"name": "north", "fingerprint": "1" * 64, "declared_patients": 20, "weight": 20},
        {"name": "south", "fingerprint": "2" * 64, "declared_patients": 30, "weight": 30},
    ],
    "tensors": [
        {"name": "norm.weight", "shape": [4], "dtype": "float32"},
        {"name": "norm.bias", "shape": [4], "dtype": "float32"},
    ],
}


def a_study(**changes: Any) -> Study:
    """The study with some fields changed: ``a_study(privacy={"epsilon": 2.0})``."""
    fields = {
        room: {**value, **changes.get(room, {})} if isinstance(value, dict) else value
        for room, value in FIELDS.items()
    }
    for room in ("sites", "tensors", "virtual"):
        if room in changes:
            fields[room] = changes[room]
    return Study.model_validate(fields)
