"""What may be wrong with a home, a machine, a container or an account, ready to plant. Each needs root."""

from __future__ import annotations

import datetime as dt
import json
import os
import time
from pathlib import Path

from doctor_lab import NAMES, Lab, hide_jail, mount, small_disk
from doctor_line_faults import YEAR, Plant, keep_authority, now
from doctor_servers import certificate_of
from grown_ledger import by_force
from own_disk import fill, make_read_only
from site_builder import PASSPHRASE

from oncofed_client.enrolment import trainer_certificate
from oncofed_client.ledger import Ledger
from oncofed_client.trainer.log import open_log
from oncofed_client.trainer.refused import note_refusal
from oncofed_common.identity import SigningKey, canonical
from oncofed_server.certificates import make_certificates

CGROUPS = Path("/sys/fs/cgroup")


def removed(name: str) -> Plant:
    """A file of the home is gone."""

    def plant(lab: Lab) -> None:
        lab.coordinator()
        (lab.home.root / name).unlink()

    return plant


def opened(name: str, mode: int) -> Plant:
    """A file of the home has other permissions."""

    def plant(lab: Lab) -> None:
        lab.coordinator()
        (lab.home.root / name).chmod(mode)

    return plant


def limited(*words: str) -> Plant:
    """The account may use less (setrlimit(2), as ulimit sets it)."""

    def plant(lab: Lab) -> None:
        lab.coordinator()
        lab.prefix += ["prlimit", *words]

    return plant


def written(name: str, text: str) -> Plant:
    """A file of the home says something else."""

    def plant(lab: Lab) -> None:
        lab.coordinator()
        (lab.home.root / name).write_text(text)

    return plant


def without_its_key_file(lab: Lab) -> None:
    """The home says that its key lies under a file which is elsewhere."""
    lab.coordinator()
    card = lab.home.root / "site.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"key_file": "/volume/key"}))


def edited(name: str, act: str) -> Plant:
    """Somebody who has the file changed a row of a chain."""

    def plant(lab: Lab) -> None:
        lab.coordinator()
        with open_log(
            lab.home.trainer / "log.jsonl",
            head=lab.home.refused_head_path,
            key=lab.home.trainer_key(),
        ) as log:
            note_refusal(log, "no_route", request=b"", sent=b"")
        by_force(lab.home.trainer / name, (act,))

    return plant


def folder_for_refusals(lab: Lab) -> None:
    lab.coordinator()
    (lab.home.trainer / "refused.sqlite").unlink(missing_ok=True)
    (lab.home.trainer / "refused.sqlite").mkdir()


def another_key(lab: Lab) -> None:
    lab.coordinator()
    (lab.home.trainer / "key.pem").unlink()
    SigningKey.generate().save(lab.home.trainer / "key.pem", passphrase=None)


def a_later_row(lab: Lab) -> None:
    """Written by a clock that was an hour ahead."""
    lab.coordinator()
    with Ledger.open(lab.home, clock=lambda: time.time() + 3600) as ledger:
        ledger.distrust("0" * 64, key=lab.home.approver_key(PASSPHRASE))


def a_restored_ledger(lab: Lab) -> None:
    """An older copy of the file, beside the head of the newer one."""
    lab.coordinator()
    kept = lab.home.ledger_path.read_bytes()
    with Ledger.open(lab.home) as ledger:
        ledger.distrust("0" * 64, key=lab.home.approver_key(PASSPHRASE))
    for path in lab.home.trainer.glob("ledger.sqlite-*"):
        path.unlink()
    lab.home.ledger_path.write_bytes(kept)


def certificate_made(ago: dt.timedelta) -> Plant:
    """The trainer's certificate was made long ago."""

    def plant(lab: Lab) -> None:
        lab.coordinator()
        certificate = trainer_certificate(
            lab.home.approver_key(PASSPHRASE),
            lab.home.trainer_key().public,
            site=lab.home.site,
            epoch=1,
            virtual=False,
            now_s=int(time.time() - ago.total_seconds()),
        )
        path = lab.home.trainer / "certificate.json"
        path.write_bytes(canonical(certificate.as_dict()))

    return plant


def driver(says: str, *, status: int) -> Plant:
    """The driver's own program, as it is on such a machine."""

    def plant(lab: Lab) -> None:
        lab.coordinator()
        folder = lab.home.root.parent / "programs"
        folder.mkdir()
        program = folder / "nvidia-smi"
        program.write_text(f"#!/bin/sh\necho '{says}'\nexit {status}\n")
        program.chmod(0o755)
        lab.environment["PATH"] = f"{folder}:{os.environ['PATH']}"

    return plant


def on_a_disk(size: str, *, leaving_bytes: int = 0) -> Plant:
    """The home lies on a small disk of its own."""

    def plant(lab: Lab) -> None:
        lab.coordinator()
        small_disk(lab.home.root, size)
        if leaving_bytes:
            fill(lab.home.root / "filling", leaving_bytes=leaving_bytes)

    return plant


def on_a_read_only_disk(lab: Lab) -> None:
    lab.coordinator()
    small_disk(lab.home.root, "size=2g")
    make_read_only(lab.home.root)


def of_another_user(lab: Lab) -> None:
    lab.coordinator()
    os.chown(lab.home.trainer / "secret", 12345, 12345)


def folder_that_takes_nothing(lab: Lab) -> None:
    """A folder in which even root makes no file: a bind mount of the kernel's own settings."""
    lab.coordinator()
    mount(Path("/proc/sys/fs"), lab.home.root / "run")


def an_older_flower(lab: Lab) -> None:
    lab.coordinator()
    folder = lab.home.root.parent / "packages" / "flwr-1.40.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: flwr\nVersion: 1.40.0\n")
    lab.environment["PYTHONPATH"] = str(folder.parent)


def without_monai(lab: Lab) -> None:
    lab.coordinator()
    folder = lab.home.root.parent / "packages"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import importlib.metadata as m\nknown = m.version\n"
        "def version(name):\n    if name == 'monai':\n        raise m.PackageNotFoundError(name)\n"
        "    return known(name)\nm.version = version\n"
    )
    lab.environment["PYTHONPATH"] = str(folder)


def no_program_for_namespaces(lab: Lab) -> None:
    """A machine without util-linux: the trainer is started in the network of everybody."""
    lab.coordinator()
    folder = lab.home.root.parent / "no-programs"
    folder.mkdir()
    lab.environment["PATH"] = str(folder)


def no_jail(lab: Lab) -> None:
    """A kernel or runtime that forbids mount namespaces and Landlock."""
    lab.coordinator()
    hide_jail()


def no_answer_kept(lab: Lab) -> None:
    (lab.home.root / "answer.json").unlink()


def other_authority_in_the_couriers_folder(lab: Lab) -> None:
    lab.coordinator()
    folder = lab.home.root.parent / "other"
    make_certificates(folder, names=NAMES, now=now())
    (lab.home.courier / "ca.pem").write_text((folder / "ca.pem").read_text())


def damaged_authority(lab: Lab) -> None:
    lab.coordinator()
    answer = json.loads((lab.home.root / "answer.json").read_text())
    (lab.home.root / "answer.json").write_text(json.dumps(answer | {"ca_pem": "nothing"}))
    (lab.home.courier / "ca.pem").write_text("nothing")


def authority_of_another_user(lab: Lab) -> None:
    """Root may read it, the courier in its jail may not."""
    lab.coordinator()
    (lab.home.courier / "ca.pem").chmod(0o600)
    os.chown(lab.home.courier / "ca.pem", 12345, 12345)


def authority_that_ended(lab: Lab) -> None:
    folder = lab.home.root.parent / "old"
    make_certificates(folder, names=NAMES, now=now() - 11 * YEAR)
    (folder / "server.pem").unlink()
    make_certificates(folder, names=NAMES, now=now())
    keep_authority(lab, folder)
    lab.coordinator(tls=certificate_of(folder))


def group(controller: str, setting: str, value: str) -> Plant:
    """A container that gets less: a control group of the kernel's version 1."""

    def plant(lab: Lab) -> None:
        lab.coordinator()
        folder = CGROUPS / controller / f"oncofed-doctor-{os.getpid()}"
        folder.mkdir()
        (folder / setting).write_text(value)
        script = f'echo $$ > {folder}/cgroup.procs; exec "$@"'
        lab.prefix += ["sh", "-c", script, "sh"]
        lab.open.callback(folder.rmdir)

    return plant


SMI = "NVIDIA RTX A6000, 595.10, 49140, 48000"
PLACE_FAULTS: dict[str, tuple[str, Plant]] = {
    "a home without its copied head": ("home_incomplete", removed("head/ledger-head.json")),
    "a home without its secret": ("home_incomplete", removed("trainer/secret")),
    "a secret that others may read": ("too_open", opened("trainer/secret", 0o644)),
    "a home in which everybody may rename": ("too_open", opened("", 0o777)),
    "a trainer's folder that a group may enter": ("too_open", opened("trainer", 0o750)),
    "a node key that everybody may read": ("too_open", opened("courier/node_key", 0o604)),
    "a secret of another user": ("wrong_owner", of_another_user),
    "a site that has not joined": ("not_joined", no_answer_kept),
    "a key file that is not mounted": ("no_key_file", without_its_key_file),
    "a trainer's key that is damaged": (
        "keys_unreadable", written("trainer/key.pem", "nothing")),
    "a policy that contradicts itself": (
        "policy", written("trainer/policy.toml", "declared_patients = 0\n")),
    "an authority that is no certificate": ("authority_damaged", damaged_authority),
    "an authority that the courier may not read": ("courier_fails", authority_of_another_user),
    "an answer that somebody edited": ("bad_answer", written("answer.json", '{"site": "north"}')),
    "another authority in the courier's folder": (
        "authority_differs", other_authority_in_the_couriers_folder),
    "an authority that ended": ("authority_expired", authority_that_ended),
    "a trainer's certificate that ended": ("key_expired", certificate_made(6 * YEAR)),
    "a node key that is damaged": ("node_key_damaged", written("courier/node_key", "nothing")),
    "a ledger in which somebody changed a row": (
        "ledger_damaged", edited("ledger.sqlite", "UPDATE ledger SET signature = hex(zeroblob(64))")),
    "a ledger that was restored from a backup": ("ledger_behind", a_restored_ledger),
    "a ledger whose latest row is of an hour to come": ("clock_before_ledger", a_later_row),
    "a secret of another site": ("secret_changed", written("trainer/secret", "7" * 32)),
    "a trainer's key of another site": ("key_mismatch", another_key),
    "refusals of which one was taken out": (
        "refusals_damaged", edited("refused.sqlite", "DELETE FROM ledger WHERE sequence = 1")),
    "a folder in the place of the refusals": ("refusals_unwritable", folder_for_refusals),
    "files of ten MiB at most": ("small_files", limited(f"--fsize={10 * 2**20}")),
    "a minute of processor time": ("cpu_time", limited("--cpu=60")),
    "a hundred open files": ("few_files", limited("--nofile=100")),
    "fifty processes": ("few_processes", limited("--nproc=50")),
    "an address space of 900 MiB": ("memory_limit", limited(f"--as={900 * 2**20}")),
    "a driver that was updated under a running kernel": (
        "gpu_driver_mismatch",
        driver("Failed to initialize NVML: Driver/library version mismatch", status=18)),
    "a driver that is not loaded": (
        "gpu_driver",
        driver("NVIDIA-SMI has failed because it couldn’t communicate with the driver", status=9)),
    "another version of Flower": ("package_version", an_older_flower),
    "a package that is missing": ("package_missing", without_monai),
    "a machine that starts the trainer with a network": (
        "trainer_has_network", no_program_for_namespaces),
}  # fmt: skip
"""As ``LINE_FAULTS``; of one process alone."""

MOUNT_FAULTS: dict[str, tuple[str, Plant]] = {
    "a full disk": ("disk_full", on_a_disk("size=256m", leaving_bytes=4 * 2**20)),
    "a disk that takes no more files": ("no_inodes", on_a_disk("size=2g,nr_inodes=200")),
    "a home on a read-only disk": ("read_only", on_a_read_only_disk),
    "a folder of the home that takes no file": ("not_writable", folder_that_takes_nothing),
    "a kernel that gives the courier no jail": ("courier_unjailed", no_jail),
}  # fmt: skip
"""As ``PLACE_FAULTS``; each in a process with mounts of its own."""

GROUP_FAULTS: dict[str, tuple[str, Plant]] = {
    "a container of 900 MiB": (
        "memory_limit",
        group("memory", "memory.limit_in_bytes", str(900 * 2**20)),
    ),
    "a container of sixty processes": ("few_processes", group("pids", "pids.max", "60")),
}
"""As ``PLACE_FAULTS``; on a machine whose control groups can be made."""

GROUP_WARNINGS: dict[str, tuple[str, Plant]] = {
    "a container of half a processor": ("cpu_quota", group("cpu", "cpu.cfs_quota_us", "50000")),
}  # fmt: skip

MOUNT_WARNINGS: dict[str, tuple[str, Plant]] = {
    "a disk that is nearly full": ("disk_low", on_a_disk("size=600m")),
}  # fmt: skip

PLACE_WARNINGS: dict[str, tuple[str, Plant]] = {
    "a trainer's certificate of its last month": (
        "key_soon",
        certificate_made(5 * YEAR - dt.timedelta(days=30)),
    ),
}
