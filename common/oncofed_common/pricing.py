"""What a study does to a patient's data, as events that an accountant prices."""

from __future__ import annotations

from oncofed_common.privacy.events import SubsampledGaussian
from oncofed_common.study import Study


def event_of(study: Study) -> SubsampledGaussian:
    """Everything that the whole study does to the data of a patient who is trained on."""
    return SubsampledGaussian(
        rate=study.training.sampling_rate,
        noise_multiplier=study.privacy.noise_multiplier,
        steps=study.training.rounds * study.training.steps_per_round,
    )


def metrics_event_of(study: Study) -> SubsampledGaussian | None:
    """Everything that it does to the data of a patient who is held out; None: nothing."""
    noise = study.privacy.metric_noise_multiplier
    if noise is None:
        return None
    return SubsampledGaussian(rate=1.0, noise_multiplier=noise, steps=study.training.rounds)


def events_of(study: Study) -> tuple[SubsampledGaussian, ...]:
    """What it does to those who are trained on, and to those held out: in one study nobody is both."""
    metrics = metrics_event_of(study)
    return (event_of(study),) if metrics is None else (event_of(study), metrics)
