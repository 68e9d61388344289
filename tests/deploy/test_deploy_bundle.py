"""The offline bundle: what was signed is what is installed, and every change to it is noticed."""

import importlib.util
import json
import os
import shutil
import subprocess

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from deploy_manifests import DEPLOY

_SPEC = importlib.util.spec_from_file_location("bundle", DEPLOY / "bundle.py")
bundle = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(bundle)

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="not installed: openssl")
IMAGES = {"courier": "localhost/oncofed-courier:0.1.0"}
ENGINE = """#!/bin/sh
# A small podman: an image is an archive of its own name; what is loaded is noted.
case "$1 $2" in
    "image exists") case "$3" in *absent*) exit 1 ;; esac ;;
    "save --format") printf '%s' "$6" > "$5" ;;
    "run --rm") printf 'numpy==2.4.0\\nclick==8.3.0\\n' ;;
    "load --input") echo "$3" >> "$LOADED" ;;
    *) exit 3 ;;
esac
"""


def _pem(key):
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A bundle, the fingerprint of who signed it, and the path on which its podman is found."""
    root = tmp_path_factory.mktemp("bundle")
    (root / "bin").mkdir()
    (root / "bin" / "podman").write_text(ENGINE)
    (root / "bin" / "podman").chmod(0o755)
    path = f"{root}/bin:{os.environ['PATH']}"
    key = Ed25519PrivateKey.generate()
    before, os.environ["PATH"] = os.environ["PATH"], path
    try:
        told = bundle.make_bundle(root / "made", images=IMAGES, key=key)
    finally:
        os.environ["PATH"] = before
    return root / "made", told, path


@pytest.fixture
def copied(made, tmp_path):
    """A copy of the bundle that a test may change, and how install.sh ends in it."""
    folder = tmp_path / "bundle"
    shutil.copytree(made[0], folder, symlinks=True)

    def install(*words):
        environment = {"PATH": made[2], "LOADED": str(tmp_path / "loaded")}
        argv = ["sh", str(folder / "install.sh"), *(words or (made[1],))]
        return subprocess.run(
            argv, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    return folder, install


def test_a_bundle_as_it_was_signed_is_verified_and_its_images_are_loaded(copied, tmp_path):
    _, install = copied
    done = install()
    assert (done.returncode, done.stderr) == (0, "")
    assert "verified" in done.stdout
    loaded = (tmp_path / "loaded").read_text().split()
    assert loaded == [f"images/{role}.tar" for role in sorted(IMAGES)]


def test_a_bundle_is_verified_without_being_loaded_where_that_is_asked(copied, made, tmp_path):
    _, install = copied
    assert install(made[1], "--verify").returncode == 0
    assert not (tmp_path / "loaded").exists()


def _append(name):
    def plant(folder):
        with (folder / name).open("ab") as file:
            file.write(b"\n")

    return plant


def _sign_anew(folder):
    (folder / "images" / "courier.tar").write_text("another")
    key = Ed25519PrivateKey.generate()
    for name in ("SHA256SUMS", "SHA256SUMS.sig"):
        (folder / name).unlink()
    sums = bundle.checksums(folder)
    (folder / "SHA256SUMS").write_bytes(sums)
    (folder / "SHA256SUMS.sig").write_bytes(key.sign(sums))


def _sign_with_own_key(folder):
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (folder / "release.pub").write_bytes(public)
    for name in ("SHA256SUMS", "SHA256SUMS.sig"):
        (folder / name).unlink()
    sums = bundle.checksums(folder)
    (folder / "SHA256SUMS").write_bytes(sums)
    (folder / "SHA256SUMS.sig").write_bytes(key.sign(sums))


TAMPERED = {
    "an image": (_append("images/courier.tar"), "not as the releaser signed it"),
    "a bill of materials": (_append("sbom/courier.cdx.json"), "not as the releaser signed it"),
    "a missing file": (lambda f: (f / "requirements.lock").unlink(), "missing"),
    "the list": (_append("SHA256SUMS"), "did not sign"),
    "a signature of nobody": (lambda f: (f / "SHA256SUMS.sig").write_bytes(b""), "did not sign"),
    "a file more": (lambda f: (f / "images" / "more.tar").write_text("x"), "did not sign"),
    "a link more": (lambda f: (f / "images" / "l.tar").symlink_to("courier.tar"), "did not sign"),
    "signed by another key": (_sign_anew, "did not sign"),
    "signed by another releaser": (_sign_with_own_key, "another releaser's key"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_bundle_that_was_changed_is_refused_and_nothing_is_loaded(what, copied, tmp_path):
    folder, install = copied
    plant, said = TAMPERED[what]
    plant(folder)
    done = install()
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "loaded").exists()


@pytest.mark.parametrize("words", [("",), ("abc",), ("Z" * 64,), ("0" * 64, "--force")])
def test_words_that_are_no_fingerprint_are_refused(words, copied):
    done = copied[1](*words)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_a_bill_of_materials_names_what_is_in_the_image(made):
    found = json.loads((made[0] / "sbom" / "courier.cdx.json").read_text())
    assert found["bomFormat"] == "CycloneDX"
    named = {(one["name"], one["version"]) for one in found["components"]}
    assert named == {("numpy", "2.4.0"), ("click", "8.3.0")}


def test_a_bundle_holds_all_three_images_unless_it_is_told_otherwise(tmp_path, monkeypatch):
    (tmp_path / "release.pem").write_bytes(_pem(Ed25519PrivateKey.generate()))
    asked = []
    monkeypatch.setattr(
        bundle, "make_bundle", lambda _out, images, key: asked.append(images) or "f"
    )
    (tmp_path / "out").mkdir()
    words = ["--key", str(tmp_path / "release.pem"), "--out", str(tmp_path / "out")]
    assert bundle.main([*words, "--version", "9.9.9"]) == 0
    assert asked == [{role: f"localhost/oncofed-{role}:9.9.9" for role in bundle.ROLES}]


def test_a_bundle_holds_what_an_offline_machine_needs(made):
    there = {path.relative_to(made[0]).as_posix() for path in made[0].rglob("*") if path.is_file()}
    wanted = {
        "requirements.lock",
        "install.sh",
        "deploy/compose.hospital.yaml",
        "deploy/nginx.conf",
    }
    wanted |= {"deploy/systemd/oncofed-trainer.service", "deploy/helm/coordinator/nginx.conf"}
    assert wanted <= there
    assert not any(path.is_symlink() for path in made[0].rglob("*"))


@pytest.mark.parametrize(
    "key",
    [b"", _pem(ec.generate_private_key(ec.SECP256R1())), b"-----BEGIN PRIVATE KEY-----\n"],
    ids=["empty", "another kind", "cut off"],
)
def test_a_key_that_is_not_ed25519_is_refused_and_nothing_is_written(key, tmp_path, capsys):
    (tmp_path / "release.pem").write_bytes(key)
    asked = ["--key", str(tmp_path / "release.pem"), "--out", str(tmp_path / "out")]
    assert bundle.main(asked) == 2
    assert "allowed: one in PEM" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_not_written_over(tmp_path, capsys):
    (tmp_path / "release.pem").write_bytes(_pem(Ed25519PrivateKey.generate()))
    asked = ["--key", str(tmp_path / "release.pem"), "--out", str(tmp_path)]
    assert bundle.main(asked) == 2
    assert "there already" in capsys.readouterr().err


def test_an_image_that_is_not_built_is_refused_and_nothing_is_written(
    made, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("PATH", made[2])
    (tmp_path / "release.pem").write_bytes(_pem(Ed25519PrivateKey.generate()))
    asked = ["--key", str(tmp_path / "release.pem"), "--out", str(tmp_path / "out")]
    assert bundle.main([*asked, "--image", "courier=absent", "--json"]) == 2
    assert "not built" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
