"""Podman on this machine: images built as their files say, programs run in them, what was made taken away.

What is built depends on the files of this checkout alone: an image whose label names the same inputs is
not built again. Where pip finds its packages on this machine is told to the build and kept in no layer.
"""

from __future__ import annotations

import ast
import hashlib
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy_manifests import DEPLOY

ROOT = DEPLOY.parent
ROLES = ("trainer", "courier", "coordinator")
SUITE = "bookworm"
BASE = f"localhost/oncofed-test-base:{SUITE}"
DOOR = f"localhost/oncofed-test-door:{SUITE}-2"
LABEL = "oncofed.inputs"
NEEDED = ("podman", "mmdebstrap", "runc", "netavark", "aardvark-dns", "iptables", "catatonit")
_HELPERS = (
    "/usr/lib/podman:/usr/libexec/podman:/usr/local/libexec/podman"  # where podman keeps its own
)
PIP_WORDS = ("index-url", "extra-index-url", "find-links", "cert", "trusted-host", "timeout")
_LEFT_OUT = ("man", "doc", "locale", "info")  # of /usr/share, as in the image that we stand in for
_CONF = """
[containers]
default_ulimits = ["nofile=16384:16384", "nproc=16384:16384"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
"""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Podman, with the configuration and the scratch folder that it is used with."""

    scratch: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "CONTAINERS_CONF": str(self.scratch / "containers.conf")}

    def podman(
        self, *words: str, check: bool = True, timeout_s: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        """Run podman; a failure shows what it said."""
        return self.run(["podman", *words], check=check, timeout_s=timeout_s)

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        timeout_s: float = 120.0,
        more: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program with podman's configuration, and ``more`` in its environment."""
        done = subprocess.run(
            argv,
            env={**self.environment, **(more or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert not check or done.returncode == 0, f"{argv}\n{done.stdout}\n{done.stderr}"
        return done


def missing() -> str | None:
    """Why no image can be built here; None where one can."""
    if os.geteuid() != 0:
        return "images are built and networks made by root"
    path = f"{os.environ.get('PATH', os.defpath)}:{_HELPERS}"
    absent = [name for name in NEEDED if shutil.which(name, path=path) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def open_engine(scratch: Path) -> Engine:
    """An engine that keeps its own configuration under ``scratch``."""
    scratch.mkdir(parents=True, exist_ok=True)
    (scratch / "containers.conf").write_text(_CONF)
    return Engine(scratch=scratch)


def build_all(engine: Engine) -> dict[str, float]:
    """Base, door and the three images, as far as they are not there; the seconds that each took."""
    took_s = {"base": _timed(lambda: _build_base(engine))}
    took_s["door"] = _timed(lambda: _build_door(engine))
    began_s, cpu_s = time.monotonic(), _cpu_s()
    running = {role: _start_build(engine, role) for role in ROLES if not _is_built(engine, role)}
    for role, build in running.items():
        said, _ = build.communicate(timeout=1200)
        assert build.returncode == 0, said.decode(errors="replace")[-4000:]
        took_s[role] = time.monotonic() - began_s
    return took_s | {"cpu": _cpu_s() - cpu_s}


def image(role: str) -> str:
    """The name of the image of ``role`` that the tests build."""
    return f"localhost/oncofed-test-{role}:1"


def size_mb(engine: Engine, name: str) -> float:
    """What an image takes on disk, in megabytes of 10^6 bytes."""
    said = engine.podman("image", "inspect", "--format", "{{.Size}}", name).stdout
    return int(said) / 1e6


def _cpu_s() -> float:
    """Seconds of a core that programs which this process started, and which have ended, took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _timed(work) -> float:
    began_s = time.monotonic()
    work()
    return time.monotonic() - began_s


def _build_base(engine: Engine) -> None:
    """Debian with Python: stands in for the image that the container files name, which lies elsewhere."""
    if engine.podman("image", "exists", BASE, check=False).returncode == 0:
        return
    tree = engine.scratch / "base.tar"
    leave_out = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _LEFT_OUT]
    included = "--include=python3,python3-venv,ca-certificates"
    argv = ["mmdebstrap", "--variant=minbase", included, *leave_out, SUITE, str(tree)]
    engine.run(argv, timeout_s=900)
    engine.podman("import", str(tree), BASE, timeout_s=300)
    tree.unlink()


def _build_door(engine: Engine) -> None:
    """nginx, curl and stunnel on the base: stands in for nginx's own image, and for one with stunnel."""
    if engine.podman("image", "exists", DOOR, check=False).returncode == 0:
        return
    folder = engine.scratch / "door"
    folder.mkdir(exist_ok=True)
    (folder / "Containerfile").write_text(
        f"FROM {BASE}\nRUN apt-get update -qq && apt-get install -qq -y --no-install-recommends"
        " nginx-light libnginx-mod-stream curl stunnel4 && rm -rf /var/lib/apt/lists\n"
    )
    words = ["build", "--format", "docker", "--isolation", "chroot", "--network", "host"]
    engine.podman(*words, "-t", DOOR, str(folder), timeout_s=600)


def _is_built(engine: Engine, role: str) -> bool:
    wanted = f'{{{{index .Config.Labels "{LABEL}"}}}}'
    found = engine.podman("image", "inspect", "--format", wanted, image(role), check=False)
    return found.stdout.strip() == _inputs(role)


def _start_build(engine: Engine, role: str) -> subprocess.Popen[bytes]:
    argv = ["podman", "build", "--format", "docker", "--isolation", "chroot", "--network", "host"]
    argv += ["--build-arg", f"BASE={BASE}", "--label", f"{LABEL}={_inputs(role)}"]
    argv += [*_pip_words(engine), "-f", f"deploy/{role}.Containerfile", "-t", image(role), "."]
    return subprocess.Popen(
        argv,
        cwd=ROOT,
        env=engine.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _inputs(role: str) -> str:
    """A digest of everything that a build of ``role`` sees."""
    digest = hashlib.sha256()
    seen = ["pyproject.toml", "requirements.lock", "deploy/healthcheck.py"]
    seen += [".dockerignore", f"deploy/{role}.Containerfile"]
    for room in ("common", "client", "server", "simulation"):
        parts = (path for path in (ROOT / room).rglob("*") if path.is_file())
        seen += [str(p.relative_to(ROOT)) for p in parts if "__pycache__" not in p.parts]
    for name in sorted(seen):
        digest.update(f"{name}\n".encode() + hashlib.sha256((ROOT / name).read_bytes()).digest())
    return digest.hexdigest()


def _pip_words(engine: Engine) -> list[str]:
    """Where pip looks on this machine, as a secret of the build, and the folders that it looks in."""
    told = engine.run([sys.executable, "-m", "pip", "config", "list"]).stdout.splitlines()
    settings = {}
    for line in told:
        name, _, value = line.partition("=")
        settings[name.rpartition(".")[2]] = str(ast.literal_eval(value))
    kept = {name: settings[name] for name in PIP_WORDS if name in settings}
    secret = engine.scratch / "pip.conf"
    rows = [f"{name} = {' '.join(value.split())}" for name, value in kept.items()]
    secret.write_text("\n".join(["[global]", *rows, ""]))
    places = {_place(word) for value in kept.values() for word in value.split()} - {None}
    mounts = [word for place in sorted(places) for word in ("-v", f"{place}:{place}:ro")]
    return ["--secret", f"id=pip.conf,src={secret}", *mounts]


def _place(word: str) -> str | None:
    """The file, or the folder two levels below the root, that a path or file URL lies in."""
    path = Path(word.removeprefix("file://"))
    if not path.is_absolute() or not path.exists():
        return None
    return str(path if path.is_file() else Path(*path.parts[:3]))
