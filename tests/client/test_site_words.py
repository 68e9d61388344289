"""Words on a hospital's command line that would make a home, or a trust, that nothing fits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oncofed_client.__main__ import app
from oncofed_common.terminal import run_app


def words(home: Path, name: str, passphrase: Path) -> list[str]:
    passphrase.write_text("a passphrase")
    numbers = "--declared-patients 100 --lifetime-epsilon 8 --lifetime-delta 0.00001"
    rest = f"{numbers} --filter-order 8 --bytes-per-round 300000 --json".split()
    paths = ["--home", str(home), "--passphrase-file", str(passphrase)]
    return ["init", "--name", name, *paths, *rest]


@pytest.mark.parametrize("name", ["", "A b", "../north", "a\nb", "n" * 64])
def test_a_site_name_that_no_coordinator_takes_makes_no_home(tmp_path, capsys, name):
    assert run_app(app, words(tmp_path / "home", name, tmp_path / "word")) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "bad_name"
    assert [path.name for path in tmp_path.iterdir()] == ["word"]


@pytest.mark.parametrize("place", ["file", "file/home"])
def test_a_home_where_no_folder_can_be_is_refused(tmp_path, capsys, place):
    (tmp_path / "file").write_text("mine")
    assert run_app(app, words(tmp_path / place, "north", tmp_path / "word")) == 2
    assert str(tmp_path) not in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("key", ["", "junk", "f" * 63])
def test_what_is_no_fingerprint_cannot_be_distrusted(tmp_path, capsys, key):
    home = tmp_path / "home"
    assert run_app(app, words(home, "north", tmp_path / "word")) == 0
    capsys.readouterr()
    line = ["distrust", key, "--home", str(home), "--passphrase-file", str(tmp_path / "word")]
    assert run_app(app, [*line, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "bad_fingerprint"
