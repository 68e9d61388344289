"""What is a patient promised under a study? The privacy statement, made from the study itself.

Its prose is ``statement.md``. Every number in it is read from the study, and its last table holds
every setting, so that it can say nothing else than what runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Template
from typing import Any

from oncofed_common.screen import print_json, print_text
from oncofed_common.study import Study, read_study

TOLD_OTHERWISE = ("tensors", "fingerprint")
"""As how many weights leave, and as the name under which a site is enrolled."""
MARKUP = frozenset("\\`*_{}[]<>()#|!")


def statement(study: Study) -> str:
    """The statement as Markdown; the same study gives the same text."""
    training, privacy = study.training, study.privacy
    prose = Template((Path(__file__).parent / "statement.md").read_text(encoding="utf-8"))
    return prose.substitute(
        title=_plain(study.study.title),
        hash=study.hash,
        contact=_plain(study.study.contact),
        guarantee=_guarantee(study),
        steps=training.rounds * training.steps_per_round,
        rounds=training.rounds,
        steps_per_round=training.steps_per_round,
        rate=f"{training.sampling_rate:g}",
        pairs=training.pairs_per_patient,
        draws=training.draws_per_patient,
        clip=f"{privacy.clip_norm:g}",
        noise=f"{privacy.noise_multiplier:g}",
        randomness=_randomness(study),
        bytes=f"{study.outbound.bytes_per_round:,}",
        weights=f"{sum(math.prod(tensor.shape) for tensor in study.tensors):,}",
        tensors=len(study.tensors),
        metrics=_metrics(study),
        slot=study.outbound.reply_after_s,
        kept="none" if study.study.release == "weights" else "all, in an audit folder beside it",
        settings="\n".join(f"| `{name}` | {_plain(value)} |" for name, value in _settings(study)),
    )


def show_statement(path: Path, *, as_json: bool) -> None:
    """Print the statement of the study in ``path``.

    Raises:
        StudyRefusal: not readable, or not a valid study.
    """
    study = read_study(path)
    text = statement(study)
    if as_json:
        print_json({"study": study.hash, "statement": text})
    else:
        print_text(text)


def _guarantee(study: Study) -> str:
    epsilon, delta = study.privacy.epsilon, study.privacy.delta
    times = f" = {float(f'{math.exp(epsilon):.3g}'):,g}" if epsilon <= 10 else ""
    told = (
        f"({epsilon:g}, {delta:g})-differential privacy of everything that leaves a hospital's\n"
        "trainer during the whole study, for every patient, drawn or not: nothing that may be seen becomes\n"
        f"more than e^{epsilon:g}{times} times as likely because one patient takes part, but for a\n"
        f"probability of {delta:g}."
    )
    if study.virtual is None:
        return told
    return (
        "None. This study carries a seed: it is for virtual patients, and homes of real ones refuse it.\n"
        f"Without the seed it would be {told}"
    )


def _metrics(study: Study) -> str:
    asked, bound = study.outbound.metrics, study.privacy.metric_bound
    if not asked:
        return "No metric."
    noise = study.privacy.metric_noise_multiplier
    return (
        "Of the patients whom\nthis study does not train on (a keyed hash of each decides), once a round "
        f"and in each of the groups\n{', '.join(asked)}: the sum of their losses, each {bound:g} at most, "
        "over the public number of them,\n"
        f"with noise of {noise:g} times {bound:g} times the root of {len(asked)} in all. "
        "They are charged as the others are, and\nthe guarantee holds for them too; every group is "
        "answered in every round, whoever is in it. No other metric."
    )


def _randomness(study: Study) -> str:
    if study.virtual is None:
        return (
            "Draws and noise come from AES-256 in counter mode under a key from the operating system,\n"
            "which is never written or logged."
        )
    return (
        f"Draws and noise follow from the seed {study.virtual.seed}, so that the run can be repeated;\n"
        "whoever knows it can take the noise away again. Replies say `protected: false`."
    )


def _settings(study: Study) -> Iterator[tuple[str, str]]:
    """Every setting by its place in the file."""
    yield from _walk(study.model_dump(mode="json", exclude_none=True), "")


def _walk(value: Any, place: str) -> Iterator[tuple[str, str]]:  # what JSON can hold
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in TOLD_OTHERWISE:
                yield from _walk(inner, f"{place}.{key}" if place else key)
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for entry in value:
            named = {key: inner for key, inner in entry.items() if key != "name"}
            yield from _walk(named, f"{place}.{entry['name']}")
    else:
        yield place, ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _plain(text: str) -> str:
    """Text of a study becomes no heading, link or cell."""
    return "".join(f"\\{letter}" if letter in MARKUP else letter for letter in text)
