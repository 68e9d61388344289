"""Is a site's home whole, its own alone, writable, and has its disk room?"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from collections.abc import Iterator

from cryptography import x509

from oncofed_client.doctor.finding import Finding, fault, warning, well
from oncofed_client.home import Home
from oncofed_common.durable import HEADROOM_BYTES
from oncofed_common.errors import OncofedError

LOW_BYTES = 2**30
SOON_S = 60 * 86_400
_DAY_S = 86_400

_SECRET = ("approver/key.pem", "trainer/key.pem", "trainer/secret", "courier/node_key")
_NEEDED = (*_SECRET, "trainer/certificate.json", "trainer/policy.toml", "trainer/ledger.sqlite")
_NEEDED_LATER = ("courier/approved_bundles.json", "head/ledger-head.json")
_UNCALLED = ("not_joined", "bad_answer", "policy")
_NAMED = (*_UNCALLED, "no_key_file")
ENDS = (*_UNCALLED, "keys_unreadable", "authority_differs", "authority_damaged")
"""Findings with which nobody can be called."""
_WRITTEN = ("trainer", "courier", "head", "run")
_SHARED = "courier"  # in containers the courier's group may read what lies there


def permissions(home: Home) -> Finding:
    """Every file is there, belongs to whom the home belongs to, shows nobody a key, and takes writes."""
    missing = [name for name in (*_NEEDED, *_NEEDED_LATER) if not (home.root / name).is_file()]
    missing += [name for name in _WRITTEN if not (home.root / name).is_dir()]
    if missing:
        return fault(
            "permissions",
            "home_incomplete",
            f"not there, or not readable: {', '.join(missing)}",
            whose="this site",
            next="restore the home folder as a whole; for the head alone see settle",
        )
    owner = home.root.stat().st_uid
    foreign = [name for name in _NEEDED if (home.root / name).stat().st_uid != owner]
    if foreign:
        return fault(
            "permissions",
            "wrong_owner",
            f"of another user than the home: {', '.join(foreign)}",
            whose="this site",
            next="give the files to the user that runs oncofed-site: chown, then run this again",
        )
    if opened := list(_too_open(home)):
        return fault(
            "permissions",
            "too_open",
            f"other users may read or write: {', '.join(opened)}",
            whose="this site",
            next="chmod go-rwx; if somebody may have read a key, run oncofed-site rotate",
        )
    kept_out = next((found for name in _WRITTEN if (found := _write(home, name))), None)
    return kept_out or well("permissions", "whole, ours alone, writable")


def keys(home: Home, *, now_s: float) -> Finding:
    """The coordinator's answer and authority are those that were joined; the certificate lasts."""
    try:
        if (home.trainer / "key.pem").exists():  # else it is no whole home, which was said
            home.trainer_key()
        answer, certificate = home.answer(), home.trainer_certificate()
        home.policy()
        pinned = (home.courier / "ca.pem").read_text(encoding="utf-8")
    except OncofedError as error:
        code = error.code if error.code in _NAMED else "keys_unreadable"
        return fault("keys", code, error.found, whose="this site", next=error.next)
    except (OSError, ValueError):
        pinned = ""
    if pinned != answer["ca_pem"]:
        return fault(
            "keys",
            "authority_differs",
            "the courier's authority (courier/ca.pem) is not the one that was joined",
            whose="this site",
            next="run oncofed-site join again with the coordinator's answer file",
        )
    try:
        authority = x509.load_pem_x509_certificate(pinned.encode())
    except ValueError:
        return fault(
            "keys",
            "authority_damaged",
            "the coordinator's authority is no certificate",
            whose="this site",
            next="run oncofed-site join again with the coordinator's answer file",
        )
    if authority.not_valid_after_utc.timestamp() < now_s:
        return fault(
            "keys",
            "authority_expired",
            f"the coordinator's authority ended on {authority.not_valid_after_utc:%Y-%m-%d}",
            whose="the coordinator",
            next="ask the coordinator for a new answer file, and join again; check this clock first",
        )
    left_s = certificate.not_after_s - now_s
    ends = time.strftime("%Y-%m-%d", time.gmtime(certificate.not_after_s))
    if left_s < SOON_S:
        say = fault if left_s < 0 else warning
        return say(
            "keys",
            "key_expired" if left_s < 0 else "key_soon",
            f"the certificate of the trainer's key ends on {ends}",
            whose="this site",
            next="run oncofed-site rotate and send the new enrolment.json to the coordinator",
        )
    return well("keys", f"joined; the trainer's certificate lasts until {ends}")


def disk(home: Home, *, update_bytes: int) -> Finding:
    """Free bytes and files on the disk under the home."""
    state = os.statvfs(home.root)
    free, files = state.f_bavail * state.f_frsize, state.f_favail
    seen = f"{free // 2**20} MiB free"
    if free < HEADROOM_BYTES + 4 * update_bytes:
        return fault(
            "disk",
            "disk_full",
            seen,
            whose="this machine",
            next=f"free at least {(HEADROOM_BYTES + 4 * update_bytes) // 2**20 + 1} MiB",
        )
    if state.f_files and files < 256:
        return fault(
            "disk",
            "no_inodes",
            f"{seen}, but room for {files} more files only",
            whose="this machine",
            next="remove small files, or make the file system with more inodes",
        )
    if free < LOW_BYTES:
        return warning(
            "disk",
            "disk_low",
            seen,
            whose="this machine",
            next="free 1 GiB: ledger, stored replies and logs grow with every round",
        )
    return well("disk", seen)


def _too_open(home: Home) -> Iterator[str]:
    if stat.S_IMODE(home.root.stat().st_mode) & 0o002:  # whoever may rename may exchange folders
        yield "the home itself"
    for name in _NEEDED:
        mode = stat.S_IMODE((home.root / name).stat().st_mode)
        if mode & (0o027 if name.startswith(f"{_SHARED}/") else 0o077):
            yield name
    for name in ("approver", "trainer"):
        if stat.S_IMODE((home.root / name).stat().st_mode) & 0o077:
            yield f"{name}/"
    if stat.S_IMODE(home.courier.stat().st_mode) & 0o007:
        yield "courier/"


def _write(home: Home, name: str) -> Finding | None:
    """What keeps this account from writing into a folder of the home; None if nothing does."""
    trial = home.root / name / f".doctor.{secrets.token_hex(4)}"
    try:
        trial.write_bytes(b"\0")
        trial.unlink()
    except OSError as error:
        with_room = error.errno in (errno.ENOSPC, errno.EDQUOT)
        trial.unlink(missing_ok=True) if error.errno != errno.EROFS else None
        if with_room:
            return None  # the disk's own check says it
        code = "read_only" if error.errno == errno.EROFS else "not_writable"
        return fault(
            "permissions",
            code,
            f"{name}/ of the home takes no file"
            + (": its file system is mounted read-only" if code == "read_only" else ""),
            whose="this machine",
            next="mount it for writing"
            if code == "read_only"
            else "give it to this account: chown",
        )
    return None
