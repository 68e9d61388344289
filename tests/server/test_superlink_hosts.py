"""Where SuperLink listens: what is no address of this machine is refused before anything is started."""

from __future__ import annotations

import pytest

from oncofed_common.errors import SystemRefusal
from oncofed_server import superlink

UNLIKELY = ("", " ", "0", "0x0", "1.2", "a b", "-x", "<broadcast>", "no\x00where", "é" * 80, "a..b")


@pytest.mark.parametrize("host", UNLIKELY)
def test_what_is_neither_an_address_nor_a_host_name_is_refused(tmp_path, host):
    with pytest.raises(SystemRefusal) as caught:
        superlink.start(home=tmp_path, host=host, port=None, environment={}, within_s=1.0)
    assert caught.value.code == "bad_host"
    assert not (tmp_path / "logs").exists()
