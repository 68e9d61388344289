"""An address: what a courier may be told to call, and what is none."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncofed_common.address import is_callable

SENSELESS = (
    "", ":", "fed", "fed:", ":443", "fed:0", "fed:0443", "fed:65536", "fed:99999", "fed:-1",
    "fed: 443", "fed:443 ", "fed:443\n", "fed:４４３", "http://fed:443", "fed:443/path", "a b:443",
    "-fed:443", "fed-:443", ".:443", "a..b:443", ".fed:443", "fed.:443", "a_b:443", "é.org:443",
    "0:443", "1.2:443", "0x7f:443", "1.2.3.256:443", "01.2.3.4:443", "0.0.0.0:443",
    "224.0.0.1:443", "255.255.255.255:443", "[::1]:443", "::1:443", f"{'a' * 64}:443",
    f"{'a.' * 126}aa:443", "*.fed.org:443", "fed:443:443", "user@fed:443",
)  # fmt: skip


@pytest.mark.parametrize("address", SENSELESS)
def test_an_address_that_no_courier_could_call_is_none(address):
    assert not is_callable(address)


@pytest.mark.parametrize(
    "address",
    ["a:1", "fed.example.org:443", "127.0.0.1:65535", "10.0.0.7:8443", "3com.example.org:443"],
)
def test_host_names_and_addresses_of_one_machine_can_be_called(address):
    assert is_callable(address)


@given(host=st.integers(2**24, 224 * 2**24 - 1), port=st.integers(-1, 2**17))
def test_a_port_lies_from_1_to_65535_and_no_other(host, port):
    assert is_callable(f"{ipaddress.IPv4Address(host)}:{port}") == (1 <= port <= 65535)
