"""The app bundle that Flower hands to every site: a few lines, no code, the same bytes everywhere.

Both apps come from the installed package; the bundle only names them. Entries are stored, not
compressed, with one fixed date, so that its SHA-256 depends on this file alone: it is what a site's
approval lists, and the courier's gate compares. What runs is pinned by the hash of the wheel.
"""

from __future__ import annotations

import hashlib
import io
import zipfile

SERVER_APP = "oncofed_server.app:app"
CLIENT_APP = "oncofed_client.courier.app:app"

_DATE = (1980, 1, 1, 0, 0, 0)
_LICENSE = "SPDX-License-Identifier: Apache-2.0\nhttps://www.apache.org/licenses/LICENSE-2.0\n"
_PROJECT = """\
[project]
name = "oncofed"
version = "1.0.0"
description = "Names the apps of the installed oncofed package"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "oncofed"

[tool.flwr.app.components]
serverapp = "{server_app}"
clientapp = "{client_app}"

[tool.flwr.app.config]
run = ""
"""
_README = "Both apps come from the installed oncofed package. This bundle holds no code.\n"


def thin_bundle(*, server_app: str = SERVER_APP, client_app: str = CLIENT_APP) -> bytes:
    """Flower's app bundle (a zip file with a CONTENT list) ; ``run`` is its one setting."""
    files = {
        "pyproject.toml": _PROJECT.format(server_app=server_app, client_app=client_app),
        "LICENSE": _LICENSE,
        "README.md": _README,
    }
    content = [
        f"{name},{hashlib.sha256(text.encode()).hexdigest()},{8 * len(text.encode())}"
        for name, text in files.items()
    ]
    files[".info/CONTENT"] = "\n".join(content)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name, date_time=_DATE), text)
    return packed.getvalue()


def bundle_hash(bundle: bytes) -> str:
    """SHA-256 of a bundle as hex: what a site approves."""
    return hashlib.sha256(bundle).hexdigest()
