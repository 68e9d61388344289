"""The ways of a private step that the benchmark times do the same, or say that they cannot."""

from importlib import import_module
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Opacus' and those of torch.func's slower kernels
]


@pytest.mark.parametrize(("spatial_dims", "draws"), [(2, 1), (3, 2)])
def test_every_way_gives_the_sum_of_clipped_gradients_and_ghost_clipping_that_of_rows(
    spatial_dims, draws, monkeypatch
):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    steps = import_module("_private_steps")
    setting = steps.Setting(
        spatial_dims=spatial_dims,
        edge=8,
        draws=draws,
        half=False,
        device="cpu",
        channels=(8, 16),
    )
    found = steps.costs(setting, list(steps.WAYS), repeats=1)
    cannot = {way: cost.cannot for way, cost in found.items() if cost.cannot is not None}
    assert list(cannot) == ([] if draws == 1 else ["Opacus ghost"])
    assert all("another sum" in why for why in cannot.values())
    done = [cost for cost in found.values() if cost.cannot is None]
    assert all(cost.seconds > 0 and cost.mib >= 0 for cost in done)


def test_a_way_that_adds_up_something_else_is_not_timed(monkeypatch):
    """Planted: twice the clip norm."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    steps = import_module("_private_steps")
    setting = steps.Setting(
        spatial_dims=2, edge=8, draws=2, half=False, device="cpu", channels=(8, 16)
    )
    monkeypatch.setitem(
        steps.WAYS, "doubled", lambda given: lambda: 2 * steps.by_vmap(given)().detach()
    )
    found = steps.costs_here(setting, ["vmap", "doubled"], repeats=1)
    assert found["vmap"].cannot is None
    assert "100 % off" in found["doubled"].cannot
    assert found["doubled"].seconds is None
