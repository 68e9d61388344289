"""What a container file, a compose file and nginx.conf must say, each demand by name.

Each ``demands_on_`` function answers every one of its demands with met or not. The tests plant a fault for
each name and see it not met.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import crossplane
from ruamel.yaml import YAML
from ruamel.yaml.nodes import CollectionNode, MappingNode, Node

DEPLOY = Path(__file__).parents[1] / "deploy"
PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")
ALLOWED_IMAGES = re.compile(r"(localhost/oncofed-\w+:[\w.]+|docker\.io/library/nginx:[\d.]+)$")


@dataclass(frozen=True)
class Instruction:
    """One line of a container file: the stage it is in (from 0), its word, its argument."""

    stage: int
    word: str
    argument: str


def read_compose(path: Path) -> dict:
    """A compose file with its anchors merged.

    Raises:
        ValueError: a key is given twice; a reader would silently take one of them.
    """
    text = path.read_text(encoding="utf-8")
    _refuse_repeated_keys(YAML(typ="safe", pure=True).compose(text))
    return YAML(typ="safe", pure=True).load(text)


def read_containerfile(text: str) -> list[Instruction]:
    """The instructions of a container file, continued lines joined, comments dropped."""
    kept = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    found, stage = [], -1
    for line in re.sub(r"\\\n", " ", kept).splitlines():
        if line.strip():
            word, _, argument = line.strip().partition(" ")
            stage += word == "FROM"
            found.append(Instruction(max(stage, 0), word, " ".join(argument.split())))
    return found


def environment_of(instructions: list[Instruction]) -> dict[str, str]:
    """What ENV sets in the last stage."""
    last = max(one.stage for one in instructions)
    lines = [one.argument for one in instructions if one.stage == last and one.word == "ENV"]
    return dict(pair.split("=", 1) for line in lines for pair in line.split())


def unmet(demands: Mapping[str, bool]) -> set[str]:
    """Names of the demands that are not met; none in a clean manifest."""
    return {name for name, met in demands.items() if not met}


def demands_on_containerfile(instructions: list[Instruction], *, extra: str) -> dict[str, bool]:
    """Demands on an image that holds the optional dependencies ``extra``."""
    last = max(one.stage for one in instructions)
    text = {w: [one.argument for one in instructions if one.word == w] for w in _WORDS}
    final = [one for one in instructions if one.stage == last]
    users = [one.argument for one in final if one.word == "USER"]
    return {
        "built in a stage of its own": last >= 1,
        "base by argument": "BASE=docker.io/library/python:3.11-slim" in text["ARG"]
        and all(base.split()[0] == "${BASE}" for base in text["FROM"]),
        "exact versions": any("PIP_CONSTRAINT=/src/requirements.lock" in e for e in text["ENV"]),
        "one extra": re.findall(r'"\.\[([\w,]+)\]"', " ".join(text["RUN"])) == [extra],
        "copied, not fetched": not text["ADD"],
        "no shell piped": not any(re.search(r"curl|wget", run) for run in text["RUN"]),
        "no secret in it": not any(
            re.search(r"(?i)passw|secret|token|credential", line)
            for line in [*text["ENV"], *text["ARG"]]
        ),
        "nobody is root": bool(users) and re.fullmatch(r"[1-9]\d+:[1-9]\d+", users[-1]) is not None,
        "nothing after the user is dropped": [one.word for one in final].index("USER")
        > max((i for i, one in enumerate(final) if one.word in {"RUN", "COPY"}), default=-1)
        if users
        else False,
        "says how it is": any(
            re.search(r"CMD \[.*healthcheck\.py", line) for line in text["HEALTHCHECK"]
        ),
        "no shell around it": all(line.startswith("[") for line in text["ENTRYPOINT"])
        and len(text["ENTRYPOINT"]) == 1,
        "no installer in it": any("pip uninstall" in run for run in text["RUN"]),
    }


def demands_on_service(service: Mapping) -> dict[str, bool]:
    """Demands on every container, whatever it does."""
    mounts = service.get("volumes", [])
    logging = service.get("logging", {}).get("options", {})
    return {
        "nobody is root": re.fullmatch(r"[1-9]\d+:[1-9]\d+", str(service.get("user", "")))
        is not None
        and "0" not in service.get("group_add", []),
        "all capabilities dropped": service.get("cap_drop") == ["ALL"]
        and not service.get("cap_add"),
        "no new privileges": "no-new-privileges:true" in service.get("security_opt", []),
        "confined": not any("unconfined" in option for option in service.get("security_opt", [])),
        "not privileged": not service.get("privileged") and not service.get("devices"),
        "read-only root": service.get("read_only") is True,
        "own namespaces": not any(
            service.get(kind) == "host"
            for kind in ("pid", "ipc", "uts", "network_mode", "userns_mode")
        ),
        "temporary files in memory": any(
            mount.startswith("/tmp:") and "noexec" in mount for mount in service.get("tmpfs", [])
        ),
        "processes bounded": 0 < service.get("pids_limit", 0) <= 1024,
        "memory bounded": "mem_limit" in service,
        "nothing swapped": service.get("memswap_limit", "") == service.get("mem_limit"),
        "no core dumps": service.get("ulimits", {}).get("core") == 0,
        "says how it is": "healthcheck" in service or "profiles" in service,
        "restart said": service.get("restart") in {"always", "unless-stopped", "no"},
        "logs bounded": {"max-size", "max-file"} <= set(logging),
        "zombies reaped": service.get("init") is True,
        "image by name and version": ALLOWED_IMAGES.search(_default(service.get("image", "")))
        is not None,
        "no socket of the container engine": not any(".sock" in str(m) for m in mounts),
        "no folder made by mistake": all(
            m["bind"] == {"create_host_path": False} for m in mounts if m["type"] == "bind"
        ),
    }


def demands_on_hospital(compose: Mapping) -> dict[str, bool]:
    """Demands on the pair: the trainer has the scans and no network, the courier the reverse."""
    services = compose["services"]
    trainer, courier, site = services["trainer"], services["courier"], services["site"]
    own = {"trainer": trainer, "site": site}
    variables = courier.get("environment", {})
    shared = {
        mount["source"] for mount in trainer["volumes"] if not mount.get("read_only")
    } & _sources(courier)
    return {
        "trainer has no network": all(
            service.get("network_mode") == "none"
            and not service.get("networks")
            and not service.get("ports")
            for service in own.values()
        ),
        "trainer knows no proxy": not any(
            "PROXY" in name.upper()
            for service in own.values()
            for name in service.get("environment", {})
        ),
        "courier opens no port": not courier.get("ports") and not courier.get("expose"),
        "data is read-only": all(
            _mount(service, target).get("read_only") is True
            for service in own.values()
            for target in ("/cohort", "/identities.tsv")
        ),
        "courier has no scans": not any(
            word in source.upper() for source in _sources(courier) for word in ("COHORT", "IDENTIT")
        ),
        "courier is given nothing by another way": not {
            "secrets",
            "configs",
            "volumes_from",
            "env_file",
            "extends",
            "develop",
        }
        & set(courier),
        "courier has its own folder and the socket": set(_targets(courier))
        == {"/home/oncofed/courier", "/home/oncofed/run"},
        "trainer only reads the courier's folder": _mount(trainer, "/home/oncofed/courier").get(
            "read_only"
        )
        is True,
        "trainer has not the approver's key": not any(
            target in {"/home", "/home/oncofed"} or "approver" in target
            for target in _targets(trainer)
        ),
        "parts of the home as they are": all(
            mount.get("type") == "bind"
            and mount["source"].endswith(mount["target"].removeprefix("/home"))
            for service in (trainer, courier)
            for mount in service["volumes"]
            if mount["target"].startswith("/home/oncofed/") and mount["source"] != "socket"
        ),
        "one shared volume": shared == {"socket"},
        "two users": trainer["user"] != courier["user"],
        "socket given to the courier's group": _option(trainer, "--shared-group")
        == courier["user"].partition(":")[2]
        and _option(trainer, "--shared-group") in trainer.get("group_add", []),
        "head on a mount of its own": _mount(trainer, "/home/oncofed/head").get("source")
        not in {None, _mount(trainer, "/home/oncofed/trainer").get("source")},
        "proxies in both spellings": all(
            name in variables and variables[name] == variables.get(name.lower()) for name in PROXIES
        ),
        "loopback never through a proxy": {"127.0.0.1", "localhost"}
        <= set(str(variables.get("NO_PROXY", "")).split(",")),
        "courier waits for the trainer": courier.get("depends_on", {})
        .get("trainer", {})
        .get("condition")
        == "service_healthy",
        "both come back": {trainer.get("restart"), courier.get("restart")}
        <= {"always", "unless-stopped"},
        "stopped within two seconds": all(
            service.get("stop_grace_period") in {"1s", "2s"} for service in (trainer, courier)
        ),
        "management starts only when asked": site.get("profiles") == ["manage"],
    }


def demands_on_key_file(compose: Mapping, overlay: Mapping) -> dict[str, bool]:
    """Demands on what is laid over a hospital's compose file where the trainer has a key file."""
    services = overlay["services"]
    mounts = [mount for one in services.values() for mount in one.get("volumes", [])]
    sources = {mount["source"] for mount in mounts}
    return {
        "for trainer and site alone": set(services) == {"trainer", "site"}
        and list(overlay) == ["services"],
        "one mount and nothing else": all(
            set(one) == {"volumes"} and len(one["volumes"]) == 1 for one in services.values()
        ),
        "read-only": all(mount.get("read_only") is True for mount in mounts),
        "one name for both": len({mount["target"] for mount in mounts}) == 1 and len(sources) == 1,
        "outside of the home": all(
            not mount["target"].startswith("/home") and "ONCOFED_SITE" not in mount["source"]
            for mount in mounts
        ),
        "must be said": all(re.fullmatch(r"\$\{ONCOFED_KEY_FILE:\?\}", one) for one in sources),
        "no folder made by mistake": all(
            mount.get("bind") == {"create_host_path": False} for mount in mounts
        ),
        "courier as without it": laid_over(compose, overlay)["services"]["courier"]
        == compose["services"]["courier"],
    }


def laid_over(compose: Mapping, overlay: Mapping) -> dict:
    """What a second ``-f`` makes of a compose file, as far as volumes go; other words replace."""
    merged = copy.deepcopy(dict(compose))
    for name, service in overlay["services"].items():
        known = merged["services"].setdefault(name, {})
        more = {key: value for key, value in service.items() if key != "volumes"}
        volumes = [*known.get("volumes", []), *service.get("volumes", [])]
        merged["services"][name] = {**known, **more, **({"volumes": volumes} if volumes else {})}
    return merged


def demands_on_coordinator(compose: Mapping) -> dict[str, bool]:
    """Demands on the coordinator: SuperLink is reached through the door alone."""
    services = compose["services"]
    link, door = services["coordinator"], services["door"]
    inside = [name for name, net in compose["networks"].items() if net.get("internal") is True]
    return {
        "superlink opens no port": not link.get("ports"),
        "superlink is inside only": list(link.get("networks", [])) == inside and bool(inside),
        "the door is on both sides": set(door.get("networks", [])) == set(compose["networks"]),
        "the door has no key but its own": {Path(target).name for target in _targets(door)}
        == {"nginx.conf", "ca.pem", "server.pem", "server.key"},
        "the door changes nothing": all(m.get("read_only") is True for m in door["volumes"]),
    }


def demands_on_nginx(path: Path) -> dict[str, bool]:
    """Demands on the door: one way in, TLS on both sides."""
    parsed = crossplane.parse(str(path), single=True, strict=True)
    if parsed["status"] != "ok":
        return {"nginx can read it": False}
    rows = list(_directives(parsed["config"][0]["parsed"], ()))
    passed = {where: args for where, name, args in rows if name.endswith("_pass")}
    one = {name: args for _, name, args in rows}
    fleet, bare = ("location", "/v1/fleet/"), ("location", "= /v1/fleet")
    answers = {where[-1]: args for where, name, args in rows if where and name == "return"}
    return {
        "nginx can read it": True,
        "one way in": [where[-1] for where in passed] == [fleet]
        and all(args == ["https://coordinator:8000/v1/fleet/"] for args in passed.values()),
        "every other path is a 404": answers.get(("location", "/")) == ["404"],
        "no redirect to the one way in": answers.get(bare) == ["404"],
        "no other location": {
            where[-1] for where, _, _ in rows if where and where[-1][0] == "location"
        }
        <= {fleet, bare, ("location", "/")},
        "TLS for hospitals": all("ssl" in args for _, name, args in rows if name == "listen"),
        "no old TLS": all(
            set(args) <= {"TLSv1.2", "TLSv1.3"}
            for _, name, args in rows
            if name in {"ssl_protocols", "proxy_ssl_protocols"}
        )
        and {"ssl_protocols", "proxy_ssl_protocols"} <= set(one),
        "superlink's certificate is checked": one.get("proxy_ssl_verify") == ["on"]
        and "proxy_ssl_trusted_certificate" in one,
        "bodies bounded": one.get("client_max_body_size", ["0"]) != ["0"],
        "slow callers end": {"client_header_timeout", "client_body_timeout"} <= set(one),
        "says no version": one.get("server_tokens") == ["off"],
        "runs without root": all(
            args[0].startswith("/tmp/")
            for _, name, args in rows
            if name == "pid" or name.endswith("_temp_path")
        )
        and "user" not in one,
    }


_WORDS = ("FROM", "ARG", "ENV", "RUN", "ADD", "COPY", "USER", "HEALTHCHECK", "ENTRYPOINT")


def _refuse_repeated_keys(node: Node) -> None:
    if isinstance(node, MappingNode):
        keys = [key.value for key, _ in node.value]
        repeated = {key for key in keys if keys.count(key) > 1}
        if repeated:
            raise ValueError(f"given twice: {', '.join(sorted(repeated))}")
    inner = node.value if isinstance(node, CollectionNode) else []
    for part in inner:
        for each in part if isinstance(part, tuple) else (part,):
            _refuse_repeated_keys(each)


def _default(value: str) -> str:
    """The value that ``${NAME:-value}`` falls back to."""
    found = re.fullmatch(r"\$\{\w+:-(.*)\}", value)
    return found[1] if found else value


def _mount(service: Mapping, target: str) -> Mapping:
    return next((m for m in service.get("volumes", []) if m["target"] == target), {})


def _targets(service: Mapping) -> list[str]:
    return [mount["target"] for mount in service.get("volumes", [])]


def _sources(service: Mapping) -> set[str]:
    return {mount["source"] for mount in service.get("volumes", [])}


def _option(service: Mapping, name: str) -> str | None:
    words = service.get("command", [])
    return words[words.index(name) + 1] if name in words else None


def _directives(
    block: list[dict], where: tuple[tuple[str, str], ...]
) -> Iterator[tuple[tuple[tuple[str, str], ...], str, list[str]]]:
    for row in block:
        yield where, row["directive"], row["args"]
        inner = (*where, (row["directive"], " ".join(row["args"])))
        yield from _directives(row.get("block", []), inner)
