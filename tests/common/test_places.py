"""A place that cannot be used is one line that names no place, whichever command met it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from cohort_builder import write_cohort
from site_builder import Coordinator, a_home, joined

from oncofed_client.__main__ import app as site
from oncofed_common.places import place_refusal
from oncofed_common.terminal import run_app
from oncofed_server.__main__ import app as coordinator
from oncofed_simulation.__main__ import app as simulate

KNOWN = ["ENAMETOOLONG", "EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT", "ENOTDIR", "EISDIR"]
KNOWN += ["ELOOP", "EMFILE", "ENFILE", "EIO", "ENOENT", "ENOMEM"]
LONG = "patient-" + "x" * 300
COORDINATOR_INIT = ["init", "--name", "Trial", "--address", "fed.example.org:443"]
POLICY = ["--name", "north", "--declared-patients", "100", "--bytes-per-round", "300000"]
POLICY += ["--lifetime-epsilon", "8", "--lifetime-delta", "0.00001", "--filter-order", "8"]
LAW = ["--diffusion-white", "0.1", "--diffusion-grey", "0.1", "--rate", "0.1", "--days", "2"]
PATIENT = ["--participant", "sub-1", "--history", "ses-01", "--day", "9"]


def failing(number: int | None) -> typer.Typer:
    app = typer.Typer()

    @app.command()
    def fail(as_json: bool = typer.Option(False, "--json")) -> None:
        raise OSError(number, "text of the library", "patient-7")

    return app


@pytest.mark.parametrize("name", KNOWN)
def test_an_error_of_a_place_is_a_refusal_that_names_no_place(name, capsys):
    assert run_app(failing(getattr(errno, name)), ["--json"]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert "patient-7" not in printed.err + printed.out
    assert json.loads(printed.out)["error"]["code"] in {"disk", "disk_full", "resources"}


@pytest.mark.parametrize("number", [errno.ECONNREFUSED, errno.EBADF, None])
def test_an_error_that_says_nothing_of_a_place_stays_unexpected(number, capsys):
    assert place_refusal(OSError(number, "text")) is None
    assert run_app(failing(number), ["--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "unexpected"


def test_memory_that_ran_out_is_one_line(capsys):
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        raise MemoryError

    assert run_app(app, []) == 2
    assert "no memory left" in capsys.readouterr().err


def commands(place: Path, word: Path) -> dict[str, tuple[typer.Typer, list[object]]]:
    """Every command that takes a path, with ``place`` as each of its paths in turn."""
    key = ["--passphrase-file", word]
    return {
        "site init": (site, ["init", "--home", place, *key, *POLICY]),
        "site init, passphrase": (
            site,
            ["init", "--home", word.parent / "h", "--passphrase-file", place, *POLICY],
        ),
        "site join": (site, ["join", place, "--home", place, "--coordinator", "f" * 64]),
        "site check": (site, ["check", place]),
        "site check, study": (site, ["check", word.parent, "--study", place]),
        "site check, findings": (site, ["check", word.parent, "--findings", place]),
        "site approve": (site, ["approve", place, "--home", place, *key]),
        "site withdraw": (site, ["withdraw", "a", "--home", place, *key]),
        "site start": (
            site,
            ["start", "--home", place, "--cohort", place, "--identities", place],
        ),
        "site stop": (site, ["stop", "--home", place]),
        "site budget": (site, ["budget", "--home", place]),
        "site audit": (site, ["audit", "--home", place]),
        "site forecast": (
            site,
            ["forecast", "--cohort", place, *PATIENT, "--out", place],
        ),
        "coordinator init": (coordinator, [*COORDINATOR_INIT, "--home", place, *key]),
        "coordinator enrol": (coordinator, ["enrol", place, "--home", place, "--out", place]),
        "coordinator draft": (coordinator, ["draft", place, "--home", place, "--out", place]),
        "coordinator publish": (coordinator, ["publish", place, "--home", place, *key]),
        "coordinator start": (coordinator, ["start", "--home", place]),
        "coordinator run": (coordinator, ["run", "a", "--home", place]),
        "coordinator resume": (coordinator, ["resume", "a", "--home", place]),
        "coordinator stop": (coordinator, ["stop", "a", "--home", place]),
        "coordinator status": (coordinator, ["status", "--home", place]),
        "coordinator verify": (coordinator, ["verify", place]),
        "coordinator verify, trust": (coordinator, ["verify", place, "--trust", place]),
        "simulate cohort": (simulate, ["cohort", "--out", place, "--patients", 1, "--sites", 1]),
        "simulate cohort, hospitals": (
            simulate,
            ["cohort", "--out", word.parent / "c", "--hospitals", place],
        ),
        "simulate grow": (
            simulate,
            ["grow", "--tissue", place, "--seed-mm", "0,0,0", *LAW, "--out", place],
        ),
        "simulate pretrain": (simulate, ["pretrain", "--out", place, "--patients", 1]),
        "simulate run": (simulate, ["run", place, "--cohorts", place, "--out", place]),
        "simulate demo": (simulate, ["demo", "--out", place]),
    }


NAMES = list(commands(Path("p"), Path("w")))


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_no_file_system_takes_is_refused_by_every_command(name, tmp_path, capsys):
    word = tmp_path / "word"
    word.write_text("a passphrase")
    for place in (tmp_path / LONG, tmp_path / LONG / "below", word / "below"):
        program, words = commands(place, word)[name]
        code = run_app(program, [str(word) for word in words])
        said = capsys.readouterr().err
        assert (code, said.count("\n")) == (2, 1), said
        assert not any(word in said for word in ("patient-", "unexpected", "--help", str(tmp_path)))
    assert os.listdir(tmp_path) == ["word"]


@pytest.mark.parametrize("command", ["init", "start"])
def test_a_home_without_room_is_one_line(command, tmp_path):
    """A process that may write no byte into any file stands for a disk without room."""
    home = joined(a_home(tmp_path), Coordinator())
    cohort = write_cohort(tmp_path / "cohort", patients=1)
    (tmp_path / "word").write_text("a passphrase")
    words = {
        "init": ["--home", tmp_path / "new", "--passphrase-file", tmp_path / "word", *POLICY],
        "start": ["--home", home.root, "--cohort", cohort, "--identities", tmp_path / "word"],
    }[command]
    argv = [sys.executable, "-m", "oncofed_client", command, *(str(word) for word in words)]
    limited = ["bash", "-c", 'ulimit -f 0; exec "$@"', "bash", *argv]
    done = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "unexpected" not in done.stderr
    assert not (tmp_path / "new").exists()
    assert not (home.root / "processes.json").exists()
