"""What the doctor makes of what was seen: laws for every line, and what no machine here can show."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncofed_client.courier import question
from oncofed_client.courier.line import Proxy
from oncofed_client.courier.probe import Seen
from oncofed_client.doctor import answered, gpu, line, line_words
from oncofed_client.doctor.answered import Asked, predict
from oncofed_client.doctor.finding import CHECKS
from oncofed_client.doctor.line import judge

T = 1_800_000_000
GOOD = Seen(
    addresses=("192.0.2.7",), connect_s=0.02, mtu_bytes=1500, subject="CN=c", issuer="CN=ca",
    fingerprint="a" * 64, names=("fed.example.org",), ours=True, same_name=True,
    not_before_s=T - 86_400, not_after_s=T + 300 * 86_400, status=400, code=question.KNOWN, date_s=T,
    local_s=T + 0.5, answer_s=0.05, upload_bytes=1000, upload_s=0.1,
)  # fmt: skip
ASKED = Asked(
    address="fed.example.org:443", proxy=None, login=False, environment_proxy=None,
    update_bytes=80_000, reply_after_s=600, deadline_s=1200,
)  # fmt: skip


def faults(seen: Seen, asked: Asked = ASKED) -> list[str]:
    return [one.code for one in judge(seen, asked) if one.verdict == "fault"]


def test_a_good_line_has_every_check_once_and_in_order():
    """As the table is printed."""
    found = judge(GOOD, ASKED)
    assert [one.check for one in found] == list(line.LINE_CHECKS)
    assert {one.verdict for one in found} == {"ok", "skipped"}


@given(
    st.sampled_from(sorted({*line_words.DIRECT, *line_words.BY_PROXY, ("proxy", "answers")})),
    st.booleans(),
    st.integers(0, 600),
    st.booleans(),
)
def test_whatever_ends_the_way_is_one_fault_that_says_whose_it_is_and_what_to_do(
    key, proxied, status, small
):
    """And every later check is skipped, none called right."""
    step, why = key
    asked = replace(ASKED, proxy="proxy.example.org:3128" if proxied else None)
    found = judge(Seen(step=step, why=why, status=status, small_passes=small), asked)
    (ended,) = [one for one in found if one.verdict == "fault"]
    assert ended.whose
    assert ended.next
    assert "{" not in ended.seen + ended.next
    order = list(CHECKS)
    later = [one for one in found if order.index(one.check) > order.index(ended.check)]
    assert {one.verdict for one in later} <= {"skipped"}


@given(st.integers(-(10**6), 10**6))
def test_a_wrong_clock_is_never_taken_for_a_bad_certificate(off_s):
    """However wrong this clock is: the certificate is judged by the coordinator's."""
    seen = replace(GOOD, local_s=T + 0.5 + off_s)
    expected = []
    if off_s > answered.AHEAD_S:
        expected = ["clock_ahead"]
    elif off_s < -answered.BEHIND_S:
        expected = ["clock_behind"]
    assert faults(seen) == expected
    refused = replace(seen, code=question.NOT_SIGNED, status=401)
    assert faults(refused) == (expected or ["signature_refused"])


@given(st.integers(-(10**8), 10**8))
def test_a_certificate_holds_between_its_dates_and_no_longer(at_s):
    """With a clock that agrees."""
    seen = replace(GOOD, date_s=T + at_s, local_s=T + at_s + 0.5)
    said = faults(seen)
    assert ("certificate_not_yet" in said) == (T + at_s < GOOD.not_before_s)
    assert ("certificate_expired" in said) == (T + at_s > GOOD.not_after_s)


@given(st.floats(1e-3, 1e3), st.integers(1, 10**9))
def test_the_predicted_round_is_bytes_over_speed_both_ways_and_a_wait_for_each_request(s, size):
    """A closed form; a reply is never there before its slot."""
    seen = replace(GOOD, upload_s=s)
    said = predict(seen, replace(ASKED, update_bytes=size))
    assert said is not None
    assert said.line_s == pytest.approx(2 * size * s / 1000 + answered.REQUESTS_A_ROUND * 0.05)
    assert said.round_s - said.line_s == pytest.approx(ASKED.reply_after_s)
    assert predict(replace(GOOD, upload_bytes=0), ASKED) is None


def test_a_line_that_leaves_little_time_is_a_warning_and_one_that_leaves_none_a_fault():
    """Twice the line's time has to fit before the deadline."""
    for line_s, verdict in ((200.0, "ok"), (350.0, "warning"), (700.0, "fault")):
        upload_s = (line_s - answered.REQUESTS_A_ROUND * 0.05) * 1000 / (2 * ASKED.update_bytes)
        found = {one.check: one for one in judge(replace(GOOD, upload_s=upload_s), ASKED)}
        assert found["throughput"].verdict == verdict


ROW = [["NVIDIA H100", "580.1", "81559", "80000"]]


@pytest.mark.parametrize(
    ("rows", "torch", "code"),
    [
        (ROW, {"built": "12.8", "available": True, "works": True}, "ok"),
        (ROW, {"built": None, "available": False, "works": False}, "torch_without_cuda"),
        (ROW, {"built": "12.8", "available": False, "works": False}, "gpu_unseen"),
        (ROW, {"built": "12.8", "available": True, "works": False}, "gpu_fails"),
        (ROW, {}, "gpu_fails"),
        ([["A40", "580.1", "46068", "300"]], {"built": "12.8", "available": True, "works": True},
         "gpu_memory"),
        ([], {"built": "12.8", "available": True, "works": True}, "ok"),
    ],
)  # fmt: skip
def test_a_gpu_is_judged_by_what_its_driver_says_and_what_torch_sees(rows, torch, code):
    """What a machine without one cannot show."""
    assert gpu._judge(rows, torch).code == code


def test_a_gpu_that_a_variable_hides_is_called_hidden(monkeypatch):
    """The driver knows it, torch must not."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    seen = {"built": "12.8", "available": False, "works": False}
    assert gpu._judge(ROW, seen).code == "gpu_hidden"


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        (
            "http://p.example.org:3128",
            Proxy(host="p.example.org", port=3128, tls=False, login=None),
        ),
        ("https://p.example.org", Proxy(host="p.example.org", port=443, tls=True, login=None)),
        ("http://a:b%40c@p:8080/", Proxy(host="p", port=8080, tls=False, login="a:b@c")),
        ("http://a@[2001:db8::1]:1", Proxy(host="2001:db8::1", port=1, tls=False, login="a:")),
    ],
)
def test_a_proxy_is_read_as_httpx_reads_it(url, proxy):
    """Name, port, login and whether it is reached by TLS."""
    assert Proxy.parse(url) == proxy
