"""A command line that cannot be read: what was wrong is said, what was typed is not."""

from __future__ import annotations

import json
import math

import click
import pytest
from typer.models import TyperPath

from oncofed_client.__main__ import app as site
from oncofed_common.errors import UsageRefusal
from oncofed_common.terminal import run_app
from oncofed_common.usage import seconds, usage_refusal
from oncofed_server.__main__ import app as coordinator

NAME = "Maria"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("Maria", "allowed: init, join, intake, check,"),
        ("chek Maria", "did you mean check?"),
        ("--Maria", "allowed: --version"),
        ("check", "no COHORT; allowed: COHORT with a path"),
        ("check a --Maria", "allowed: --study, --findings"),
        ("check a -Maria", "an option that this command does not have"),
        ("check a Maria", "more words than this command takes"),
        ("check a --worker Maria", "did you mean --workers?"),
        ("check a --study", "--study without its value"),
        ("check a --json=Maria", "--json without its value, or with one too many"),
        (
            "check a --workers Maria",
            "a value of --workers that cannot be used; allowed: a whole number",
        ),
        ("check a --workers 0", "a whole number, 1 or more"),
        ("forecast --day Maria", "a value of --day that cannot be used; allowed: a whole number"),
        ("forecast --day 99999", "a whole number, 36525 or less"),
        ("start --poll-s Maria", "a value of --poll-s that cannot be used; allowed: a number"),
        ("budget Maria", "no --home; allowed: --home with a path"),
    ],
)
def test_what_is_wrong_is_named_and_no_typed_word_is_repeated(capsys, line, said):
    assert run_app(site, line.split()) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert said in printed.err
    assert NAME not in printed.err + printed.out


def test_a_program_is_told_of_a_usage_error_as_of_any_other(capsys):
    assert run_app(site, ["check", "a", "Maria", "--json"]) == 2
    printed = capsys.readouterr()
    assert json.loads(printed.out)["error"]["code"] == "usage"
    assert NAME not in printed.err + printed.out


def test_a_range_with_two_ends_names_both(capsys):
    assert run_app(coordinator, ["init", "--task-key-days", "9999"]) == 2
    assert "allowed: a whole number from 1 to 3650;" in capsys.readouterr().err


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, 0.0, 3601.0])
def test_seconds_are_a_number_within_their_limits(value):
    with pytest.raises(UsageRefusal):
        seconds(value, option="--poll-s", least=0.1, most=3600.0)
    assert seconds(3.0, option="--poll-s", least=0.1, most=3600.0) == 3.0


@pytest.mark.parametrize(
    "wrong",
    [
        ["--poll-s", "nan"],
        ["--poll-s", "-1"],
        ["--poll-s", "inf"],
        ["--ready-within-s", "nan"],
        ["--ready-within-s", "0"],
        ["--https-proxy", "nonsense"],
        ["--https-proxy", ""],
        ["--https-proxy", "http://"],
        ["--https-proxy", "ftp://proxy.example.org"],
        ["--https-proxy", "http://proxy.example.org:3128 --no-check"],
        ["--https-proxy", "http://proxy.example.org:99999"],
    ],
)
def test_a_start_with_nonsense_in_its_options_is_refused_before_its_home_is_read(
    tmp_path, capsys, wrong
):
    places = [f"--{name}={tmp_path / name}" for name in ("home", "cohort", "identities")]
    assert run_app(site, ["start", *places, *wrong]) == 2
    assert f" {wrong[0]}" in capsys.readouterr().err
    good = ["--poll-s", "1", "--https-proxy", "http://me:word@proxy.example.org:3128/"]
    assert run_app(site, ["start", *places, *good]) == 2
    assert "not a site's home" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["nan", "-1", "inf"])
def test_a_stop_waits_for_a_number_of_seconds(tmp_path, capsys, wrong):
    words = ["stop", "a", "--home", str(tmp_path), "--within-s", wrong]
    assert run_app(coordinator, words) == 2
    assert "--within-s" in capsys.readouterr().err


def test_a_path_that_may_not_be_read_is_said_to_be_one():
    """As click says it of one that is there and not readable, which for root there is none."""
    param = click.Option(["--trust"], type=TyperPath(readable=True))
    said = str(usage_refusal(click.BadParameter(NAME, param=param)))
    assert "a path of --trust that this account may not read" in said
    assert NAME not in said
