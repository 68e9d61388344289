"""How does a process that makes one patient after another stay as small and as busy as one patient needs?

The C library keeps freed memory in pieces, and every patient's tumour is of another size: over a hundred
patients a process grew from 0.8 to 1.4 GiB though nothing was kept. To hand them back costs milliseconds.
"""

from __future__ import annotations

import ctypes
import gc
import sys

import scipy.linalg  # noqa: F401  loads the threads that are limited here
import torch
from threadpoolctl import threadpool_limits


def one_thread() -> None:
    """numpy's threads wait for work by spinning: with two, a patient costs 70 % more of the processor."""
    torch.set_num_threads(1)
    threadpool_limits(1)


def hand_back() -> None:
    """Return freed memory to the system, as far as the C library is able to: glibc is."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
