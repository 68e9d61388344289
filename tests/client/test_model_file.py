"""Which weights a forecast takes, and on which base a release may be put."""

import json

import pytest
import torch
from safetensors.torch import save
from study_builder import a_study

from oncofed_client.forecasts.model_file import read_model
from oncofed_common.errors import ModelRefusal, SystemRefusal
from oncofed_common.identity import digest
from oncofed_common.model.adapters import schema
from oncofed_common.model.network import build
from oncofed_common.model.presets import SMALL
from oncofed_common.model.weights import dump, load_base
from oncofed_server.draft import study_toml

BASE = load_base(SMALL, sha256=None)


@pytest.fixture
def release(tmp_path):
    """A release of the shipped base: trained tensors, and the study beside them."""
    _write_release(tmp_path)
    return tmp_path


def _write_release(folder, *, base_sha256=BASE.sha256, adapters="norm", trains="norm"):
    names = [name for name, _, _ in schema(build(SMALL, seed=0), trains)]
    trained = {name: BASE.tensors[name] + 0.5 for name in names}
    tensors = [
        {"name": name, "shape": list(shape), "dtype": dtype}
        for name, shape, dtype in schema(build(SMALL, seed=0), adapters)
    ]
    model = {"preset": "small", "base_sha256": base_sha256, "adapters": adapters}
    study = a_study(model=model, tensors=tensors)
    files = {"weights.safetensors": save(trained), "study.toml": study_toml(study).encode()}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    manifest = {"files": {name: digest(data) for name, data in files.items()}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


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
    _write_release(release, base_sha256="a" * 64)
    assert _refused(release / "weights.safetensors") == "weights_base"


@pytest.mark.parametrize("swapped", ["weights.safetensors", "study.toml", "manifest.json"])
def test_files_of_two_releases_do_not_go_together(release, tmp_path_factory, swapped):
    """Both on the shipped base, so that the tensors would fit."""
    other = tmp_path_factory.mktemp("other")
    _write_release(other, adapters="prior", trains="prior")
    (release / swapped).write_bytes((other / swapped).read_bytes())
    assert _refused(release / "weights.safetensors") == "weights_study"


def test_other_tensors_than_the_study_trains_are_refused(release):
    _write_release(release, adapters="norm", trains="prior")
    assert _refused(release / "weights.safetensors") == "weights_study"


def test_a_release_without_its_manifest_is_refused(release):
    (release / "manifest.json").unlink()
    with pytest.raises(SystemRefusal):
        read_model(release / "weights.safetensors")


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
