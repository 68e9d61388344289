"""``oncofed-simulate audit``: the shipped engine under attack, beside a twin without privacy.

Four attacks: planted canaries give a lower bound on epsilon; membership and follow-ups are inferred from
the weights and gradients of runs on virtual patients, and samples are searched for what was trained on. The
bound is a net for gross faults, not a proof: at the epsilon of 1 that it claims it has power.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from oncofed_common.diffusion.generate import Sampling
from oncofed_common.errors import UsageRefusal
from oncofed_common.model.network import best_dtype
from oncofed_common.model.prepare import Example, examples, stack
from oncofed_common.model.presets import SMALL
from oncofed_common.model.weights import load_base, network_of
from oncofed_common.outlook import outlook
from oncofed_common.screen import Watch
from oncofed_common.workers import each
from oncofed_simulation.arms import Arm, Terms, shipped, train
from oncofed_simulation.auditing.canaries import one_run
from oncofed_simulation.auditing.inversion import inverted
from oncofed_simulation.auditing.membership import attacked
from oncofed_simulation.auditing.memorisation import remembered
from oncofed_simulation.memory import hand_back, one_thread
from oncofed_simulation.patients import hospital, virtual_patient

CLAIMED_EPSILON = 1.0
"""Of the run with canaries."""
LONGER = 10
"""How many times as many rounds the twin without privacy takes: it shall learn by heart, if it can."""
INVERTED = 4
REMEMBERED = 8
SAMPLES, EVALUATIONS = 4, 8
FEWEST = 8


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How large an audit.

    Args:
        patients: virtual ones, half of them trained on; 8 or more.
        canaries: patients of one coordinate; as many as there are trained weights, at most.
        adapters: the set that trains among the canaries; the others train what the demo trains.
        seed: of patients, lots and noise.
    """

    patients: int
    canaries: int
    adapters: str
    seed: int

    def __post_init__(self) -> None:
        if self.patients < FEWEST or self.canaries < FEWEST or self.seed < 0:
            raise UsageRefusal(
                f"{self.patients} patients, {self.canaries} canaries, seed {self.seed}",
                allowed=f"{FEWEST} or more of each, and a seed from 0",
                next="correct the numbers",
            )


def audit(asked: Asked, *, watch: Watch) -> dict[str, Any]:
    """Attack, and say what came of it; ``holds`` is false where a claim was refuted."""
    terms = shipped()
    made: dict[int, list[Example]] = {}
    of = partial(_patient, seed=asked.seed, pairs=terms.pairs_per_patient)
    for number, found in each(of, range(asked.patients), workers=2, prepare=one_thread):
        made[number] = found
        watch("making virtual patients", len(made), asked.patients)
    everybody = [made[number] for number in range(asked.patients) if made[number]]
    cut = len(everybody) // 2
    batches = [stack(of) for of in everybody]
    base = network_of(load_base(SMALL, sha256=None))
    betrayed = one_run(
        network_of(load_base(SMALL, sha256=None)),
        batches[:cut],
        replace(terms, adapters=asked.adapters, epsilon=CLAIMED_EPSILON, draws_per_patient=2),
        canaries=asked.canaries,
        seed=asked.seed,
        watch=watch,
    )
    runs: dict[str, Any] = {}
    how = Sampling(samples=SAMPLES, evaluations=EVALUATIONS, dtype=best_dtype())
    for number, (name, arm) in enumerate(_twins(terms, learn=cut).items()):
        watch("attacking two runs", number, 3)
        network = train(arm, [batches[:cut]], seed=asked.seed)
        told = attacked(base, network, terms, members=batches[:cut], others=batches[cut:])
        lasts = [of[0] for of in everybody]
        runs[name] = {
            "membership": {attack: asdict(one) for attack, one in told.items()},
            "memorisation": asdict(
                remembered(
                    network,
                    how,
                    members=lasts[: min(cut, REMEMBERED)],
                    others=lasts[cut:][:REMEMBERED],
                    seed=asked.seed,
                )
            ),
        }
    watch("attacking two runs", 2, 3)
    back = inverted(base, batches[:INVERTED], terms, seed=asked.seed)
    runs["private"]["inversion"] = float(np.mean(back.private))
    runs["without privacy"]["inversion"] = float(np.mean(back.plain))
    watch("attacking two runs", 3, 3)
    return {
        "holds": betrayed.holds,
        "canaries": asdict(betrayed) | {"adapters": asked.adapters},
        "runs": runs,
        "private_epsilon": terms.epsilon,
        "adapters": terms.adapters,
        "patients": len(everybody),
        "seed": asked.seed,
        "note": "a net for gross faults, not a proof: a bound far below its claim shows nothing more",
    }


def _twins(terms: Terms, *, learn: int) -> dict[str, Arm]:
    private = Arm(name="private", terms=terms, hospitals=(0,), learn=learn)
    longer = replace(terms, rounds=LONGER * terms.rounds)
    return {
        "private": private,
        "without privacy": replace(private, name="twin", terms=longer, private=False),
    }


def _patient(number: int, *, seed: int, pairs: int) -> list[Example]:
    """One patient's pairs, each of a hospital of its own; the first is the last visit from all before."""
    key = int.from_bytes(hashlib.sha256(f"oncofed audit {seed}".encode()).digest()[:3], "big")
    patient = virtual_patient(hospital(key, number + 1), seed=key, number=0).patient
    found = examples(patient, SMALL, limit_pairs=pairs, foresee=outlook)
    hand_back()
    return found
