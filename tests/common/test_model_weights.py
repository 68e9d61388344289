"""Weights files: what is written comes back, and what does not fit is refused."""

import json

import pytest
import torch
from safetensors.torch import load, save

from oncofed_common.errors import ModelRefusal
from oncofed_common.model.adapters import ADAPTERS, schema
from oncofed_common.model.network import build
from oncofed_common.model.presets import MEDIUM, SMALL
from oncofed_common.model.weights import (
    MOST_BYTES,
    base_path,
    card,
    dump,
    load_base,
    network_of,
    parse,
    preset_of,
    with_adapters,
    with_card,
)

HEADER = {"oncofed": "oncofed-weights/1 small; research use only"}


@pytest.fixture(scope="module")
def data() -> bytes:
    return dump(build(SMALL, seed=6))


def _code(data: bytes, *, sha256: str | None = None) -> str:
    with pytest.raises(ModelRefusal) as refusal:
        parse(data, SMALL, sha256=sha256)
    return refusal.value.code


def test_what_was_written_comes_back(data):
    weights = parse(data, SMALL, sha256=None)
    assert dump(network_of(weights)) == data
    assert parse(data, SMALL, sha256=weights.sha256).sha256 == weights.sha256
    assert preset_of(data) == SMALL


def test_another_digest_is_refused(data):
    assert _code(data, sha256="0" * 64) == "weights_hash"


@pytest.mark.parametrize(
    "broken", [b"", b"\x80\x04pickle", b"\xff" * 64, b"\x02" + b"\0" * 7 + b"{}"]
)
def test_what_is_no_weights_file_is_refused(broken):
    assert _code(broken) == "weights_format"


def test_a_truncated_file_is_refused(data):
    assert _code(data[:-100]) == "weights_format"


def test_weights_of_another_preset_are_refused(data):
    other = save(load(data), metadata={"oncofed": HEADER["oncofed"].replace("small", "large")})
    assert _code(other) == "weights_preset"


def test_missing_extra_reshaped_and_widened_tensors_are_refused(data):
    tensors = load(data)
    name = "read.2.weight"
    without = {key: value for key, value in tensors.items() if key != name}
    for odd in (
        without,
        {**tensors, "extra": torch.zeros(2)},
        {**tensors, name: tensors[name][:-1]},
        {**tensors, name: tensors[name].double()},
    ):
        assert _code(save(odd, metadata=HEADER)) == "weights_tensors"


def test_a_value_that_is_not_finite_is_refused(data):
    tensors = load(data)
    tensors["read.2.bias"][3] = float("nan")
    assert _code(save(tensors, metadata=HEADER)) == "weights_not_finite"


def test_trained_adapters_replace_their_own_tensors_only(data):
    base = parse(data, SMALL, sha256=None)
    names = [name for name, _, _ in schema(network_of(base), "norm")]
    trained = {name: base.tensors[name] + 1.0 for name in names}
    after = with_adapters(base, trained, sha256="a" * 64)
    for name, value in after.tensors.items():
        assert torch.equal(value, base.tensors[name] + (1.0 if name in names else 0.0))
    with pytest.raises(ModelRefusal) as refusal:
        with_adapters(base, {"nowhere": torch.zeros(1)}, sha256="a" * 64)
    assert refusal.value.code == "weights_tensors"


def test_the_shipped_base_is_the_one_on_its_card_and_small():
    base = load_base(SMALL, sha256=card(SMALL)["sha256"])
    assert sum(value.numel() for value in base.tensors.values()) <= 2_000_000
    assert card(SMALL)["limits"].startswith("research use only")
    with pytest.raises(ModelRefusal) as refusal:
        load_base(SMALL, sha256="f" * 64)
    assert refusal.value.code == "weights_hash"


def test_a_network_that_is_too_long_in_float32_is_written_in_half_of_it_and_read_back():
    network = build(MEDIUM, seed=6)
    data = dump(network)
    assert len(data) <= MOST_BYTES < 4 * sum(value.numel() for value in network.parameters())
    found = parse(data, MEDIUM, sha256=None).tensors
    for name, value in network.state_dict().items():
        assert torch.equal(found[name], value.to(torch.bfloat16).float())
        assert found[name].dtype == torch.float32


def test_trained_tensors_of_a_release_are_float32_or_refused():
    base = load_base(SMALL, sha256=None)
    name, _, _ = schema(network_of(base), "prior")[0]
    with pytest.raises(ModelRefusal) as refusal:
        with_adapters(base, {name: base.tensors[name].to(torch.bfloat16)}, sha256="a" * 64)
    assert refusal.value.code == "weights_tensors"


def test_days_ahead_are_those_of_the_weights_own_card():
    base = load_base(SMALL, sha256=None)
    assert base.days_ahead == tuple(card(SMALL)["days_ahead"])
    alone = parse(base_path(SMALL).read_bytes(), SMALL, sha256=None)
    assert alone.days_ahead is None
    assert with_card(alone, {"sha256": "0" * 64, "days_ahead": [1, 2]}).days_ahead is None
    assert with_card(alone, card(SMALL)).days_ahead == base.days_ahead


def test_the_card_names_the_tensors_of_every_adapter_set():
    found = {name: [key for key, _, _ in schema(build(SMALL, seed=0), name)] for name in ADAPTERS}
    assert card(SMALL)["adapters"] == found


def test_the_card_states_a_score_better_than_no_change():
    score = card(SMALL)["score"]["crps_log_volume"]
    assert score["base"] < score["no_change"]
    assert json.dumps(card(SMALL)), "a card is plain JSON"
