"""FiLM and low-rank updates: nothing until they are trained, and sums of updates are the update of sums."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from oncofed_common.model.modulation import RANK, UPDATED, FiLM, LowRank, with_updates
from oncofed_common.model.network import build
from oncofed_common.model.presets import SMALL


def _drawn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_fresh_ones_change_nothing():
    layer = nn.Linear(6, 5)
    told, seen = _drawn(2, 6, seed=1), _drawn(2, 4, 3, 3, 3, seed=2)
    assert torch.equal(LowRank(layer)(told), layer(told))
    assert torch.equal(FiLM(6, 4)(seen, told), seen)


def test_film_scales_and_shifts_each_channel_by_what_it_is_told():
    film = FiLM(1, 2)
    with torch.no_grad():
        film.weight.copy_(torch.tensor([[1.0], [0.0], [0.0], [3.0]]))
        film.bias.copy_(torch.tensor([0.0, 0.5, 0.0, 0.0]))
    seen = _drawn(1, 2, 3, 3, 3, seed=3)
    found = film(seen, torch.tensor([[2.0]]))
    torch.testing.assert_close(found[:, 0], 3.0 * seen[:, 0])
    torch.testing.assert_close(found[:, 1], 1.5 * seen[:, 1] + 6.0)


@given(seed=st.integers(0, 1000), share=st.floats(0, 1))
def test_the_mean_of_two_hospitals_updates_is_the_update_of_their_mean(seed, share):
    """What federated averaging needs, and what training both factors would lose."""
    layer, seen = LowRank(nn.Linear(6, 5)), _drawn(3, 6, seed=seed)
    plain = layer(seen)
    ups = [_drawn(5, RANK, seed=seed + k) for k in (1, 2)]
    moved = []
    for up in (*ups, share * ups[0] + (1 - share) * ups[1]):
        with torch.no_grad():
            layer.up.copy_(up)
        moved.append(layer(seen) - plain)
    torch.testing.assert_close(
        moved[2], share * moved[0] + (1 - share) * moved[1], atol=1e-4, rtol=1e-4
    )
    update = torch.linalg.matrix_rank(moved[0])
    assert update <= RANK


def test_every_layer_through_which_conditions_act_has_an_update_and_keeps_its_weights():
    unet = build(SMALL, seed=0).unet
    updated = [path for path, layer in unet.named_modules() if isinstance(layer, LowRank)]
    wanted = [
        path
        for path, layer in unet.named_modules()
        if isinstance(layer, nn.Linear) and path.endswith(UPDATED)
    ]
    assert updated == wanted
    assert len(wanted) > 20
    small = nn.Sequential()
    small.time_emb_proj = nn.Linear(3, 2)
    before = small.time_emb_proj.weight
    with_updates(small)
    assert small.time_emb_proj.weight is before
    assert {name for name, _ in small.named_parameters()} == {
        f"time_emb_proj.{key}" for key in ("weight", "bias", "down", "up")
    }
