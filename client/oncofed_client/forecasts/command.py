"""``oncofed-site forecast``: read, imagine, explain, hand over; under one plan or several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from oncofed_client.forecasts.comparison import as_dict_plans
from oncofed_client.forecasts.explain import Explanation, explain
from oncofed_client.forecasts.explain import as_dict as explained
from oncofed_client.forecasts.files import PAGE, unwritten, write, write_plans
from oncofed_client.forecasts.forecast import Forecast, as_dict, forecast, visits_of
from oncofed_client.forecasts.model_file import read_model
from oncofed_client.forecasts.plan import read_plan, under
from oncofed_client.readers.cohort import read_cohort
from oncofed_client.readers.patient import NO_MATTER_TO_A_FORECAST, read_patient
from oncofed_common.cohort import Patient
from oncofed_common.diffusion.generate import Sampling
from oncofed_common.diffusion.samplers import DISTILLED, DISTILLED_EVALUATIONS
from oncofed_common.errors import UsageRefusal
from oncofed_common.model.lacking import ask_without, remembered
from oncofed_common.model.network import best_device, best_dtype
from oncofed_common.model.prepare import query
from oncofed_common.model.weights import Weights, network_of
from oncofed_common.outlook import outlook
from oncofed_common.screen import Watch

EVALUATIONS = 12
"""Of the network, for each future: what a forecast loses against 200 is in the model's README."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The words of the command line."""

    cohort: Path
    participant: str
    history: tuple[str, ...]
    day: int
    plans: tuple[Path, ...]
    weights: Path | None
    explain: bool
    how: Sampling
    seed: int


@dataclass(frozen=True, kw_only=True)
class Done:
    """What came of it: each plan's forecast, what ``--json`` prints, and the files written."""

    forecasts: Mapping[str, Forecast]
    numbers: dict[str, Any]
    files: tuple[str, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Each once."""
        return tuple(dict.fromkeys(w for one in self.forecasts.values() for w in one.warnings))


def carry_out(asked: Asked, out: Path, *, watch: Watch) -> Done:
    """Do what the command line asks.

    Raises:
        CohortRefusal, ModelRefusal: what cannot be forecast; nothing is written then.
        SystemRefusal: the folder exists or cannot be written.
    """
    unwritten(out)
    names = _names(asked.plans)
    if asked.explain and len(names) > 1:
        raise UsageRefusal(
            "an explanation of several plans",
            allowed="--explain with one plan, or with none",
            next="ask for one plan at a time",
        )
    plans = [read_plan(path) for path in asked.plans]
    weights = read_model(asked.weights)
    patient = read_patient(
        read_cohort(asked.cohort), asked.participant, waived=NO_MATTER_TO_A_FORECAST
    )
    steps = max(1, len(names)) + asked.explain
    if not plans:
        worlds = {"as recorded": patient}
    else:
        seen = visits_of(patient, asked.history)
        last_day = max(patient.visits[index].day for index in seen)
        worlds = {
            n: under(patient, p, last_day=last_day) for n, p in zip(names, plans, strict=True)
        }
    found = {}
    for number, (name, world) in enumerate(worlds.items()):
        watch("drawing futures", number, steps)
        found[name] = _forecast(world, asked, weights)
    if len(found) > 1:
        files = write_plans(found, out)
        watch("drawing futures", steps, steps)
        return Done(forecasts=found, numbers=as_dict_plans(found), files=tuple(files))
    (one,), (world,) = found.values(), worlds.values()
    why = None
    if asked.explain:
        watch("drawing futures, then asking why", steps - 1, steps)
        why = _explanation(world, asked, weights)
    files = write(one, out, why=why)
    watch("drawing futures", steps, steps)
    numbers = as_dict(one) | ({} if why is None else {"explanation": explained(why)})
    return Done(forecasts=found, numbers=numbers, files=tuple(files))


def sampling(*, samples: int, evaluations: int | None, sampler: str, guidance: float) -> Sampling:
    """How futures are drawn; without a number of evaluations, in as many as that sampler is meant for.

    Raises:
        ModelRefusal: code ``bad_sampling``.
    """
    usual = DISTILLED_EVALUATIONS if sampler == DISTILLED else EVALUATIONS
    return Sampling(
        samples=samples,
        evaluations=usual if evaluations is None else evaluations,
        dtype=best_dtype(),
        sampler=sampler,
        guidance=guidance,
    )


def tables(done: Done) -> Iterator[Table]:
    """What a person sees on the screen."""
    for name, one in done.forecasts.items():
        numbers = as_dict(one)
        title = "Research use only" if len(done.forecasts) == 1 else f"{name}: research use only"
        table = Table("ml", "last visit", "median", "50 %", "90 %", title=title)
        for region, row in numbers["volumes_ml"].items():
            edges = [row["last_visit"], row["median"], *row["interval_50"], *row["interval_90"]]
            last, median, low, high, lowest, highest = (f"{edge:.1f}" for edge in edges)
            table.add_row(region, last, median, f"{low} to {high}", f"{lowest} to {highest}")
        yield table
        response, law = numbers["response"], numbers["certificate"]
        odds = Table(*response["odds"], title=f"Response, by the {response['by']} tumour")
        odds.add_row(*(f"{share:.0%}" for share in response["odds"].values()))
        yield odds
        kept = Table(*law["kept"], "redrawn", "failing", title="Samples that keep the fitted laws")
        shares = (f"{share:.0%}" for share in law["kept"].values())
        kept.add_row(*shares, str(law["redrawn"]), str(law["failing"]))
        yield kept


def _names(plans: tuple[Path, ...]) -> list[str]:
    """A plan is called as its file is, without the ending."""
    names = [path.stem for path in plans]
    if len(set(names)) < len(names):
        raise UsageRefusal(
            "plans whose files have the same name",
            allowed="files with different names",
            next="rename a plan's file",
        )
    if not all(name.isprintable() and name.strip(".") and name not in PAGE for name in names):
        raise UsageRefusal(
            "a plan whose file's name cannot be the name of a folder",
            allowed="a printable name that is not the comparison's own",
            next="rename the plan's file",
        )
    return names


def _forecast(patient: Patient, asked: Asked, weights: Weights) -> Forecast:
    return forecast(
        patient,
        history=asked.history,
        day=asked.day,
        weights=weights,
        how=asked.how,
        seed=asked.seed,
    )


def _explanation(patient: Patient, asked: Asked, weights: Weights) -> Explanation:
    about: dict[str, Any] = {
        "history": visits_of(patient, asked.history),
        "day": asked.day,
        "foresee": remembered(outlook),
    }
    return explain(
        network_of(weights).to(best_device()),
        query(patient, weights.preset, **about),
        asked.how,
        seed=asked.seed,
        lacking=lambda name: ask_without(patient, weights.preset, name=name, **about),
    )
