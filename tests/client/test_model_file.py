"""Which weights a forecast takes, and on which base a release may be put."""

import pytest
import torch
from safetensors.torch import save
from study_builder import a_study

from oncofed_client.forecasts.model_file import read_model
from oncofed_common.errors import ModelRefusal
from oncofed_common.model.adapters import schema
from oncofed_common.model.network import build
from oncofed_common.model.presets import SMALL
from oncofed_common.model.weights import dump, load_base
from oncofed_server.draft import study_toml

BASE = load_base(SMALL, sha256=None)


@pytest.fixture
def release(tmp_path):
    """A release of the shipped base: trained tensors, and the study beside them."""
    names = [name for name, _, _ in schema(build(SMALL, seed=0), "norm")]
    trained = {name: BASE.tensors[name] + 0.5 for name in names}
    (tmp_path / "weights.safetensors").write_bytes(save(trained))
    _write_study(tmp_path, BASE.sha256)
    return tmp_path


def _write_study(folder, base_sha256):
    study = a_study(model={"preset": "small", "base_sha256": base_sha256, "adapters": "norm"})
    (folder / "study.toml").write_text(study_toml(study))


def _refused(path) -> str:
    with pytest.raises(ModelRefusal) as refusal:
        read_model(path)
    return refusal.value.code


def test_without_a_path_it_is_the_shipped_base():
    assert read_model(None).sha256 == BASE.sha256


def test_a_release_is_the_base_with_its_trained_tensors(release):
    found = read_model(release / "weights.safetensors")
    moved = {n for n, value in found.tensors.items() if not torch.equal(value, BASE.tensors[n])}
    assert moved == {name for name, _, _ in schema(build(SMALL, seed=0), "norm")}
    assert found.sha256 != BASE.sha256


def test_a_release_on_another_base_is_refused_though_its_tensors_fit(release):
    _write_study(release, "a" * 64)
    assert _refused(release / "weights.safetensors") == "weights_base"


def test_a_release_without_its_study_is_refused(release):
    (release / "study.toml").unlink()
    assert _refused(release / "weights.safetensors") == "no_study"


def test_a_whole_network_needs_no_study(tmp_path):
    path = tmp_path / "network.safetensors"
    path.write_bytes(dump(build(SMALL, seed=3)))
    assert read_model(path).preset == SMALL


@pytest.mark.parametrize("data", [b"", b"no weights", save({})])
def test_anything_else_is_refused(tmp_path, data):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(data)
    assert _refused(path) == "weights_format"
    assert _refused(tmp_path / "nowhere") == "weights_format"
