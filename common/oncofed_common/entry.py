"""How an installed program begins: an interrupt while its libraries load is one line and exit 1.

Loading takes a good part of a second, in which nothing has been done that needs a clean-up. This module
therefore imports next to nothing; afterwards Ctrl-C is ``terminal.run_app``'s to handle.
"""

from __future__ import annotations

import os
import signal
from importlib import import_module
from types import FrameType
from typing import NoReturn

INTERRUPTED = 1
_LINE = b"oncofed: interrupted; allowed: -; next: run the command again\n"


def start(program: str) -> None:
    """Load the module ``program`` and run its ``main``."""
    before = signal.getsignal(signal.SIGINT)
    loading = before is signal.default_int_handler  # a shell's background jobs ignore it
    try:
        if loading:
            signal.signal(signal.SIGINT, _end)
        main = import_module(program).main
        if loading:
            signal.signal(signal.SIGINT, before)
        main()
    except KeyboardInterrupt:
        os.write(2, _LINE)
        raise SystemExit(INTERRUPTED) from None


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    """At once: an exception could be taken for a library that cannot be loaded."""
    try:
        os.write(2, _LINE)
    finally:
        os._exit(INTERRUPTED)
