"""The demo's page says no more than its held-out patients can tell."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from oncofed_simulation.report import in_words, report_page, uncertainty


def scores(gains):
    return {"model": 0.5, "base": 0.5 + float(np.mean(gains)), "no_change": 0.9}


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        ([0.1, 0.11, 0.09, 0.1], "helped"),
        ([-0.1, -0.11, -0.09, -0.1], "did harm"),
        ([0.3, -0.2, 0.25, -0.15], "no measurable difference"),
        ([0.1], "no measurable difference"),
        ([0.0, 0.0, 0.0], "no measurable difference"),
    ],
)
def test_a_federation_helped_only_where_the_gain_is_larger_than_its_uncertainty(gains, said):
    assert said in in_words(scores(gains), gains=gains)


def test_the_uncertainty_is_that_of_a_paired_t_test():
    """A second computation: the interval touches zero exactly where the test's p is 0.05."""
    gains = np.random.default_rng(1).normal(0.05, 0.1, 7)
    at_the_edge = gains - gains.mean() + uncertainty(gains.tolist())
    assert scipy.stats.ttest_1samp(at_the_edge, 0.0).pvalue == pytest.approx(0.05)
    assert uncertainty([0.3]) == math.inf


def test_the_page_says_whose_patients_they_are_what_crps_is_and_where_to_verify(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"a picture")
    site = {
        "name": "north", "patients": 5, "rounds_counted": 1, "epsilon": 2.0, "delta": 1e-5,
        "bytes_out": 100, "isolated": True,
    }  # fmt: skip
    values = {"model": 0.1, "base": 0.2, "no_change": 0.3}
    summary = {
        "sites": [site], "rounds": 1, "seconds": 3.0, "status": "complete", "weights_trained": 10,
        "largest_reply_bytes": 100, "in_words": "It helped.", "release": "release", "audit": "audit",
        "forecast": {"held_out_patients": 2, "samples": 4, "crps_log_volume": values, "dice": values},
    }  # fmt: skip
    page = report_page(
        summary,
        title="A study",
        rounds=[{"number": 1, "sites": {"north": "counted"}, "weights_after": "0" * 64}],
        study_hash="1" * 64,
        picture=tmp_path / "picture.png",
    )
    words = " ".join(page.split())
    assert "Held-out patients belong to these same hospitals" in words
    assert "CRPS is the distance between a forecast distribution and what came" in words
    assert "In the folder that holds this page" in words
    assert "oncofed-coordinator verify release --audit audit" in words
