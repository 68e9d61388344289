"""What may stand between a site and its coordinator, ready to plant: servers, proxies, dates, clocks."""

from __future__ import annotations

import datetime as dt
import json
import socket
from collections.abc import Callable
from pathlib import Path

import doctor_servers as servers
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from doctor_inspection import inspector
from doctor_lab import HOST, NAMES, Lab

from oncofed_client.courier.node import NODE_KEY_FILE
from oncofed_server.certificates import make_certificates

Plant = Callable[[Lab], None]

YEAR = dt.timedelta(days=365)


def now() -> dt.datetime:
    return dt.datetime.now(tz=dt.UTC)


def answers(handler: servers.Handler) -> Plant:
    """Behind the coordinator's own certificate, something else answers."""
    return lambda lab: void(lab.coordinator(handler))


def takes_calls(handler: servers.Handler) -> Plant:
    """At the coordinator's address something listens that shows no certificate."""
    return lambda lab: lab.joined(f"{HOST}:{lab.serve(handler)}")


def certified(when: dt.timedelta) -> Plant:
    """A certificate of the same authority, made at another time."""

    def plant(lab: Lab) -> None:
        folder = lab.home.root.parent / "door"
        make_certificates(folder, names=NAMES, now=now() - 3 * YEAR)
        (folder / "server.pem").unlink()
        make_certificates(folder, names=NAMES, now=now() + when)
        keep_authority(lab, folder)
        lab.coordinator(tls=servers.certificate_of(folder))

    return plant


def other_door(lab: Lab) -> Path:
    """Certificates of an authority that nobody joined."""
    folder = lab.home.root.parent / "other"
    make_certificates(folder, names=NAMES, now=now())
    return folder


def keep_authority(lab: Lab, folder: Path) -> None:
    """The site joined the authority in ``folder``."""
    pem = (folder / "ca.pem").read_text()
    answer = json.loads((lab.home.root / "answer.json").read_text())
    (lab.home.root / "answer.json").write_text(json.dumps(answer | {"ca_pem": pem}))
    (lab.home.courier / "ca.pem").write_text(pem)


def behind(url: str, **how: object) -> Plant:
    """An honest coordinator behind a proxy; ``url`` with PORT in the place of its port."""

    def plant(lab: Lab) -> None:
        lab.coordinator()
        port = lab.serve(servers.proxy(**how))  # type: ignore[arg-type]
        lab.words += ["--https-proxy", url.replace("PORT", str(port))]

    return plant


def behind_what(handler: servers.Handler, scheme: str = "http") -> Plant:
    """What was named as the proxy is something else."""

    def plant(lab: Lab) -> None:
        lab.coordinator()
        lab.words += ["--https-proxy", f"{scheme}://{HOST}:{lab.serve(handler)}"]

    return plant


def void(_anything: object) -> None:
    """For plants whose last call gives something back."""


def closed_port() -> int:
    with socket.socket() as one:
        one.bind((HOST, 0))
        port: int = one.getsockname()[1]
    return port


def another_certificate(lab: Lab) -> None:
    lab.coordinator(tls=servers.certificate_of(other_door(lab)))


def wrong_port_of_the_proxy(lab: Lab) -> None:
    lab.coordinator()
    lab.words += ["--https-proxy", f"http://{HOST}:{closed_port()}"]


def reads_along(lab: Lab) -> None:
    """TLS inspection in a proxy, with the authority of the hospital's own network."""
    lab.coordinator()
    port = lab.serve(servers.proxy(onto=inspector(lab.home.root.parent / "inspection")))
    lab.words += ["--https-proxy", f"http://{HOST}:{port}"]


def stands_in_the_way(lab: Lab) -> None:
    """TLS inspection that nobody named: it answers in the coordinator's place."""
    lab.coordinator(tls=inspector(lab.home.root.parent / "inspection"))


def other_name(lab: Lab) -> None:
    port = lab.serve(servers.superlink(), host="127.0.0.5", tls=servers.certificate_of(lab.tls))
    lab.joined(f"127.0.0.5:{port}")


def proxy_by_untrusted_tls(lab: Lab) -> None:
    lab.coordinator()
    port = lab.serve(servers.proxy(), tls=servers.certificate_of(other_door(lab)))
    lab.words += ["--https-proxy", f"https://{HOST}:{port}"]


def proxy_in_the_environment(lab: Lab) -> None:
    lab.joined(f"{HOST}:{closed_port()}")
    lab.environment["HTTPS_PROXY"] = "http://proxy.example.org:3128"


def cut_upload(lab: Lab) -> None:
    lab.coordinator()
    port = lab.serve(servers.proxy(most_bytes=100_000))
    lab.words += ["--https-proxy", f"http://{HOST}:{port}"]


def huge_updates_on_a_thin_line(lab: Lab) -> None:
    policy = lab.home.trainer / "policy.toml"
    text = policy.read_text().replace(
        "bytes_per_round = 200000\n", "bytes_per_round = 1000000000\n"
    )
    text = text.replace("bytes_per_day = 200000000\n", "bytes_per_day = 1000000000000\n")
    policy.write_text(text)
    lab.coordinator(servers.superlink(bytes_per_s=100_000))


def node_key_of_another_kind(lab: Lab) -> None:
    key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    (lab.home.courier / NODE_KEY_FILE).write_bytes(key)
    lab.coordinator()


PROXY = f"http://{HOST}:PORT"
LINE_FAULTS: dict[str, tuple[str, Plant]] = {
    "nothing listens at the coordinator's port": (
        "port_closed", lambda lab: lab.joined(f"{HOST}:{closed_port()}")),
    "a device takes the connection and says nothing": ("tls_silent", takes_calls(servers.silent)),
    "a filter cuts the line when TLS begins": ("tls_cut", takes_calls(servers.closing)),
    "a filter denies TLS with an alert": ("tls_refused", takes_calls(servers.alert)),
    "a device that knows old TLS only": ("old_tls", takes_calls(servers.too_old)),
    "a web server without TLS at the port": ("no_tls", takes_calls(servers.plain_http)),
    "TLS inspection in the proxy": ("intercepted", reads_along),
    "TLS inspection on the way": ("intercepted", stands_in_the_way),
    "a coordinator with a new authority": ("other_authority", another_certificate),
    "an expired certificate": ("certificate_expired", certified(-2 * YEAR)),
    "a certificate of the future": ("certificate_not_yet", certified(dt.timedelta(days=30))),
    "a certificate of another name": ("certificate_name", other_name),
    "SuperLink is down behind its door": ("coordinator_down", answers(servers.page(502))),
    "a door that passes nothing on": ("no_coordinator", answers(servers.page(404))),
    "a login page in the place of SuperLink": ("no_coordinator", answers(servers.page(200))),
    "a line closed instead of an answer": ("answer_cut", answers(servers.answers_nothing)),
    "no answer to a question": ("answer_silent", answers(servers.stalls_after(0))),
    "a greeting of another protocol behind TLS": (
        "no_coordinator", answers(servers.other_protocol)),
    "a node key that was never enrolled": (
        "not_enrolled", answers(servers.superlink(known=False))),
    "a node key of another kind": ("node_key_damaged", node_key_of_another_kind),
    "signatures refused at the right time": ("signature_refused", answers(servers.unsigned)),
    "a clock that is fast": ("clock_ahead", answers(servers.superlink(ahead_s=-20))),
    "a clock that is an hour slow": ("clock_behind", answers(servers.superlink(ahead_s=3600))),
    "a proxy that wants a login": ("proxy_login_missing", behind(PROXY, login="north:secret")),
    "a wrong password for the proxy": (
        "proxy_login_wrong", behind(f"http://north:wrong@{HOST}:PORT", login="north:secret")),
    "a proxy that wants NTLM": ("proxy_login_kind", behind(PROXY, kind="NTLM")),
    "a proxy that forbids the coordinator": ("proxy_forbids", behind(PROXY, says=403)),
    "a proxy that cannot find the coordinator": ("proxy_cannot_reach", behind(PROXY, says=503)),
    "no proxy where one was named": (
        "not_a_proxy", behind_what(servers.other_protocol)),
    "a SOCKS proxy": ("proxy_closes", behind_what(servers.closing)),
    "a proxy that hangs": ("proxy_silent", behind_what(servers.silent)),
    "a wrong port of the proxy": ("proxy_refused", wrong_port_of_the_proxy),
    "a proxy by TLS that this machine does not trust": (
        "proxy_certificate", proxy_by_untrusted_tls),
    "https for a proxy without TLS": (
        "proxy_no_tls", behind_what(servers.plain_http, scheme="https")),
    "a proxy that only the environment names": ("proxy_not_named", proxy_in_the_environment),
    "a limit on the size of uploads": (
        "upload_limit", answers(servers.page(413, only="push-object"))),
    "a proxy that cuts long uploads": ("upload_cut", cut_upload),
    "an upload that stops on its way": ("upload_stalls", answers(servers.stalls_after(1000))),
    "a line too thin for the deadline": ("too_slow", huge_updates_on_a_thin_line),
}  # fmt: skip
"""Name of the fault: the code by which the doctor has to call it, and how it is planted."""

LINE_WARNINGS: dict[str, tuple[str, Plant]] = {
    "a certificate of its last week": ("certificate_soon", certified(dt.timedelta(days=-390))),
    "a clock that is a little fast": ("clock_ahead", answers(servers.superlink(ahead_s=-3.4))),
    "a clock that is minutes slow": ("clock_behind", answers(servers.superlink(ahead_s=150))),
}  # fmt: skip
"""What works today: a warning, and no fault."""
