"""The door that asks for certificates, and a hospital's tunnel with one: beside a coordinator that runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from container_engine import DOOR
from container_federation import CALLED, PREFIX, PUBLIC, Containers
from deploy_manifests import DEPLOY

MODULE = "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n"  # Debian's nginx has it apart
HOST = CALLED.partition(":")[0]
NAMES = {part: f"{PREFIX}-certified-{part}" for part in ("door", "tunnel")}


@contextmanager
def certified(here: Containers, folder: Path) -> Iterator[Callable[[str, str], str]]:
    """Both, until the block ends; a function that asks one of them for a page, by the coordinator's name."""
    _write(here, folder)
    engine = here.engine
    locked = ["run", "-d", "--read-only", "--cap-drop=ALL", "--tmpfs", "/tmp"]
    try:
        words = ["--name", NAMES["door"], "--user", "10003:10003", "--network", PUBLIC]
        words += ["--network", f"{PREFIX}-coordinator_inside", "-v", f"{folder}/door:/tls:ro"]
        start = ["nginx", "-e", "/dev/stderr", "-c", "/tls/nginx.conf"]
        engine.podman(*locked, *words, DOOR, *start)
        words = ["--name", NAMES["tunnel"], "--user", "10004:10004", "--network", PUBLIC]
        words += ["-v", f"{folder}/tunnel:/tls:ro"]
        engine.podman(*locked, *words, DOOR, "stunnel4", "/tls/stunnel.conf")

        def ask(part: str, page: str) -> str:
            """The status of a POST; 000 where the line is cut."""
            argv = ["run", "--rm", "--network", PUBLIC, "-v", f"{folder}/tunnel/ca.pem:/ca.pem:ro"]
            argv += [
                DOOR,
                "curl",
                "--silent",
                "--max-time",
                "10",
                "--cacert",
                "/ca.pem",
                "-X",
                "POST",
            ]
            argv += ["-o", "/dev/null", "-w", "%{http_code}", f"https://{CALLED}{page}"]
            argv += ["--connect-to", f"{CALLED}:{NAMES[part]}:8443"]
            return engine.podman(*argv, check=False).stdout

        here.until(lambda: ask("tunnel", "/") == "404", what="the tunnel", within_s=60)
        yield ask
    finally:
        for name in NAMES.values():
            engine.podman("rm", "-f", "-t", "0", "-i", name)


def _write(here: Containers, folder: Path) -> None:
    tls = here.folder("coordinator") / "oncofed" / "tls"
    _issue(here, folder)
    for part in ("door", "tunnel"):
        (folder / part).mkdir()
    for name in ("ca.pem", "server.pem", "server.key"):
        shutil.copy(tls / name, folder / "door" / name)
    shutil.copy(folder / "sites.pem", folder / "door" / "sites.pem")
    config = (DEPLOY / "nginx.clients.conf").read_text(encoding="utf-8")
    (folder / "door" / "nginx.conf").write_text(MODULE + config)
    shutil.copy(tls / "ca.pem", folder / "tunnel" / "ca.pem")
    for name in ("site.pem", "site.key"):
        shutil.copy(folder / name, folder / "tunnel" / name)
    told = (DEPLOY / "stunnel.conf").read_text(encoding="utf-8")
    told = told.replace("connect = proxy.example.org:3128\n", f"connect = {NAMES['door']}:8443\n")
    told = told.replace("protocol = connect\nprotocolHost = coordinator.example.org:443\n", "")
    told = told.replace("checkHost = coordinator.example.org", f"checkHost = {HOST}")
    (folder / "tunnel" / "stunnel.conf").write_text(told)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _issue(here: Containers, folder: Path) -> None:
    """An authority and one site's certificate, as deploy/README.md makes them."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    signer = ["-CA", "sites.pem", "-CAkey", "sites.key"]
    for words in (
        ["req", "-x509", *key, "-keyout", "sites.key", "-out", "sites.pem", "-subj", "/CN=sites"],
        ["req", *key, "-keyout", "site.key", "-out", "site.csr", "-subj", "/CN=north"],
        ["x509", "-req", "-in", "site.csr", *signer, "-days", "397", "-out", "site.pem"],
    ):
        here.engine.run(["sh", "-c", 'cd "$0" && exec openssl "$@"', str(folder), *words])
