"""Shapes and types are checked on every call of our own code; Ctrl-C reaches what the tests start; no example
fails because the machine was busy; torch has one thread, for a process that is forked where several have
worked hangs in its first parallel loop."""

import os
import signal

from hypothesis import settings
from jaxtyping import install_import_hook

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So a script's background jobs begin, and whatever they start ignores Ctrl-C for ever.
    signal.signal(signal.SIGINT, signal.default_int_handler)

install_import_hook(
    ["oncofed_common", "oncofed_client", "oncofed_server", "oncofed_simulation"],
    "beartype.beartype",
)

settings.register_profile("house", deadline=None)
settings.load_profile("house")
