"""A seeded study gives the same bytes again, on small cohorts that no virtual hospital grew."""

from __future__ import annotations

from pathlib import Path

import pytest
from cohort_builder import write_cohort

from oncofed_common.terminal import run_app
from oncofed_simulation.__main__ import app
from oncofed_simulation.demo import PLAN

PATIENTS = 3
CHANGES = (
    ("rounds = 3", "rounds = 1"),
    ("steps_per_round = 6", "steps_per_round = 1"),
    ("reply_after_s = 20", "reply_after_s = 1"),
    ("held_out_fraction = 0.12", "held_out_fraction = 0.5"),
    ("sampling_rate = 0.25", "sampling_rate = 0.75"),
)


@pytest.fixture
def cohorts(tmp_path: Path) -> Path:
    """Two hospitals, and beside each what its patients are called there."""
    root = tmp_path / "cohorts"
    for hospital in ("hospital-1", "hospital-2"):
        write_cohort(root / hospital, patients=PATIENTS, visits=2)
        rows = [f"sub-{n:03d}\t{hospital[-1]}{n:04d}" for n in range(1, PATIENTS + 1)]
        table = "\n".join(["participant_id\thospital_number", *rows])
        (root / f"{hospital}.identities.tsv").write_text(table + "\n")
    return root


def _weights(root: Path, cohorts: Path, *, out: str, seed: int) -> bytes:
    settings = PLAN.settings.read_text()
    for old, new in CHANGES:
        assert old in settings
        settings = settings.replace(old, new)
    study = root / f"{out}.toml"
    study.write_text(f"{settings}\n[virtual]\nseed = {seed}\n")
    words = ["run", str(study), "--cohorts", str(cohorts), "--out", str(root / out)]
    assert run_app(app, words) == 0
    return (root / out / "release" / "weights.safetensors").read_bytes()


def test_a_seeded_study_repeats_to_the_byte(cohorts, tmp_path):
    """New keys and another folder each time; the same draws, noise and held-out patients."""
    first, second = (_weights(tmp_path, cohorts, out=out, seed=5) for out in ("first", "second"))
    assert first == second
