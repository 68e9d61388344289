"""What stands in the way to the coordinator, in words on which a network engineer acts.

Each row: code, check, whose it likely is, what was seen, what to do. ``{host}``: whom this site calls first,
the coordinator or its proxy; ``{to}``: the coordinator.
"""

from __future__ import annotations

from oncofed_client.doctor.finding import Whose

Words = tuple[str, str, Whose, str, str]

_COORDINATOR: Whose = "the coordinator"
_NETWORK: Whose = "the network"
_PROXY: Whose = "the proxy"
_OPEN = "allow outbound TCP from this machine to {host}, or name the proxy with --https-proxy"

DIRECT: dict[tuple[str, str], Words] = {
    ("name", "unknown"): (
        "dns_unknown", "dns", _NETWORK, "no address under the name {host}",
        "try: getent hosts NAME; let this machine resolve it, or ask the coordinator whether it moved",
    ),
    ("name", "no_resolver"): (
        "dns_silent", "dns", _NETWORK, "no name server gives an answer for {host}",
        "check /etc/resolv.conf, and that UDP and TCP port 53 to its servers are open",
    ),
    ("name", "resolver_fails"): (
        "dns_fails", "dns", _NETWORK, "name servers answer for {host}, but with an error",
        "ask whoever runs the servers in /etc/resolv.conf",
    ),
    ("connect", "refused"): (
        "port_closed", "route", _COORDINATOR, "{host} refuses the connection: nothing listens there",
        "ask the coordinator whether its door is up; else a firewall answers for it",
    ),
    ("connect", "no_route"): (
        "no_route", "route", "this machine", "this machine has no route to {host}",
        "check its addresses and default route (ip route)",
    ),
    ("connect", "unreachable"): (
        "unreachable", "route", _NETWORK, "a router says that {host} cannot be reached",
        "check gateway and firewall on the way: " + _OPEN,
    ),
    ("connect", "silent"): (
        "dropped", "route", _NETWORK, "no answer from {host}: a firewall drops the packets",
        _OPEN,
    ),
    ("connect", "forbidden"): (
        "local_firewall", "route", "this machine", "this machine itself forbids the way to {host}",
        "check its own firewall (nft list ruleset)",
    ),
    ("tls", "no_tls"): (
        "no_tls", "tls", _COORDINATOR, "{to} answers, but not by TLS",
        "check host and port in the coordinator's answer file; something else listens there",
    ),
    ("tls", "old_tls"): (
        "old_tls", "tls", _NETWORK, "{to} speaks TLS older than 1.2 only",
        "exempt {to} from TLS inspection: the coordinator itself speaks 1.2 and 1.3",
    ),
    ("tls", "refused"): (
        "tls_refused", "tls", _NETWORK, "TLS with {to} is refused before a certificate comes",
        "exempt {to} from filters on TLS and its server name (SNI)",
    ),
    ("tls", "closes"): (
        "tls_cut", "tls", _NETWORK, "the connection to {to} is cut as soon as TLS begins",
        "exempt {to} from filters on TLS and its server name (SNI); the port itself is open",
    ),
    ("tls", "silent"): (
        "tls_silent", "tls", _NETWORK, "{to} takes the connection, then says nothing",
        "a device on the way holds it: ask for {to} to be let through unseen",
    ),
    ("verify", "name"): (
        "certificate_name", "certificate", _COORDINATOR, "its certificate is for {names}",
        "call it by such a name: ask the coordinator for a new answer file, or for its certificate",
    ),
    ("verify", "not_verified"): (
        "certificate_refused", "certificate", _COORDINATOR, "TLS refuses the certificate of {to}",
        "ask the coordinator to renew its certificate: oncofed-coordinator start makes it",
    ),
    ("answer", "bad_key"): (
        "node_key_damaged", "coordinator", "this site", "the courier's node key cannot be used",
        "run oncofed-site rotate and send the new enrolment.json to the coordinator",
    ),
    ("answer", "no_http"): (
        "no_coordinator", "coordinator", _COORDINATOR, "what answers at {to} is not SuperLink",
        "check address and port with the coordinator",
    ),
    ("answer", "closes"): (
        "answer_cut", "coordinator", _COORDINATOR, "{to} closes the line instead of an answer",
        "ask the coordinator whether SuperLink runs behind its door",
    ),
    ("answer", "silent"): (
        "answer_silent", "coordinator", _COORDINATOR, "{to} takes a question and does not answer",
        "ask the coordinator whether SuperLink runs behind its door",
    ),
    ("upload", "closes"): (
        "upload_cut", "throughput", _NETWORK, "the line is cut while an update is on its way",
        "look for a limit on upload size or time in firewall and proxy",
    ),
    ("upload", "silent"): (
        "upload_stalls", "throughput", _NETWORK, "an update stops on its way",
        "look for a limit on upload size or rate in firewall and proxy",
    ),
    ("upload", "413"): (
        "upload_limit", "throughput", _NETWORK, "an upload of one piece is refused as too large (413)",
        "allow request bodies of 1 MiB in the proxy, or 64 MiB at the coordinator's door",
    ),
}  # fmt: skip
"""By step and reason of ``Broken``."""

BY_PROXY: dict[tuple[str, str], Words] = {
    ("name", "unknown"): (
        "proxy_dns_unknown", "dns", "this site", "no address under the proxy's name {host}",
        "correct --https-proxy",
    ),
    ("name", "no_resolver"): (
        "proxy_dns_silent", "dns", _NETWORK, "no name server answers for the proxy {host}",
        "check /etc/resolv.conf, or name the proxy by its address",
    ),
    ("connect", "refused"): (
        "proxy_refused", "route", _PROXY, "the proxy {host} refuses the connection",
        "correct host and port of --https-proxy, or start the proxy",
    ),
    ("connect", "silent"): (
        "proxy_dropped", "route", _NETWORK, "no answer from the proxy {host}: packets are dropped",
        "allow TCP from this machine to the proxy; check --https-proxy",
    ),
    ("connect", "no_route"): (
        "proxy_no_route", "route", "this machine", "this machine has no route to the proxy {host}",
        "check its addresses and default route (ip route)",
    ),
    ("proxy", "no_http"): (
        "not_a_proxy", "proxy", "this site", "what listens at {host} is no HTTP proxy",
        "correct host and port of --https-proxy; SOCKS is not supported",
    ),
    ("proxy", "closes"): (
        "proxy_closes", "proxy", _PROXY, "{host} closes the line when asked for a way to {to}",
        "check that it is an HTTP proxy, reached as http:// or https://, and look at its log",
    ),
    ("proxy", "silent"): (
        "proxy_silent", "proxy", _PROXY, "{host} does not answer when asked for a way to {to}",
        "look at the proxy's log: it may be unable to reach {to}",
    ),
    ("proxy_tls", "not_verified"): (
        "proxy_certificate", "proxy", _PROXY, "this machine does not trust the certificate of {host}",
        "name the proxy as http://, or give this machine the authority of the proxy",
    ),
    ("proxy_tls", "no_tls"): (
        "proxy_no_tls", "proxy", "this site", "the proxy {host} does not speak TLS",
        "name it as http:// in --https-proxy",
    ),
}  # fmt: skip
"""Where the first to be called is a proxy: these come before those of ``DIRECT``."""

REFUSED_BY_PROXY: dict[str, Words] = {
    "login_missing": (
        "proxy_login_missing", "proxy", "this site", "the proxy {host} asks for a login (407)",
        "give name and password: --https-proxy http://NAME:PASSWORD@HOST:PORT",
    ),
    "login_wrong": (
        "proxy_login_wrong", "proxy", "this site", "the proxy {host} refuses the login (407)",
        "correct name and password; spell @ : / in them as %40 %3A %2F",
    ),
    "login_kind": (
        "proxy_login_kind", "proxy", _PROXY, "the proxy {host} takes logins by {kinds} only",
        "ask for a Basic login, or for {to} without one: Flower knows no other",
    ),
    "forbids": (
        "proxy_forbids", "proxy", _PROXY, "the proxy {host} forbids the way to {to} ({status})",
        "ask for CONNECT to {to} to be allowed, without TLS inspection",
    ),
    "cannot": (
        "proxy_cannot_reach", "proxy", _PROXY, "the proxy {host} cannot reach {to} ({status})",
        "look up {to} on the proxy, and allow it there; else ask the coordinator whether it is up",
    ),
}  # fmt: skip
"""What a proxy says instead of opening a way."""

OTHERWISE: Words = (
    "line_fails", "route", _NETWORK, "the way to {to} ends at: {step}, {why}",
    "repeat; then give this line to whoever runs the network",
)  # fmt: skip
