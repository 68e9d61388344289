"""The coordinator's door shows /v1/fleet/ and nothing else; each demand is seen to fail."""

import pytest
from deploy_manifests import DEPLOY, demands_on_nginx, unmet

CONFIG = DEPLOY / "nginx.conf"
CLIENTS = DEPLOY / "nginx.clients.conf"

PLANTED = {
    "nginx can read it": ("server_tokens off;", "server_tokenz off;"),
    "one way in": ("return 404;", "proxy_pass https://coordinator:8000;"),
    "every other path is a 404": ("location / {\n            return 404;", "location / {"),
    "no redirect to the one way in": (
        "location = /v1/fleet {\n            return 404;",
        "if ($a) {",
    ),
    "no other location": ("location / {", "location /v1/control/ {"),
    "TLS for hospitals": ("listen 8443 ssl;", "listen 8443;"),
    "no old TLS": ("ssl_protocols TLSv1.2", "ssl_protocols TLSv1 TLSv1.2"),
    "superlink's certificate is checked": ("proxy_ssl_verify on;", "proxy_ssl_verify off;"),
    "bodies bounded": ("client_max_body_size 64m;", "client_max_body_size 0;"),
    "slow callers end": ("client_body_timeout 300s;", ""),
    "says no version": ("server_tokens off;", ""),
    "runs without root": ("pid /tmp/nginx.pid;", "user root;"),
}


def test_the_door_shows_hospitals_the_fleet_api_alone():
    assert unmet(demands_on_nginx(CONFIG)) == set()


@pytest.mark.parametrize("demand", PLANTED)
def test_a_planted_fault_in_the_door_is_found(demand, tmp_path):
    before, after = PLANTED[demand]
    text = CONFIG.read_text(encoding="utf-8")
    assert before in text
    faulty = tmp_path / "nginx.conf"
    faulty.write_text(text.replace(before, after, 1), encoding="utf-8")
    assert demand in unmet(demands_on_nginx(faulty))


def test_every_demand_on_the_door_has_a_planted_fault():
    assert set(PLANTED) == set(demands_on_nginx(CONFIG))


def _servers(path):
    """The text of nginx.conf's own part, without what says where and for whom it listens."""
    text = path.read_text(encoding="utf-8")
    lines = text[text.index("http {") :].splitlines()
    where = ("listen ", "set_real_ip_from ", "real_ip_header ")
    return [line for line in lines if not line.strip().startswith(where)]


def test_behind_the_door_for_certificates_is_the_same_door():
    assert _servers(CLIENTS) == _servers(CONFIG)
    assert unmet(demands_on_nginx(CLIENTS)) == {
        "one way in"
    }  # the way from the first to the second


def test_the_door_for_certificates_lets_nobody_past_without_one():
    text = CLIENTS.read_text(encoding="utf-8")
    first = text[text.index("stream {") : text.index("http {")]
    assert "ssl_verify_client on;" in first
    assert "ssl_client_certificate /tls/sites.pem;" in first
    second = text[text.index("http {") :]
    assert "listen 127.0.0.1:8442 ssl proxy_protocol;" in second
    assert text.count("listen ") == 2
