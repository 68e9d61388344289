"""A home under a key file: whoever has the home alone has neither key nor secret."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from site_builder import PASSPHRASE, Coordinator, a_home, approved, code_of, joined, study_for

from oncofed_client.__main__ import app
from oncofed_client.at_rest import SECRET_BYTES, locked, read_key_file, unlocked
from oncofed_client.courier.node import make_node_key
from oncofed_client.home import Home
from oncofed_client.ledger import Ledger
from oncofed_client.rotation import rotate
from oncofed_common.errors import IdentityRefusal, SystemRefusal
from oncofed_common.identity import SigningKey
from oncofed_common.terminal import run_app

KEYS = st.binary(min_size=32, max_size=32).map(lambda raw: raw.hex().encode())
SECRETS = st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES)


@given(secret=SECRETS, key=st.none() | KEYS)
def test_a_secret_comes_back_under_its_own_key(secret: bytes, key: bytes | None) -> None:
    """And without a key file it lies there as it is."""
    stored = locked(secret, key=key)
    assert unlocked(stored, key=key) == secret
    assert (secret in stored) == (key is None)


@given(secret=SECRETS, key=KEYS, other=KEYS, place=st.integers(0, 59), bit=st.integers(0, 7))
def test_under_another_key_or_changed_it_is_no_secret(
    secret: bytes, key: bytes, other: bytes, place: int, bit: int
) -> None:
    """Whatever was changed in it: nothing comes out that would name patients anew."""
    stored = bytearray(locked(secret, key=key))
    if other != key:
        with pytest.raises(SystemRefusal):
            unlocked(bytes(stored), key=other)
    with pytest.raises(SystemRefusal):
        unlocked(bytes(stored), key=None)
    stored[place % len(stored)] ^= 1 << bit
    with pytest.raises(SystemRefusal) as refusal:
        unlocked(bytes(stored), key=key)
    assert refusal.value.code == "no_secret"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    (tmp_path / "volume").mkdir()
    return tmp_path / "volume" / "key"


@pytest.fixture
def home(tmp_path: Path, key_file: Path) -> Home:
    return a_home(tmp_path, key_file=key_file)


def test_a_home_under_a_key_file_answers_tasks(tmp_path: Path, home: Home) -> None:
    """Approval, ledger and reply: all of it reads key and secret through the file."""
    coordinator = Coordinator()
    site = approved(tmp_path, joined(home, coordinator), study_for(home), coordinator)
    with site.open:
        assert code_of(site.desk().answer(coordinator.task(site))[0]) == "ok"


def test_a_key_file_that_was_made_before_is_taken_and_left_as_it_is(tmp_path: Path) -> None:
    """As in a container, where its mount can't be written."""
    key_file = tmp_path / "oncofed-key"
    key_file.write_bytes(b"7" * 64 + b"\n")
    key_file.chmod(0o400)
    home = a_home(tmp_path, key_file=key_file)
    assert home.key_file == key_file
    assert key_file.read_bytes() == b"7" * 64 + b"\n"
    assert Home.open(home.root).trainer_key().public == home.trainer_key().public


def test_the_key_file_is_hidden_from_the_courier(home: Home, key_file: Path) -> None:
    """Its jail tries to open whatever is hidden, and starts no courier that can."""
    assert key_file in home.hidden_from_courier()
    assert a_home(home.root.parent, name="south").hidden_from_courier()[2:] == []


def test_a_copy_of_the_home_is_of_no_use_without_the_file(home: Home, key_file: Path) -> None:
    """Neither the key nor the secret opens, and the ledger does not either; nothing else gets out."""
    secret, kept = home.secret(), key_file.read_bytes()
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    for file in home.root.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert secret not in content
            assert kept.strip() not in content
    with pytest.raises(IdentityRefusal):
        SigningKey.load(home.trainer / "key.pem", passphrase=None)
    key_file.unlink()
    for act in (home.trainer_key, home.secret, lambda: Ledger.open(home)):
        with pytest.raises(SystemRefusal) as refusal:
            act()
        assert refusal.value.code == "no_key_file"
    key_file.write_bytes(b"f" * 64)
    with pytest.raises(IdentityRefusal):
        home.trainer_key()
    with pytest.raises(SystemRefusal):
        home.secret()
    key_file.write_bytes(kept)
    assert Home.open(home.root).secret() == secret


def test_a_renewed_key_lies_under_the_same_file(home: Home) -> None:
    """Rotation does not put it there in clear."""
    before = home.trainer_key().public
    rotate(home, passphrase=PASSPHRASE, node_key=make_node_key())
    assert home.trainer_key().public != before
    with pytest.raises(IdentityRefusal):
        SigningKey.load(home.trainer / "key.pem", passphrase=None)


def init(tmp_path: Path, key_file: Path) -> int:
    (tmp_path / "pass").write_bytes(PASSPHRASE)
    words = (
        f"init --home {tmp_path / 'home'} --name north --declared-patients 20 --lifetime-epsilon 10"
    )
    words += " --lifetime-delta 1e-5 --filter-order 3 --bytes-per-round 200000 --json"
    words += f" --passphrase-file {tmp_path / 'pass'} --key-file {key_file}"
    return run_app(app, words.split())


def test_init_makes_a_key_file_where_there_is_none_and_takes_one_that_is_there(
    tmp_path: Path, key_file: Path
) -> None:
    """A hospital may have one in its secret store already."""
    key_file.write_text("a" * 64 + "\n")
    assert init(tmp_path, key_file) == 0
    assert key_file.read_text() == "a" * 64 + "\n"
    key_file.unlink()
    assert init(tmp_path / "volume", tmp_path / "other") == 0
    assert read_key_file(tmp_path / "other")


@pytest.mark.parametrize("wrong", ["inside", "damaged", "nowhere", "folder"])
def test_a_key_file_that_locks_nothing_makes_no_home(
    tmp_path: Path, key_file: Path, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, and nothing half written."""
    (tmp_path / "home").mkdir()
    places = {
        "inside": tmp_path / "home" / "key",
        "nowhere": tmp_path / "no" / "such" / "key",
        "folder": tmp_path / "volume",
    }
    if wrong == "damaged":
        key_file.write_text("secret")
    assert init(tmp_path, places.get(wrong, key_file)) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "no_key_file"
    assert not list((tmp_path / "home").iterdir())
