"""The study: everything that bears on privacy or on the result, frozen in one TOML file.

Its identity is the SHA-256 of the RFC 8785 JSON of the validated model: typed, defaults filled in,
keys sorted, no spaces, UTF-8, shortest floats. Comments and layout of the file do not count; any
setting does. The coordinator's study key signs the hash.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import rfc8785
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from oncofed_common.aggregation_terms import AggregationTerms
from oncofed_common.cohort import CHANNELS, LABELS
from oncofed_common.durable import read_regular
from oncofed_common.errors import StudyRefusal
from oncofed_common.identity import PublicKey, SigningKey, digest
from oncofed_common.limits import fault_in_words
from oncofed_common.study_terms import (
    METRICS,
    About,
    CohortTerms,
    ModelTerms,
    OutboundTerms,
    PrivacyTerms,
    SiteTerms,
    TensorTerms,
    Terms,
    TrainingTerms,
    VirtualTerms,
    as_tuple,
)
from oncofed_common.tensors import TensorTerm, schema_digest


class Study(Terms):
    """One study; two studies are the same if and only if their hashes are."""

    study: About
    cohort: CohortTerms
    model: ModelTerms
    training: TrainingTerms
    privacy: PrivacyTerms
    aggregation: AggregationTerms
    outbound: OutboundTerms
    sites: Annotated[tuple[SiteTerms, ...], BeforeValidator(as_tuple), Field(min_length=1)]
    tensors: Annotated[tuple[TensorTerms, ...], BeforeValidator(as_tuple), Field(min_length=1)]
    virtual: VirtualTerms | None = None

    @model_validator(mode="after")
    def _hangs_together(self) -> Study:
        for what, names in (
            ("sites", [site.name for site in self.sites]),
            ("site keys", [site.fingerprint for site in self.sites]),
            ("tensors", [tensor.name for tensor in self.tensors]),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"two {what} with one name")
        if self.aggregation.fewest_sites > len(self.sites):
            raise ValueError("aggregation.fewest_sites is larger than the number of sites")
        if METRICS in [tensor.name for tensor in self.tensors]:
            raise ValueError(f"a trained tensor with the name {METRICS}, which metrics have")
        named = self.outbound.metrics
        told = (self.privacy.metric_bound, self.privacy.metric_noise_multiplier)
        if len(set(named)) != len(named):
            raise ValueError("outbound.metrics names a group twice")
        if any((value is None) == bool(named) for value in told):
            raise ValueError(
                "privacy.metric_bound and metric_noise_multiplier stand where outbound.metrics names "
                "groups, and only there"
            )
        if self.outbound.reply_after_s >= self.aggregation.round_deadline_s:
            raise ValueError("outbound.reply_after_s is not before aggregation.round_deadline_s")
        if (self.training.proximal or 0.0) * self.training.learning_rate > 1:
            raise ValueError(
                "training.proximal times learning_rate is above 1: it would pull too far"
            )
        channels = self.cohort.modalities
        if set(channels) - set(CHANNELS) or len(set(channels)) != len(channels):
            raise ValueError(f"cohort.modalities must be among {', '.join(CHANNELS)}, each once")
        unknown = set(self.cohort.label_scheme) - set(LABELS)
        if unknown or len(set(self.cohort.label_scheme.values())) != len(self.cohort.label_scheme):
            raise ValueError(f"cohort.label_scheme must give {', '.join(LABELS)} distinct values")
        return self

    @property
    def hash(self) -> str:
        """The study's identity, SHA-256 in hex."""
        return digest(rfc8785.dumps(self.model_dump(mode="json", exclude_none=True)))

    @property
    def schema_terms(self) -> tuple[TensorTerm, ...]:
        """The trained tensors, in order of name."""
        terms = (TensorTerm(name=t.name, shape=t.shape) for t in self.tensors)
        return tuple(sorted(terms, key=lambda term: term.name))

    @property
    def reply_terms(self) -> tuple[TensorTerm, ...]:
        """What a reply holds: an update of every trained tensor, and the metrics, where there are any."""
        asked = self.outbound.metrics
        if not asked:
            return self.schema_terms
        metrics = TensorTerm(name=METRICS, shape=(len(asked),))
        return tuple(sorted((*self.schema_terms, metrics), key=lambda term: term.name))

    @property
    def schema_digest(self) -> str:
        return schema_digest(self.schema_terms)

    def site(self, name: str) -> SiteTerms:
        """The invited site called ``name``.

        Raises:
            StudyRefusal: code ``unknown_site``.
        """
        for site in self.sites:
            if site.name == name:
                return site
        raise StudyRefusal(
            "a site that this study does not invite",
            allowed=", ".join(site.name for site in self.sites),
            next="ask the coordinator which study is meant for this site",
            code="unknown_site",
        )

    def check_not_expired(self, now_s: int) -> None:
        """Refuse a study after the end of its last day (UTC).

        Raises:
            StudyRefusal: code ``expired``.
        """
        if datetime.fromtimestamp(now_s, tz=UTC).date() > self.study.expires:
            raise StudyRefusal(
                f"a study that expired on {self.study.expires.isoformat()}",
                allowed="a study that has not expired",
                next="ask the coordinator to publish a new study",
                code="expired",
            )

    def check_slot(self) -> None:
        """Refuse a study of real patients whose replies leave as soon as training ends.

        How long training took tells how many patients were drawn. Seeded studies protect nobody anyway.

        Raises:
            StudyRefusal: code ``no_slot``.
        """
        if self.virtual is None and self.outbound.reply_after_s == 0:
            raise StudyRefusal(
                "outbound.reply_after_s of 0: when a reply leaves would tell how long training took",
                allowed="more seconds than the slowest site needs for a round; 0 in seeded studies only",
                next="state outbound.reply_after_s, and publish the study with it",
                code="no_slot",
            )


def read_study(path: Path) -> Study:
    """Parse ``study.toml``.

    Raises:
        StudyRefusal: not readable, or not a valid study (the first fault, with its key).
    """
    try:
        text = read_regular(path).decode("utf-8")
    except (OSError, UnicodeDecodeError):
        raise StudyRefusal(
            "a study file that cannot be read",
            allowed="a TOML file in UTF-8",
            next="check the path and its permissions",
            code="unreadable",
        ) from None
    return parse_study(text)


def parse_study(text: str) -> Study:
    """Parse the text of a study.

    Raises:
        StudyRefusal: code ``study`` with the first faulty key.
    """
    try:
        fields = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        raise StudyRefusal(
            "a study that is not TOML",
            allowed="TOML 1.0",
            next="compare with a study that oncofed-coordinator draft wrote",
        ) from None
    try:
        return Study.model_validate(fields)
    except ValidationError as error:
        raise _explain(error) from None


def refuse_training(fields: Mapping[str, Any]) -> None:
    """Nothing, where ``[training]`` may stand in a study: before anything is computed from it.

    Raises:
        StudyRefusal: code ``study`` with the first faulty key.
    """
    try:
        TrainingTerms.model_validate(dict(fields))
    except ValidationError as error:
        raise _explain(error, room="training") from None


def sign_study(study: Study, key: SigningKey) -> dict[str, str]:
    """The contents of ``study.sig``."""
    return {
        "study_hash": study.hash,
        "coordinator_key": key.public.hex,
        "signature": key.sign("study", {"study_hash": study.hash}),
    }


def verify_study(study: Study, signed: Mapping[str, Any], *, coordinator: str | None) -> PublicKey:
    """The coordinator's study key, if it signed this study.

    Args:
        coordinator: the fingerprint that was agreed, or None to check integrity only.

    Raises:
        StudyRefusal: another study or another coordinator. IdentityRefusal: ``bad_signature``.
    """
    if set(signed) != {"study_hash", "coordinator_key", "signature"} or not all(
        isinstance(value, str) for value in signed.values()
    ):
        raise _other_study("a study signature with other fields")
    if signed["study_hash"] != study.hash:
        raise _other_study("a signature of another study")
    key = PublicKey(signed["coordinator_key"])
    if coordinator is not None and key.fingerprint != coordinator:
        raise _other_study("a study signed by another coordinator")
    key.verify("study", {"study_hash": study.hash}, signed["signature"])
    return key


def _other_study(found: str) -> StudyRefusal:
    return StudyRefusal(
        found,
        allowed="a study signed by the coordinator of the enrolment",
        next="get study.toml and study.sig together from the coordinator",
        code="wrong_study",
    )


def _explain(error: ValidationError, *, room: str | None = None) -> StudyRefusal:
    """The first fault in words; unknown keys first, with the nearest known one: a misspelt key is
    also a missing one."""
    faults = error.errors(include_url=False)
    first = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    place = (*([room] if room else []), *first["loc"])
    key = ".".join(str(part) for part in place) or "the study as a whole"
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), _known_keys(), n=1)
        hint = f"did you mean {near[0]}?" if near else "remove it"
        return StudyRefusal(f"an unknown key {key}", allowed="the keys of a study", next=hint)
    if first["type"] == "missing":
        drafted = key in {"sites", "tensors", "model.base_sha256"}
        return StudyRefusal(
            f"no {key}",
            allowed="every key: nothing has a default",
            next="settings are no study yet: run oncofed-coordinator draft on them"
            if drafted
            else f"state {key}",
        )
    found, allowed = fault_in_words(first)
    words = re.findall("'([^']+)'", allowed) if first["type"] == "literal_error" else []
    near = difflib.get_close_matches(str(first["input"]), words, n=1)
    hint = f"did you mean {near[0]}?" if near else f"correct {key}"
    return StudyRefusal(f"{key}: {found}", allowed=allowed, next=hint)


def _known_keys() -> list[str]:
    rooms: list[type[Terms]] = [Study, About, CohortTerms, ModelTerms, TrainingTerms, PrivacyTerms]
    rooms += [AggregationTerms, OutboundTerms, SiteTerms, TensorTerms, VirtualTerms]
    return [name for room in rooms for name in room.model_fields]
