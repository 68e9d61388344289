"""The app bundle: no code, the same bytes everywhere, and what Flower takes for an app."""

import io
import zipfile

from flwr.cli.install import install_from_fab
from flwr.common.config import get_fab_config, get_fused_config_from_fab
from flwr.supercore.run import Run

from oncofed_server.bundle import bundle_hash, thin_bundle

APPROVED_SO_FAR = "f99338eba107bf9adda8e1598e12d615908c99a65ab6b744a6e463b37f3ca3c7"


def test_the_bundle_has_the_bytes_that_sites_have_approved():
    """A change here means that every site must approve again; say so in the changelog."""
    assert bundle_hash(thin_bundle()) == APPROVED_SO_FAR


def test_the_bundle_holds_no_code_and_one_setting():
    with zipfile.ZipFile(io.BytesIO(thin_bundle())) as archive:
        assert sorted(archive.namelist()) == [
            ".info/CONTENT", "LICENSE", "README.md", "pyproject.toml",
        ]  # fmt: skip
        assert archive.testzip() is None
    app = get_fab_config(thin_bundle())["tool"]["flwr"]["app"]
    assert app["components"] == {
        "serverapp": "oncofed_server.app:app",
        "clientapp": "oncofed_client.courier.app:app",
    }
    assert app["config"] == {"run": ""}


def test_flower_unpacks_it_and_lets_a_run_be_named(tmp_path):
    installed = install_from_fab(thin_bundle(), install_dir=tmp_path, skip_prompt=True)
    assert (installed / "README.md").exists()
    run = Run.create_empty(1)
    run.override_config = {"run": "ab"}
    assert get_fused_config_from_fab(thin_bundle(), run) == {"run": "ab"}
