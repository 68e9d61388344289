"""Does the coordinator know this site's node key? The courier asks before it starts Flower's node.

SuperLink refuses a node by one and the same answer (412, code 2004) in two cases: it does not know the key,
or it still takes the node's predecessor for alive. The second ends by itself within seconds, the first when
somebody enrols the site. The question of ``question.signed`` tells them apart: to a known key, predecessor
or not, SuperLink says that the heartbeat in it is out of bounds (400, code 2003).

Who is not known is told so once, and waits here: a file in the courier's home says so to whoever looks, and
the question is repeated every minute.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from oncofed_client.courier.line import Broken
from oncofed_client.courier.node import CA_FILE, NODE_KEY_FILE, NOT_ENROLLED_FILE
from oncofed_client.courier.question import KNOWN, UNKNOWN
from oncofed_client.courier.way import Way, ask, proxy_to
from oncofed_common.errors import OncofedError, SystemRefusal

ASK_TWICE_S = 5.0
"""A coordinator that begins anew knows nobody for a moment: what it says is believed the second time."""
ASK_AGAIN_S = 60.0

_log = logging.getLogger("oncofed.courier")


def not_enrolled() -> SystemRefusal:
    """What a site is told that the coordinator does not know."""
    return SystemRefusal(
        "a node key that the coordinator does not know: this site was revoked, or is not enrolled yet",
        allowed="a site that is enrolled",
        next="ask the coordinator; this site asks again every minute, and begins when it is let in",
        code="not_enrolled",
    )


def is_unknown(home: Path) -> bool:
    """Whether the courier of this home waits because the coordinator does not know its key."""
    return os.path.lexists(home / NOT_ENROLLED_FILE)


def wait_until_known(
    home: Path, *, asked: Callable[[], int], sleep: Callable[[float], object] = time.sleep
) -> None:
    """Return when the node may be started: at once, unless the coordinator says that it knows no such key.

    Args:
        asked: puts the question; SuperLink's code, 0 where it does not answer.
    """
    mark, times = home / NOT_ENROLLED_FILE, 0
    while (code := asked()) == UNKNOWN or (times > 1 and code != KNOWN):
        times += 1
        if times == 2:
            with suppress(OSError):  # a full disk ends no courier
                mark.touch(mode=0o600)
            refusal = not_enrolled()
            _log.error("%s: %s", refusal.code, refusal)
        sleep(ASK_TWICE_S if times == 1 else ASK_AGAIN_S)
    with suppress(OSError):
        mark.unlink(missing_ok=True)
    if times > 1:
        _log.warning("enrolled: the coordinator knows this site's node key now")


def put(home: Path, *, superlink: str, environment: Mapping[str, str]) -> int:
    """SuperLink's code for this node's key; 0 where the way to it, or what is needed to ask, is broken: of
    that the node itself says more."""
    try:
        way = Way.to(superlink, proxy=proxy_to(superlink, environment))
        way.look_up()
        ca_pem = (home / CA_FILE).read_text(encoding="utf-8")
        return ask(way, ca_pem=ca_pem, node_key=(home / NODE_KEY_FILE).read_bytes()).code
    except (Broken, OncofedError, OSError, ValueError):
        return 0
