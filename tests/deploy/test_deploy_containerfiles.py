"""Container files hold to their demands, and each demand is seen to fail where its fault is planted."""

import subprocess
import sys
from pathlib import Path

import pytest
from deploy_manifests import (
    DEPLOY,
    demands_on_containerfile,
    environment_of,
    read_containerfile,
    unmet,
)

from oncofed_client.courier.node import node_environment

HADOLINT = Path(sys.executable).with_name("hadolint")
ROLES = ["trainer", "courier", "coordinator"]

PLANTED = {
    "built in a stage of its own": lambda text: text.split("\nFROM ${BASE}\n")[0],
    "base by argument": lambda text: text.replace("FROM ${BASE} AS", "FROM python:3.11-slim AS"),
    "exact versions": lambda text: text.replace("PIP_CONSTRAINT=/src/requirements.lock", "A=b"),
    "one extra": lambda text: text.replace('".[courier]"', '".[courier,trainer]"'),
    "copied, not fetched": lambda text: text.replace("COPY client client", "ADD client client"),
    "no shell piped": lambda text: text + "RUN curl https://example.org/install | sh\n",
    "no secret in it": lambda text: text.replace("PIP_DISABLE", "INDEX_PASSWORD=x PIP_DISABLE"),
    "nobody is root": lambda text: text.replace("USER 10002:10002", "USER root"),
    "nothing after the user is dropped": lambda text: text + "RUN true\n",
    "says how it is": lambda text: text.replace("HEALTHCHECK", "LABEL").replace("CMD [", "x=["),
    "no shell around it": lambda text: text.replace(
        'ENTRYPOINT ["python", "-m", "oncofed_client.courier.supernode"]', "ENTRYPOINT python"
    ),
    "no installer in it": lambda text: text.replace("pip uninstall", "pip list"),
}


def _text(role):
    return (DEPLOY / f"{role}.Containerfile").read_text(encoding="utf-8")


def _demands(text, role):
    return demands_on_containerfile(read_containerfile(text), extra=role)


def _hadolint(path):
    return subprocess.run(
        [HADOLINT, "--no-color", path], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("role", ROLES)
def test_an_image_is_thin_pinned_without_secrets_and_not_of_root(role):
    assert unmet(_demands(_text(role), role)) == set()


@pytest.mark.parametrize("demand", PLANTED)
def test_a_planted_fault_in_a_container_file_is_found(demand):
    faulty = PLANTED[demand](_text("courier"))
    assert faulty != _text("courier")
    assert demand in unmet(_demands(faulty, "courier"))


def test_every_demand_on_a_container_file_has_a_planted_fault():
    assert set(PLANTED) == set(_demands(_text("courier"), "courier"))


@pytest.mark.parametrize("role", ROLES)
def test_hadolint_finds_nothing(role):
    done = _hadolint(DEPLOY / f"{role}.Containerfile")
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_finds_a_planted_fault(tmp_path):
    faulty = tmp_path / "Containerfile"
    faulty.write_text(_text("courier").replace("FROM ${BASE}\n", "FROM python:latest\n"))
    assert "DL3007" in _hadolint(faulty).stdout


@pytest.mark.parametrize("role", ROLES)
def test_what_a_build_copies_exists_and_is_let_through(role):
    root = DEPLOY.parent
    let_through = [
        line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    sources = [
        source
        for one in read_containerfile(_text(role))
        if one.word == "COPY" and not one.argument.startswith("--from")
        for source in one.argument.split()[:-1]
    ]
    assert sources
    assert [s for s in sources if not (root / s).exists() or s not in let_through] == []


def test_the_courier_s_image_sets_the_environment_that_the_courier_wants():
    wanted = node_environment(
        home=Path("/home/oncofed/courier"),
        socket_path=Path("/home/oncofed/run/trainer.sock"),
        https_proxy=None,
        no_proxy=[],
    )
    found = environment_of(read_containerfile(_text("courier")))
    assert {name: found.get(name) for name in wanted} == wanted


@pytest.mark.parametrize("role", ["courier", "coordinator"])
def test_an_image_with_flower_neither_phones_home_nor_looks_for_updates(role):
    found = environment_of(read_containerfile(_text(role)))
    assert found["FLWR_TELEMETRY_ENABLED"] == "0"
    assert found["FLWR_DISABLE_UPDATE_CHECK"] == "1"
