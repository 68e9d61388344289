"""What a federation came to: scores on held-out patients, what was spent, the picture, the page."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oncofed_client.forecasts.forecast import forecast
from oncofed_client.forecasts.panel import draw
from oncofed_client.ledger import Ledger
from oncofed_client.readers.cohort import read_cohort
from oncofed_client.readers.patient import read_patient
from oncofed_client.trainer.members import is_held_out, lifelong_keys
from oncofed_common.cohort import Patient
from oncofed_common.diffusion.generate import Sampling
from oncofed_common.errors import CohortRefusal, OncofedError
from oncofed_common.identity import digest
from oncofed_common.metrics.judge import Score, judge, judge_no_change, last_visit, summary
from oncofed_common.model.network import best_dtype
from oncofed_common.model.presets import preset
from oncofed_common.model.weights import Weights, load_base, network_of, with_adapters
from oncofed_common.statement import statement
from oncofed_common.tensors import unpack_tensors, value_count
from oncofed_common.workers import each
from oncofed_server.verify import verify
from oncofed_simulation.founding import Federation, Site
from oncofed_simulation.report import in_words, report_page, uncertainty

HELD_OUT, SAMPLES, EVALUATIONS = 6, 16, 12
SEED = 11
OnProgress = Callable[[str, int, int], None]
NAMES = ("model", "base")


def write_outcome(
    out: Path,
    federation: Federation,
    *,
    run: str,
    isolation: Mapping[str, bool],
    began_s: float,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Copy the release, score it, draw it, and write ``summary.json``, last and at once."""
    finished = federation.coordinator / "runs" / run
    for name in ("release", "audit"):
        shutil.copytree(finished / name, out / name)
    checked = verify(out / "release", audit=out / "audit", trust=None, base=None)
    if not checked.ok:
        raise OncofedError(
            "a release that does not verify",
            allowed="a release whose every sum can be recomputed",
            next="run oncofed-coordinator verify on it and report the first fault",
            code="release",
        )
    patients = held_out(federation, most=HELD_OUT)
    scores, picture = _forecasts(out, federation, patients, on_progress=on_progress)
    fields = _summary(out, federation, scores=scores, isolation=isolation)
    fields["seconds"] = round(time.monotonic() - began_s, 1)
    page = report_page(
        fields,
        title=federation.study.study.title,
        rounds=_rounds(out / "release"),
        study_hash=federation.study.hash,
        picture=picture,
    )
    (out / "report.html").write_text(page, encoding="utf-8")
    (out / "privacy.md").write_text(statement(federation.study), encoding="utf-8")
    draft = out / "summary.json.tmp"
    draft.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    draft.replace(out / "summary.json")
    return fields


def held_out(federation: Federation, *, most: int) -> list[Patient]:
    """Patients that no site trained on, in turn from each site, ``most`` at most."""
    queues = [_held_out_of(site, federation) for site in federation.sites]
    found: list[Patient] = []
    while any(queues) and len(found) < most:
        for queue in queues:
            if queue and len(found) < most:
                found.append(queue.pop(0))
    if not found:
        raise CohortRefusal(
            "no held-out patient",
            allowed="one or more",
            next="raise cohort.held_out_fraction or the number of patients",
            code="none_held_out",
        )
    return found


def _held_out_of(site: Site, federation: Federation) -> list[Patient]:
    cohort = read_cohort(site.cohort)
    secret = site.home.secret()
    keys = lifelong_keys(cohort.participants, identities=site.identities, secret=secret)
    fraction = federation.study.cohort.held_out_fraction
    names = [n for n, key in keys.items() if is_held_out(key, secret=secret, fraction=fraction)]
    patients = [read_patient(cohort, name, terms=federation.study.cohort) for name in names]
    return [patient for patient in patients if len(patient.visits) > 1]


def _forecasts(
    out: Path, federation: Federation, patients: Sequence[Patient], *, on_progress: OnProgress
) -> tuple[dict[str, list[Score]], Path]:
    """Each patient's scores of model, base and no change; and the panel of the one in the middle."""
    scores: dict[str, list[Score]] = {name: [] for name in (*NAMES, "no_change")}
    work = [(out, federation, patient, SEED + n) for n, patient in enumerate(patients)]
    scored: dict[int, dict[str, Score]] = {}
    for done, ((*_, seed), one) in enumerate(each(_score, work, workers=2), start=1):
        scored[seed] = one
        on_progress("held-out patients", done, len(patients))
    for seed in sorted(scored):
        for name, score in scored[seed].items():
            scores[name].append(score)
    middle = int(np.argsort([s.crps_log_volume for s in scores["model"]])[len(patients) // 2])
    picture = out / "forecast.png"
    _draw(out, federation, patients[middle], picture=picture, seed=SEED + middle)
    return scores, picture


def _score(work: tuple[Path, Federation, Patient, int]) -> dict[str, Score]:
    """One patient's scores, in a process of its own."""
    out, federation, patient, seed = work
    torch.set_num_threads(1)
    shape = preset(federation.study.model.preset)
    example = last_visit(patient, shape)
    how = _how()
    found = {
        name: judge(network_of(weights), example, how, seed=seed)
        for name, weights in _weights(out, federation).items()
    }
    return found | {"no_change": judge_no_change(example, shape)}


def _weights(out: Path, federation: Federation) -> dict[str, Weights]:
    """The released model and the base that it started from."""
    study = federation.study
    base = load_base(preset(study.model.preset), sha256=study.model.base_sha256)
    packed = (out / "release" / "weights.safetensors").read_bytes()
    trained = {
        name: torch.from_numpy(value.copy())
        for name, value in unpack_tensors(
            packed, schema=study.schema_terms, dtype="float32"
        ).items()
    }
    return {"model": with_adapters(base, trained, sha256=digest(packed)), "base": base}


def _how() -> Sampling:
    return Sampling(samples=SAMPLES, evaluations=EVALUATIONS, dtype=best_dtype())


def _draw(out: Path, federation: Federation, patient: Patient, *, picture: Path, seed: int) -> None:
    last = len(patient.visits) - 1
    found = forecast(
        patient,
        history=range(last),
        day=patient.visits[last].day,
        weights=_weights(out, federation)["model"],
        how=_how(),
        seed=seed,
    )
    draw(found, picture)


def _summary(
    out: Path,
    federation: Federation,
    *,
    scores: Mapping[str, list[Score]],
    isolation: Mapping[str, bool],
) -> dict[str, Any]:
    study = federation.study
    means = summary(scores)
    pairs = zip(scores["base"], scores["model"], strict=True)
    gains = [base.crps_log_volume - model.crps_log_volume for base, model in pairs]
    records = _records(out / "release")
    sites = [_site_row(site, records, isolated=isolation[site.name]) for site in federation.sites]
    weights = _weights(out, federation)
    change = [
        (weights["model"].tensors[term.name] - weights["base"].tensors[term.name]).double()
        for term in study.schema_terms
    ]
    return {
        "status": json.loads((out / "release" / "manifest.json").read_text())["status"],
        "rounds": len(records),
        "seconds": 0.0,
        "weights_trained": value_count(study.schema_terms),
        "sites": sites,
        "forecast": {
            "held_out_patients": len(gains),
            "samples": SAMPLES,
            "crps_log_volume": dict(means["crps_log_volume"]),
            "dice": dict(means["dice"]),
            "gain": {"mean": sum(gains) / len(gains), "uncertainty": _finite(uncertainty(gains))},
        },
        "in_words": in_words(means["crps_log_volume"], gains=gains),
        "update_norm": float(torch.cat([part.flatten() for part in change]).norm()),
        "steps": study.training.rounds * study.training.steps_per_round,
        "draws_per_patient": study.training.draws_per_patient,
        "trainer_isolated": all(isolation.values()),
        "protected": study.virtual is None,
        "largest_reply_bytes": max(row["largest_reply_bytes"] for row in sites),
        "release": "release",
        "audit": "audit",
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _site_row(
    site: Site, records: Sequence[Mapping[str, Any]], *, isolated: bool
) -> dict[str, Any]:
    """What one site gave and spent; the number of patients is read from its folder."""
    with Ledger.open(site.home) as ledger:
        left = ledger.left()
        (spent,) = ledger.budget()["studies"]
    outcomes = [row for record in records for row in record["sites"] if row["site"] == site.name]
    return {
        "name": site.name,
        "patients": len(read_cohort(site.cohort).participants),
        "rounds_counted": sum(row["outcome"] == "counted" for row in outcomes),
        "epsilon": float(spent["epsilon"]),
        "delta": float(spent["delta"]),
        "bytes_out": sum(row["size"] for row in left),
        "largest_reply_bytes": max((row["size"] for row in left), default=0),
        "isolated": isolated,
    }


def _records(release: Path) -> list[dict[str, Any]]:
    paths = sorted((release / "rounds").glob("*/participation.json"))
    return [json.loads(path.read_text(encoding="utf-8"))["record"] for path in paths]


def _rounds(release: Path) -> list[dict[str, Any]]:
    """The rounds as the page shows them."""
    return [
        {
            "number": record["round"],
            "sites": {
                row["site"]: (row["reason"] or row["outcome"]).replace("_", " ")
                for row in record["sites"]
            },
            "weights_after": record["weights_after"],
        }
        for record in _records(release)
    ]
