"""Does a release prove its story? Recomputed offline, by anybody, from the folder alone.

In this order, and the first thing that is wrong is named by file and check:

    manifest     signed by the task key
    digests      every file of the manifest, and no other file
    study        parses, states at least what it costs, is signed by the coordinator's study key
    roster       task and trainer certificates hold; approver keys are those of the study
    fingerprints the coordinator's and the sites', where they were obtained elsewhere
    records      every signature, the chain, the words; the released weights are the last record's
    log          its chain; its last row is the end that the manifest states
    audit        every task and reply signature; every sum, from first values to released weights

Without fingerprints obtained elsewhere all of it could be somebody's consistent invention: the verdict
then says "integrity only".
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from oncofed_common.durable import read_object
from oncofed_common.errors import OncofedError, SystemRefusal
from oncofed_common.identity import Certificate, PublicKey, canonical, digest, plain_fingerprint
from oncofed_common.study import Study, parse_study, verify_study
from oncofed_common.tensors import pack_tensors
from oncofed_common.wire import SignedParticipation
from oncofed_server.base import first_values, shipped_base
from oncofed_server.participation import check_record, parse_record, run_status
from oncofed_server.release import FIXED, Manifest, record_path
from oncofed_server.replay import Fault, Parties, replay
from oncofed_server.runlog import parse_log
from oncofed_server.studies import price

Trust = Literal["full", "integrity only"]


@dataclass(frozen=True, kw_only=True)
class Fingerprints:
    """What was obtained elsewhere: read aloud, printed, from another release."""

    coordinator: str
    sites: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """``ok`` holds if no check failed. ``unproven`` names parties whose fingerprint was not given."""

    ok: bool
    trust: Trust
    first_fault: Fault | None
    unproven: tuple[str, ...]
    files: int
    rounds: int
    replies: int
    sums: int
    status: str

    @property
    def not_proven(self) -> str:
        """What this verdict leaves open, in words."""
        if self.first_fault is not None:
            return "whatever was not looked at before the first fault"
        return ", ".join(self.unproven) or "-"

    @property
    def result(self) -> str:
        """What came of it, for people."""
        return "everything holds" if self.first_fault is None else _in_words(self.first_fault)

    def failure(self) -> OncofedError | None:
        """What a command ends with where a check failed: exit 1."""
        fault = self.first_fault
        if fault is None:
            return None
        # An error names no file whose name anybody may have chosen; the verdict does.
        foreign = fault.check in ("unlisted", "kind")
        said = f"a file that does not belong there: {fault.check}" if foreign else _in_words(fault)
        return OncofedError(
            f"a release that does not hold: {said}",
            allowed="a release in which every check holds",
            next="do not use its weights; get it again from the coordinator, and verify that",
            code="not_verified",
        )

    def as_dict(self) -> dict[str, Any]:
        fault = self.first_fault
        return {
            "ok": self.ok,
            "trust": self.trust,
            "first_fault": {"path": fault.path, "check": fault.check} if fault else None,
            "unproven": list(self.unproven),
            "status": self.status,
            "checked": {
                "files": self.files,
                "rounds": self.rounds,
                "replies": self.replies,
                "sums": self.sums,
            },
        }


@dataclass(kw_only=True)
class _Progress:
    """How far the checks came: what a verdict reports when one of them fails."""

    trust: Trust = "integrity only"
    unproven: tuple[str, ...] = ()
    files: int = 0
    rounds: int = 0
    replies: int = 0
    sums: int = 0
    status: str = ""


@dataclass(frozen=True, kw_only=True)
class _Release:
    data: Mapping[str, bytes]
    manifest: Manifest


def verify(
    release: Path, *, audit: Path | None, trust: Fingerprints | None, base: Path | None
) -> Verdict:
    """Check a release, and with ``audit`` and ``base`` recompute its sums.

    Args:
        audit: the audit folder; None: sums are not recomputed.
        trust: fingerprints obtained elsewhere.
        base: the base weights that the study names; None: those that are installed, if they are the
            ones. Sums cannot be recomputed without.

    Raises:
        SystemRefusal: code ``missing_files``; something is not there. ModelRefusal: the base weights.
    """
    progress = _Progress()
    try:
        _verify(release, audit=audit, trust=trust, base=base, progress=progress)
        fault = None
    except _Faulty as found:
        fault = found.fault
    return Verdict(
        ok=fault is None,
        trust=progress.trust,
        first_fault=fault,
        unproven=progress.unproven,
        files=progress.files,
        rounds=progress.rounds,
        replies=progress.replies,
        sums=progress.sums,
        status=progress.status,
    )


def read_fingerprints(path: Path) -> Fingerprints:
    """A trust file: ``{"coordinator": FINGERPRINT, "sites": {NAME: FINGERPRINT}}``.

    Raises:
        SystemRefusal: code ``bad_trust``.
    """
    fields = read_object(path, what="a trust file")
    sites = fields.get("sites", {})
    good = set(fields) <= {"coordinator", "sites"} and isinstance(sites, dict)
    coordinator = plain_fingerprint(str(fields.get("coordinator")))
    sites = {name: plain_fingerprint(str(found)) for name, found in sites.items()} if good else {}
    if not good or not all(_is_fingerprint(f) for f in (coordinator, *sites.values())):
        raise SystemRefusal(
            "a trust file with other fields, or a fingerprint that is not 64 hex digits",
            allowed='{"coordinator": FINGERPRINT, "sites": {NAME: FINGERPRINT}}',
            next="copy the fingerprints from whom you got them",
            code="bad_trust",
        )
    return Fingerprints(coordinator=coordinator, sites=sites)


def _in_words(fault: Fault) -> str:
    """A fault for people: a sentence where a check's name would not say enough."""
    whose = {"coordinator_fingerprint": "the coordinator", "site_fingerprint": "a site"}
    said = f"{fault.path}: {fault.check}"
    if fault.check not in whose:
        return said
    return f"{said}; the release names another key for {whose[fault.check]} than the trust file"


class _Faulty(Exception):
    def __init__(self, fault: Fault) -> None:
        self.fault = fault


@contextmanager
def _at(path: str, check: str) -> Iterator[None]:
    """Whatever is refused inside is a fault of ``path``."""
    try:
        yield
    except (OncofedError, ValidationError, UnicodeDecodeError, KeyError, TypeError):
        raise _Faulty(Fault(path=path, check=check)) from None


def _require(holds: bool, path: str, check: str) -> None:
    if not holds:
        raise _Faulty(Fault(path=path, check=check))


def _verify(
    folder: Path,
    *,
    audit: Path | None,
    trust: Fingerprints | None,
    base: Path | None,
    progress: _Progress,
) -> None:
    release = _read_release(folder, progress=progress)
    data = release.data
    study, parties = _parties(release)
    _check_trust(study, parties, trust, progress=progress)
    first = None
    source = base or shipped_base(study)
    if source is not None:
        first = first_values(source, sha256=study.model.base_sha256, schema=study.schema_terms)
    begins = digest(pack_tensors(first)) if first is not None else None
    records = _records(release, study, parties, begins=begins, progress=progress)
    last = records[-1].record.weights_after if records else None
    _require(last in (None, digest(data["weights.safetensors"])), "weights.safetensors", "record")
    _check_log(release)
    if audit is not None:
        if first is None:
            raise _missing("no base weights, from which the sums begin")
        done = replay(audit, study, parties, records=records, first=first)
        progress.replies, progress.sums = done.replies, done.sums
        if done.fault is not None:
            raise _Faulty(done.fault)
        _require(done.weights == data["weights.safetensors"], "weights.safetensors", "sum")


def _read_release(folder: Path, *, progress: _Progress) -> _Release:
    if not (folder / "manifest.json").is_file():
        raise _missing("a release without manifest.json")
    paths = _paths(folder)
    spelled = paths["manifest.json"].read_bytes()
    with _at("manifest.json", "form"):
        manifest = Manifest.model_validate_json(spelled)
        _require(canonical(manifest.model_dump(mode="json")) == spelled, "manifest.json", "form")
    _require(len(manifest.files) == len(FIXED) + manifest.rounds, "manifest.json", "form")
    expected = {*FIXED, *(record_path(n) for n in range(1, manifest.rounds + 1))}
    _require(set(manifest.files) == expected, "manifest.json", "form")
    if expected - set(paths):
        raise _missing(f"a release without {min(expected - set(paths))}")
    task_key = _task_key(paths["roster.json"].read_bytes())
    if task_key is not None:  # else the roster is at fault, and is found so below
        with _at("manifest.json", "signature"):
            task_key.verify("release", manifest.payload(), manifest.signature)
    data: dict[str, bytes] = {}
    for path in sorted(set(paths) - {"manifest.json"}):
        _require(path in manifest.files, path, "unlisted")  # and not read, however long it is
        data[path] = paths[path].read_bytes()
        _require(digest(data[path]) == manifest.files[path], path, "digest")
        progress.files += 1
    progress.status = manifest.status
    return _Release(data=data, manifest=manifest)


def _task_key(roster: bytes) -> PublicKey | None:
    """The task key that the roster's study key certifies, at whatever time; None: it does not."""
    try:
        fields = _object(roster)["coordinator"]
        certificate = Certificate.from_dict(fields["task_certificate"])
        issuer = PublicKey(fields["study_key"])
        return certificate.check(issuer=issuer, purpose="task", now_s=certificate.not_before_s)
    except (OncofedError, KeyError, TypeError):
        return None


def _paths(folder: Path) -> dict[str, Path]:
    """Every file by its name in the folder, which holds files and folders only."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        _require(not path.is_symlink() and (path.is_file() or path.is_dir()), name, "kind")
        if path.is_file():
            found[name] = path
    return found


def _parties(release: _Release) -> tuple[Study, Parties]:
    """The study, and everybody's keys, as far as they bear each other out."""
    data, manifest = release.data, release.manifest
    with _at("study.toml", "form"):
        study = parse_study(data["study.toml"].decode("utf-8"))
    _require(study.hash == manifest.study_hash, "study.toml", "hash")
    with _at("study.toml", "epsilon"):
        price(study)
    with _at("roster.json", "form"):
        roster = _object(data["roster.json"])
        coordinator = PublicKey(roster["coordinator"]["study_key"])
        certificate = Certificate.from_dict(roster["coordinator"]["task_certificate"])
        keys = {s["site"]: PublicKey(s["approver_key"]) for s in roster["sites"]}
        trainers = {s["site"]: s["trainer_certificate"] for s in roster["sites"]}
    with _at("study.sig", "signature"):
        signer = verify_study(study, _object(data["study.sig"]), coordinator=None)
    _require(signer == coordinator, "study.sig", "signer")
    with _at("roster.json", "certificate"):
        task_key = certificate.check(issuer=coordinator, purpose="task", now_s=manifest.ended_s)
        for site, fields in trainers.items():
            trainer = Certificate.from_dict(fields)
            trainer.check(issuer=keys[site], purpose="trainer", now_s=trainer.not_before_s)
    stated = {site.name: site.fingerprint for site in study.sites}
    found = {name: key.fingerprint for name, key in keys.items()}
    _require(found == stated, "roster.json", "fingerprints")
    return study, Parties(
        run=manifest.run, coordinator=coordinator, task_key=task_key, approvers=keys
    )


def _check_trust(
    study: Study, parties: Parties, trust: Fingerprints | None, *, progress: _Progress
) -> None:
    names = tuple(site.name for site in study.sites)
    if trust is None:
        progress.unproven = ("coordinator", *names)
        return
    _require(
        parties.coordinator.fingerprint == trust.coordinator, "study.sig", "coordinator_fingerprint"
    )
    for site in study.sites:
        given = trust.sites.get(site.name, site.fingerprint)
        _require(given == site.fingerprint, "study.toml", "site_fingerprint")
    progress.unproven = tuple(name for name in names if name not in trust.sites)
    if not progress.unproven:
        progress.trust = "full"


def _records(
    release: _Release, study: Study, parties: Parties, *, begins: str | None, progress: _Progress
) -> list[SignedParticipation]:
    manifest = release.manifest
    records: list[SignedParticipation] = []
    for number in range(1, manifest.rounds + 1):
        path = record_path(number)
        with _at(path, "form"):
            signed = parse_record(release.data[path])
        try:
            check_record(
                signed,
                study=study,
                study_hash=manifest.study_hash,
                run=manifest.run,
                before=records[-1] if records else None,
                weights_before=None if records else begins,
                task_key=parties.task_key,
            )
        except OncofedError as error:
            raise _Faulty(Fault(path=path, check=error.code)) from None
        records.append(signed)
        progress.rounds += 1
    word = run_status([s.record.status for s in records], planned=study.training.rounds)
    _require(word == manifest.status, "manifest.json", "status")
    return records


def _check_log(release: _Release) -> None:
    manifest = release.manifest
    with _at("log.jsonl", "chain"):
        rows = parse_log(release.data["log.jsonl"])
    _require(all(row.run == manifest.run for row in rows), "log.jsonl", "run")
    end = rows[-1] if rows else None
    wanted = ("run_ended", manifest.status, manifest.rounds)
    _require(end is not None and (end.event, end.code, end.round) == wanted, "log.jsonl", "end")


def _object(data: bytes) -> dict[str, Any]:
    """A canonical JSON object."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or canonical(value) != data:
        raise _missing("a file that is not canonical JSON")
    return value


def _is_fingerprint(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and not set(value) - set("0123456789abcdef")


def _missing(found: str) -> SystemRefusal:
    return SystemRefusal(
        found,
        allowed="a whole release folder; with --audit its audit folder and base weights",
        next="get what is missing from the coordinator",
        code="missing_files",
    )
