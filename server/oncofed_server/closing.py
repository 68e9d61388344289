"""From an open round to what it leaves: its record, and the weights after it.

A round that has its signed record but lost its checkpoint is closed again: the weights follow from the
stored replies of the counted sites, and have to be those that the record names.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from oncofed_common.errors import OncofedError
from oncofed_common.identity import digest
from oncofed_common.tensors import pack_tensors
from oncofed_common.wire import Participation, SignedParticipation
from oncofed_server.aggregate import metrics_of
from oncofed_server.checkpoint import State
from oncofed_server.collect import Tally, outcomes, take_stored
from oncofed_server.participation import check_record, round_status
from oncofed_server.roster import read_roster
from oncofed_server.strategies.strategy import Memory, apply, nothing
from oncofed_server.tasks import Plan, read_tasks, refuse_lost


def close(
    state: State, plan: Plan, tally: Tally, *, like: Participation | None = None
) -> tuple[Participation, dict[str, NDArray[Any]], Memory]:
    """The record of a round, the weights after it, and what the strategy remembers then.

    Args:
        like: the record that was written already; sites it leaves out stay as it says.
    """
    sites = outcomes(tally, plan)
    if like is not None:
        sites = tuple(
            said if said.outcome == "left_out" else found
            for said, found in zip(like.sites, sites, strict=True)
        )
    status = round_status(sites, fewest_sites=plan.study.aggregation.fewest_sites)
    weights, memory = dict(state.weights), state.memory
    if status != "failed":
        weights, memory = apply(
            state.weights, tally.gathered, memory=state.memory, study=plan.study
        )
    record = Participation(
        study_hash=plan.study_hash,
        run=plan.run,
        round=tally.number,
        sites=sites,
        weights_before=digest(tally.packed),
        weights_after=digest(pack_tensors(weights)),
        previous=state.last_digest,
        status=status,
        **metrics_of(tally.gathered.total),
    )
    return record, weights, memory


def close_again(state: State, plan: Plan, signed: SignedParticipation) -> State:
    """The state after a round whose record is on disk, from the stored replies that it counts."""
    roster = read_roster(plan.home)
    packed = pack_tensors(state.weights)
    check_record(
        signed,
        study=plan.study,
        study_hash=plan.study_hash,
        run=plan.run,
        before=state.last,
        weights_before=digest(packed),
        task_key=plan.task_key.public,
    )
    refuse_lost(plan, state.round + 1)
    tally = Tally(
        number=state.round + 1,
        sent=read_tasks(plan, state, packed=packed),
        packed=packed,
        roster=roster,
        gathered=nothing(plan.study),
        memory=state.memory,
    )
    take_stored(tally, plan)
    again, weights, memory = close(state, plan, tally, like=signed.record)
    if again != signed.record:
        raise OncofedError(
            f"stored replies of round {again.round} that do not give the weights of its record",
            allowed="the replies that the signed record counts",
            next="restore the run's folder from a backup as a whole",
            code="replies_missing",
        )
    return advanced(state, signed, weights, memory)


def advanced(
    state: State,
    signed: SignedParticipation,
    weights: dict[str, NDArray[Any]],
    memory: Memory,
) -> State:
    """The state after a round, from its record, its weights and what the strategy remembers."""
    return State(
        round=signed.record.round,
        weights=weights,
        memory=memory,
        last=signed,
        statuses=(*state.statuses, signed.record.status),
    )
