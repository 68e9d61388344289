"""The passphrase of a key that people hold: from a file that they name, or typed where nobody sees it.

``/dev/stdin`` at a terminal asks for it without showing it; a new one is asked for twice. Piped in, it is
read as from any file.
"""

from __future__ import annotations

import getpass
import sys
from pathlib import Path

from oncofed_common.durable import read_secret
from oncofed_common.errors import PolicyRefusal, SystemRefusal

STDIN = Path("/dev/stdin")
LEAST_CHARACTERS = 8


def read_passphrase(path: Path, *, new: bool, whose: str = "") -> bytes:
    """The passphrase in ``path``, without white space around it.

    Args:
        new: it will lock a new key: typed twice, and not too short.
        whose: said where it is typed, if several are asked for.

    Raises:
        SystemRefusal: code ``no_passphrase``. PolicyRefusal: ``refuse_weak``; or two that differ.
    """
    typed = path == STDIN and sys.stdin.isatty()
    try:
        found = (
            _typed(f"Passphrase{whose and f' of {whose}'}: ")
            if typed
            else read_secret(path).strip()
        )
    except (OSError, EOFError):
        found = b""
    if not found:
        raise SystemRefusal(
            "a passphrase file that cannot be read, or is empty",
            allowed="a file with the key's passphrase, or /dev/stdin to type it",
            next="check the path and its permissions",
            code="no_passphrase",
        )
    if new:
        refuse_weak(found)
        if typed and _typed("The same again: ") != found:
            raise PolicyRefusal(
                "two passphrases that differ",
                allowed="the same one twice",
                next="run the command again; nothing was made",
                code="passphrases_differ",
            )
    return found


def refuse_weak(passphrase: bytes) -> None:
    """Nothing, for a passphrase that may lock a key.

    Raises:
        PolicyRefusal: code ``weak_passphrase``.
    """
    if len(passphrase) < LEAST_CHARACTERS:
        raise PolicyRefusal(
            f"a passphrase shorter than {LEAST_CHARACTERS} characters",
            allowed=f"{LEAST_CHARACTERS} characters or more",
            next="choose a longer passphrase for the key",
            code="weak_passphrase",
        )


def _typed(prompt: str) -> bytes:
    return getpass.getpass(prompt).strip().encode()
