"""A small real process in the trainer's place: its real service, with doubling instead of training.

    python stand_in_trainer.py SOCKET KEY_FILE

It holds the key file open and a secret in its environment, as a trainer does, and says "ready".
"""

import logging
import sys
import time
from pathlib import Path

import numpy as np

from oncofed_client.trainer.service import serve
from oncofed_common.tensors import pack_tensors, read_tensors
from oncofed_common.wire import frame, unframe


def answer(body: bytes) -> tuple[bytes, int]:
    envelope, tensors = unframe(body, cap_bytes=2**26)
    doubled = {name: (2 * value).astype(np.int32) for name, value in read_tensors(tensors).items()}
    return frame(b"answer to " + envelope, pack_tensors(doubled)), int(time.time())


if __name__ == "__main__":
    with Path(sys.argv[2]).open("rb") as key:
        sys.stdout.write(f"ready {len(key.read())}\n")
        sys.stdout.flush()
        serve(answer, path=Path(sys.argv[1]), shared_group=None, log=logging.getLogger())
