"""What the weights that a task brings are worth on patients whom its study leaves out: noised means alone.

Each patient's loss is that of training, from noise of its own. Whoever cannot be computed counts as nothing,
like a patient who cannot be trained on: an abort would be an answer about that patient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from oncofed_client.trainer.members import Member
from oncofed_client.trainer.training import Setup, deterministic, loss_for, set_weights
from oncofed_common.errors import StudyRefusal
from oncofed_common.privacy.private_means import mean_mechanism, private_means
from oncofed_common.privacy.stream import Stream


def measure(
    held_out: Sequence[Member],
    *,
    setup: Setup,
    weights: Mapping[str, NDArray[np.float32]],
    stream: Stream,
) -> NDArray[np.float64]:
    """The noised figure of each group that the study names, in its order.

    Args:
        held_out: everybody who is charged for this round and not trained on.
    """
    study = setup.study
    bound, noise = study.privacy.metric_bound, study.privacy.metric_noise_multiplier
    if bound is None or noise is None:
        raise StudyRefusal(
            "metrics that a study does not ask for",
            allowed="a study that names groups, a bound and a noise",
            next="train without metrics",
        )
    set_weights(setup.trained, weights)
    loss_of = loss_for(setup)
    losses = []
    with deterministic(study.training.threads), torch.no_grad():
        for member in held_out:
            generator = torch.Generator().manual_seed(stream.torch_seed())
            try:
                losses.append(float(loss_of(member.rows, generator)))
            except Exception:  # noqa: BLE001  an abort would tell about this patient
                losses.append(float("nan"))
    asked = study.outbound.metrics
    return private_means(
        losses,
        [member.groups for member in held_out],
        asked=asked,
        bound=bound,
        mechanism=mean_mechanism(
            bound=bound,
            noise_multiplier=noise,
            groups=len(asked),
            declared_patients=setup.declared_patients,
            held_out_fraction=study.cohort.held_out_fraction,
        ),
        stream=stream,
    )
