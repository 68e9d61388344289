"""A coordinator and two hospitals in containers, as deploy/README.md sets them up, each on its own networks.

    hospital north -- proxy north --\\
                                     public -- door -- inside -- SuperLink
    hospital south -- proxy south --/

A hospital's network leads nowhere; on it stands a proxy that carries CONNECT to the coordinator alone.
The compose files are those of deploy/, started by podman-compose with one more that names these networks.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from container_engine import BASE, DOOR, Engine, image
from deploy_manifests import DEPLOY
from ruamel.yaml import YAML

from oncofed_simulation.patients.writer import wards_of, write_cohorts

PREFIX = "oncofed-test"
PUBLIC = f"{PREFIX}-public"
CALLED = "coordinator.test:8443"
PROXY_PORT = 3128
SITES = ("north", "south")
PATIENTS = 3
DECLARED = "5"
SEED = 5
PASSPHRASE = "tried for real"
OWNERS = {"site": (10001, 10001), "coordinator": (10003, 10003)}
COMPOSE = Path(sys.executable).with_name("podman-compose")


@dataclass(kw_only=True)
class Containers:
    """What runs, and the folders of this machine that it was given."""

    engine: Engine
    root: Path
    port: int
    study: str = ""
    took_s: dict[str, float] = field(default_factory=dict)

    def folder(self, who: str) -> Path:
        """The folder that ``who`` (a site, or "coordinator") has as /home."""
        return self.root / who

    def compose(self, who: str, *words: str, check: bool = True, timeout_s: float = 180.0) -> str:
        """podman-compose for one party; what it printed."""
        kind = "coordinator" if who == "coordinator" else "hospital"
        argv = [str(COMPOSE), "--no-ansi", "-p", f"{PREFIX}-{who}"]
        argv += ["-f", str(DEPLOY / f"compose.{kind}.yaml")]
        argv += ["-f", str(self.root / f"{who}.override.yaml")]
        argv += (
            ["--profile", "manage"] if words[0] == "run" else []
        )  # docker compose needs no word for it
        argv += words
        more = self._variables(who)
        return self.engine.run(argv, more=more, check=check, timeout_s=timeout_s).stdout

    def command(self, who: str, *words: str, timeout_s: float = 300.0) -> dict[str, Any]:
        """What ``oncofed-site`` or ``oncofed-coordinator`` in its container answers with --json."""
        if who == "coordinator":
            argv = ["exec", "-T", "coordinator", "oncofed-coordinator", *words, "--json"]
        else:
            argv = ["run", "--rm", "-T", "site", *words, "--json"]
        said = self.compose(who, *argv, timeout_s=timeout_s)
        return json.loads(said[said.index("{") :])

    def inside(self, who: str, service: str, *argv: str, check: bool = True) -> str:
        """What a program prints that is run in a running container."""
        done = self.engine.podman("exec", self.name(who, service), *argv, check=check)
        return done.stdout

    def name(self, who: str, service: str) -> str:
        """Of a container."""
        return f"{PREFIX}-{who}_{service}_1"

    def health(self, who: str, service: str) -> bool:
        """Whether the container's own health check says that it is well."""
        words = ("healthcheck", "run", self.name(who, service))
        return self.engine.podman(*words, check=False).returncode == 0

    def proxy(self, site: str, *, up: bool) -> None:
        """Take a hospital's proxy away, or put it back."""
        name = f"{PREFIX}-proxy-{site}"
        self.engine.podman("rm", "-f", "-t", "0", "-i", name)
        if up:
            script = Path(__file__).with_name("connect_proxy.py")
            words = ["run", "-d", "--name", name, "--user", "10009:10009", "--read-only"]
            words += ["--cap-drop=ALL", "-v", f"{script}:/connect_proxy.py:ro"]
            words += ["--network", f"{PREFIX}-{site}:alias=proxy", "--network", PUBLIC]
            words += [BASE, "python3", "-u", "/connect_proxy.py", str(PROXY_PORT), CALLED]
            self.engine.podman(*words)

    def rows(self) -> list[dict[str, Any]]:
        """The run's log."""
        logs = sorted(self.folder("coordinator").glob("oncofed/runs/*/log.jsonl"))
        text = logs[0].read_text() if logs else ""
        return [json.loads(line) for line in text.rpartition("\n")[0].splitlines()]

    def until(self, there: Callable[[], bool], *, what: str, within_s: float) -> float:
        """Wait for something; the seconds that it took."""
        began_s = time.monotonic()
        while not there():
            assert time.monotonic() - began_s < within_s, f"not within {within_s:g} s: {what}"
            time.sleep(0.5)
        return time.monotonic() - began_s

    def real_home(self, folder: Path) -> None:
        """Make a home that is not virtual, in a container without network."""
        _install(folder, owner=OWNERS["site"])
        secret = folder / "exchange" / "passphrase"
        secret.write_text(PASSPHRASE)
        os.chown(secret, *OWNERS["site"])
        words = ["run", "--rm", "--network", "none", "-v", f"{folder}:/home", "-w", "/home"]
        words += ["--entrypoint", "oncofed-site", image("trainer"), "init", "--home"]
        words += ["/home/oncofed", "--name", "real", "--declared-patients", DECLARED]
        words += ["--lifetime-epsilon", "16", "--lifetime-delta", "1e-5", "--filter-order", "3"]
        words += ["--bytes-per-round", "200000"]
        self.engine.podman(*words, "--passphrase-file", "/home/exchange/passphrase")

    def write_overrides(self) -> None:
        """Which networks of this machine the compose files' networks are."""
        door = {"networks": {"inside": {}, "outside": {"aliases": [CALLED.partition(":")[0]]}}}
        public = {"outside": {"name": PUBLIC, "external": True}}
        self._override("coordinator", {"services": {"door": door}, "networks": public})
        for site in SITES:
            own = {"outbound": {"name": f"{PREFIX}-{site}", "external": True}}
            self._override(site, {"networks": own})

    def _override(self, who: str, content: dict[str, Any]) -> None:
        with (self.root / f"{who}.override.yaml").open("w") as file:
            YAML(typ="safe", pure=True).dump(content, file)

    def _variables(self, who: str) -> dict[str, str]:
        if who == "coordinator":
            return {
                "ONCOFED_COORDINATOR_SITE": str(self.folder(who)),
                "ONCOFED_COORDINATOR_IMAGE": image("coordinator"),
                "ONCOFED_NGINX_IMAGE": DOOR,
                "ONCOFED_PORT": str(self.port),
            }
        return {
            "ONCOFED_SITE": str(self.folder(who)),
            "ONCOFED_COHORT": str(self.root / "cohorts" / who),
            "ONCOFED_IDENTITIES": str(self.root / "cohorts" / f"{who}.identities.tsv"),
            "ONCOFED_COORDINATOR": CALLED,
            "ONCOFED_PROXY": f"http://proxy:{PROXY_PORT}",
            "ONCOFED_TRAINER_IMAGE": image("trainer"),
            "ONCOFED_COURIER_IMAGE": image("courier"),
        }


@contextmanager
def containers(engine: Engine, root: Path) -> Iterator[Containers]:
    """Networks and folders, of which nothing runs yet; taken away in the end."""
    found = Containers(engine=engine, root=root, port=_free_port())
    sweep(engine)
    try:
        for site in SITES:
            engine.podman("network", "create", "--internal", f"{PREFIX}-{site}")
        engine.podman("network", "create", PUBLIC)
        found.write_overrides()
        yield found
    finally:
        sweep(engine)


def sweep(engine: Engine) -> None:
    """Take away what these tests made: containers, pods, volumes and networks under their own names."""
    there = engine.podman("ps", "-aq", "--filter", f"name=^{PREFIX}-").stdout.split()
    for name in there:  # one may have gone with the one before it
        engine.podman("rm", "-f", "-v", "--depend", "-t", "0", name, check=False)
    for kind in ("pod", "volume", "network"):
        names = engine.podman(kind, "ls", "--format", "{{.Name}}").stdout.split()
        mine = [name for name in names if name.removeprefix("pod_").startswith(f"{PREFIX}-")]
        if mine:
            engine.podman(kind, "rm", "-f", *mine)


def found_federation(here: Containers, settings: Path) -> None:
    """Homes, enrolment, one study, and every site's yes: the README's words, one after the other."""
    made = write_cohorts(
        wards_of(sites=len(SITES), patients=PATIENTS, seed=SEED),
        seed=SEED,
        out=here.root / "made",
        workers=2,
        progress=lambda *_told: None,
    )
    _place_cohorts(here, list(made))
    for who in ("coordinator", *SITES):
        _install(here.folder(who), owner=OWNERS.get(who, OWNERS["site"]))
        _hand_in(here, who, "passphrase", PASSPHRASE.encode())
    secret = ("--passphrase-file", "/home/exchange/passphrase")
    home = ("--home", "/home/oncofed")
    words = ["run", "--rm", "-T", "coordinator", "init", *home, "--name", "studies"]
    here.compose("coordinator", *words, "--address", CALLED, *secret)
    here.compose("coordinator", "up", "-d")
    up = (here.folder("coordinator") / "oncofed" / "link.json").exists
    here.until(up, what="SuperLink", within_s=90)
    for site in SITES:
        _found_site(here, site, home=home, secret=secret)
    _hand_in(here, "coordinator", "settings.toml", settings.read_bytes())
    drafted = ("draft", "/home/exchange/settings.toml", *home, "--out", "/home/exchange/study.toml")
    here.command("coordinator", *drafted)
    here.command("coordinator", "publish", "/home/exchange/study.toml", *home, *secret)
    (published,) = (here.folder("coordinator") / "oncofed" / "studies").iterdir()
    here.study = published.name
    for site in SITES:
        for path in published.iterdir():
            _hand_in(here, site, f"published/{path.name}", path.read_bytes())
        here.command(site, "approve", "/home/exchange/published", *home, *secret, "--yes")


def _found_site(
    here: Containers, site: str, *, home: tuple[str, ...], secret: tuple[str, ...]
) -> None:
    words = ("init", *home, "--name", site, "--declared-patients", DECLARED, "--virtual")
    budget = ("--lifetime-epsilon", "16", "--lifetime-delta", "1e-5", "--filter-order", "3")
    here.command(site, *words, *budget, "--bytes-per-round", "200000", *secret)
    given = "cd oncofed && chgrp -R 10002 courier && chmod 3770 courier && chmod 0640 courier/*"
    here.compose(site, "run", "--rm", "-T", "--entrypoint", "sh", "site", "-c", given)
    request = here.folder(site) / "oncofed" / "enrolment.json"
    _hand_in(here, "coordinator", f"{site}.json", request.read_bytes())
    answer = f"/home/exchange/answer-{site}.json"
    told = here.command(
        "coordinator", "enrol", f"/home/exchange/{site}.json", *home, "--out", answer
    )
    content = (here.folder("coordinator") / "exchange" / f"answer-{site}.json").read_bytes()
    _hand_in(here, site, "answer.json", content)
    joined = ("join", "/home/exchange/answer.json", *home)
    here.command(site, *joined, "--coordinator", told["coordinator_fingerprint"])


def _install(folder: Path, *, owner: tuple[int, int]) -> None:
    for path in (folder, folder / "exchange"):
        path.mkdir(mode=0o700, parents=True)
        os.chown(path, *owner)


def _hand_in(here: Containers, who: str, name: str, content: bytes) -> None:
    """Put a file into a party's exchange folder, as whoever runs the machine would."""
    owner = OWNERS.get(who, OWNERS["site"])
    path = here.folder(who) / "exchange" / name
    if not path.parent.exists():
        path.parent.mkdir()
        os.chown(path.parent, *owner)
    path.write_bytes(content)
    os.chown(path, *owner)


def _place_cohorts(here: Containers, made: list[Path]) -> None:
    """Under the sites' names, readable by the trainer's user."""
    target = here.root / "cohorts"
    target.mkdir()
    for site, cohort in zip(SITES, made, strict=True):
        cohort.rename(target / site)
        identities = cohort.with_name(f"{cohort.name}.identities.tsv")
        identities.rename(target / f"{site}.identities.tsv")
    for path in (here.root, target, *target.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port
