"""``make bundle``: everything that a machine without internet needs, with checksums and one signature.

    images/ROLE.tar     the images, as OCI archives
    sbom/ROLE.cdx.json  what is in each, in CycloneDX
    requirements.lock   the exact versions that they were built from
    deploy/             compose files, door, charts, units
    install.sh          verifies all this, then loads the images
    release.pub, SHA256SUMS, SHA256SUMS.sig

``install.sh FINGERPRINT`` trusts what that fingerprint, told otherwise, vouches for, and nothing else there.
Exit 0 done, 1 failed, 2 refused; nothing is left half written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

DEPLOY = Path(__file__).resolve().parent
ROLES = ("trainer", "courier", "coordinator")
CARRIED = ("README.md", "compose.*.yaml", "nginx*.conf", "stunnel.conf", "helm", "systemd")
PACKAGES = (
    "import importlib.metadata as m; "
    "print('\\n'.join(sorted({f'{d.name}=={d.version}' for d in m.distributions()})))"
)
SUMS = "SHA256SUMS"


class BundleRefusal(Exception):
    """What was asked for cannot be bundled; nothing was written."""


def make_bundle(out: Path, *, images: Mapping[str, str], key: Ed25519PrivateKey) -> str:
    """Write the bundle of these images (by role) to a new folder; the signer's fingerprint.

    Raises:
        BundleRefusal: the folder is there, or an image is not. CalledProcessError: podman failed.
    """
    if out.exists():
        raise BundleRefusal(
            "a folder that is there already; allowed: a new one; next: correct --out"
        )
    for image in images.values():
        if _podman("image", "exists", image, check=False).returncode != 0:
            raise BundleRefusal("an image that is not built; allowed: all; next: run make images")
    draft = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        for part in ("images", "sbom", "deploy"):
            (draft / part).mkdir(parents=True)
        for role, image in images.items():
            archive = str(draft / "images" / f"{role}.tar")
            _podman("save", "--format", "oci-archive", "-o", archive, image)
            (draft / "sbom" / f"{role}.cdx.json").write_text(_sbom(image), encoding="utf-8")
        _copy_files(draft)
        public = _public_pem(key)
        (draft / "release.pub").write_bytes(public)
        sums = checksums(draft)
        (draft / SUMS).write_bytes(sums)
        (draft / f"{SUMS}.sig").write_bytes(key.sign(sums))
        draft.replace(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return fingerprint(key)


def checksums(folder: Path) -> bytes:
    """Lines as ``sha256sum`` writes them, of every file under ``folder``, in order of name."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return "".join(f"{_sha256(folder / name)}  {name}\n" for name in names).encode()


def fingerprint(key: Ed25519PrivateKey) -> str:
    """SHA-256 of the public key as DER (SubjectPublicKeyInfo), hex."""
    der = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(der).hexdigest()


def read_key(path: Path) -> Ed25519PrivateKey:
    """The releaser's key, PKCS8 as ``openssl genpkey -algorithm ed25519`` writes it.

    Raises:
        BundleRefusal: it is none.
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise BundleRefusal(
            "no Ed25519 key; allowed: one in PEM without a passphrase; "
            "next: openssl genpkey -algorithm ed25519 -out release.pem"
        )
    return key


def _copy_files(draft: Path) -> None:
    shutil.copy(DEPLOY.parent / "requirements.lock", draft / "requirements.lock")
    shutil.copy(DEPLOY / "install.sh", draft / "install.sh")
    for pattern in CARRIED:
        for path in sorted(DEPLOY.glob(pattern)):
            target = draft / "deploy" / path.name
            if path.is_dir():
                shutil.copytree(path, target)  # links are followed: a chart stands alone
            else:
                shutil.copy(path, target)


def _sbom(image: str) -> str:
    """CycloneDX of every Python package that is in the image, the same text for the same packages."""
    words = ("run", "--rm", "--network", "none", "--entrypoint", "python", image, "-c", PACKAGES)
    pairs = (line.split("==") for line in _podman(*words).stdout.split())
    bill = Bom(components=[_component(name, version) for name, version in pairs])
    made = json.loads(
        make_outputter(bill, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string()
    )
    del made["serialNumber"], made["metadata"]["timestamp"]
    return json.dumps(made, indent=2, sort_keys=True) + "\n"


def _component(name: str, version: str) -> Component:
    url = PackageURL("pypi", name=name, version=version)
    return Component(
        name=name, version=version, type=ComponentType.LIBRARY, purl=url, bom_ref=url.to_string()
    )


def _podman(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["podman", *words], capture_output=True, text=True, check=check)


def _public_pem(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: Sequence[str]) -> int:
    """0 and the fingerprint; 1 if podman failed; 2 and one line if it was refused."""
    parser = argparse.ArgumentParser(prog="bundle", description="An offline bundle of the images.")
    parser.add_argument("--key", type=Path, required=True, help="the releaser's Ed25519 key (PEM)")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--version", default="0.1.0", help="the tag of the images")
    parser.add_argument("--image", action="append", default=[], metavar="ROLE=NAME")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args(arguments)
    images = {role: f"localhost/oncofed-{role}:{asked.version}" for role in ROLES}
    images = dict(word.split("=", 1) for word in asked.image) or images
    try:
        told = make_bundle(asked.out, images=images, key=read_key(asked.key))
    except BundleRefusal as refusal:
        sys.stderr.write(f"bundle: {refusal}\n")
        return 2
    except subprocess.CalledProcessError as failure:
        sys.stderr.write(f"bundle: {failure.cmd[0]} {failure.cmd[1]} failed\n")
        return 1
    size_mb = sum(p.stat().st_size for p in asked.out.rglob("*") if p.is_file()) / 1e6
    fields = {"fingerprint": told, "images": sorted(images), "size_mb": round(size_mb)}
    print(json.dumps(fields) if asked.json else f"signed by {told} ({size_mb:.0f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
