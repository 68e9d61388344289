"""What the containers start exists, and takes the words that it is given."""

import importlib.util
import json
import re
import subprocess
import sys

import click
import pytest
import typer
from deploy_manifests import DEPLOY, read_compose, read_containerfile
from house_commands import refusal

from oncofed_client.trainer.__main__ import app as trainer_app

HOSPITAL = read_compose(DEPLOY / "compose.hospital.yaml")["services"]
COORDINATOR = read_compose(DEPLOY / "compose.coordinator.yaml")["services"]


def _entrypoint(role):
    text = (DEPLOY / f"{role}.Containerfile").read_text(encoding="utf-8")
    (found,) = [one.argument for one in read_containerfile(text) if one.word == "ENTRYPOINT"]
    return json.loads(found)


@pytest.mark.parametrize("role", ["trainer", "courier"])
def test_a_container_of_a_hospital_starts_a_module_that_exists(role):
    interpreter, flag, module = _entrypoint(role)
    assert (interpreter, flag) == ("python", "-m")
    assert importlib.util.find_spec(module) is not None


def test_the_trainer_takes_the_words_that_its_container_gives_it():
    words = list(HOSPITAL["trainer"]["command"])
    context = typer.main.get_command(trainer_app).make_context("trainer", list(words))
    given = {f"--{name.replace('_', '-')}" for name, value in context.params.items() if value}
    assert given == {word for word in words if word.startswith("--")}


def test_the_trainer_refuses_a_word_too_many():
    words = [*HOSPITAL["trainer"]["command"], "--network"]
    with pytest.raises(click.UsageError):
        typer.main.get_command(trainer_app).make_context("trainer", words)


def test_the_courier_takes_the_words_that_its_container_gives_it():
    usage = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", _entrypoint("courier")[2], "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    given = [word for word in HOSPITAL["courier"]["command"] if word.startswith("--")]
    taken = set(re.findall(r"--[a-z-]+", usage)) - {"--help"}
    assert set(given) == taken
    assert len(HOSPITAL["courier"]["command"]) == 2 * len(given)


def test_the_coordinator_takes_the_words_that_its_container_gives_it():
    assert _entrypoint("coordinator") == ["oncofed-coordinator"]
    assert refusal(["oncofed-coordinator", *COORDINATOR["coordinator"]["command"]]) is None


def test_the_health_check_the_door_and_superlink_speak_of_one_port():
    words = COORDINATOR["coordinator"]["command"]
    port = words[words.index("--port") + 1]
    assert f"SUPERLINK_PORT = {port}\n" in (DEPLOY / "healthcheck.py").read_text(encoding="utf-8")
    assert f"coordinator:{port}/" in (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
