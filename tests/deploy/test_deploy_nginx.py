"""The coordinator's door shows /v1/fleet/ and nothing else; each demand is seen to fail."""

import pytest
from deploy_manifests import DEPLOY, demands_on_nginx, unmet

CONFIG = DEPLOY / "nginx.conf"

PLANTED = {
    "nginx can read it": ("server_tokens off;", "server_tokenz off;"),
    "one way in": ("return 404;", "proxy_pass https://coordinator:8000;"),
    "every other path is a 404": ("return 404;", "return 200;"),
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
