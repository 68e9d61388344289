"""The Flower ClientApp of a hospital: a message in, the trainer's answer out.

    task                                       ArrayRecord "task"  {frame: uint8}
    reply   ConfigRecord "oncofed" {code: str} ArrayRecord "reply" {frame: uint8}

A frame (envelope and tensors, see ``wire.frame``) travels whole: Flower asks for each array by itself,
one request each, and the courier has no business inside. It decides nothing and knows one destination,
the socket named by ``ONCOFED_TRAINER_SOCKET``. No exception leaves it: Flower would send its text to
the coordinator.
"""

from __future__ import annotations

import logging
import os
import traceback
import uuid
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from oncofed_client.carried_head import keep_head
from oncofed_client.courier.carry import CarriageCode, carriage_code, carry
from oncofed_common.errors import WireRefusal

SOCKET_VARIABLE = "ONCOFED_TRAINER_SOCKET"

_log = logging.getLogger("oncofed.courier")

app = ClientApp()


def train(message: Message, _context: Context) -> Message:
    """Carry a task to the trainer whose socket the environment names."""
    return answer(message, socket_path=Path(os.environ[SOCKET_VARIABLE]))


def answer(message: Message, *, socket_path: Path, home: Path | None = None) -> Message:
    """The trainer's reply to ``message``, or a reason code; never an exception.

    Args:
        home: the courier's folder, which keeps the head that the reply tells.
    """
    try:
        expires_s = message.metadata.created_at + message.metadata.ttl
        reply = carry(_read(message), socket_path=socket_path, expires_s=expires_s)
        if home is not None:
            keep_head(reply, home)
        return _reply(message, frame=reply, code="ok")
    except WireRefusal as refusal:
        return refuse(message, code=carriage_code(refusal))
    except Exception as error:  # noqa: BLE001  its text would leave the hospital
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).stem}:{place.lineno}"
        _log.error("incident %s: %s in %s", uuid.uuid4().hex[:8], type(error).__name__, where)
        return refuse(message, code="unavailable")


def refuse(message: Message, *, code: CarriageCode) -> Message:
    """A reply to ``message`` that says ``code`` and holds nothing else."""
    return _reply(message, frame=b"", code=code)


def _read(message: Message) -> bytes:
    try:
        found = message.content["task"]["frame"]
        if not isinstance(found, Array):
            raise TypeError
        return bytes(found.numpy().astype(np.uint8, casting="safe").tobytes())
    except (KeyError, TypeError, ValueError, EOFError):
        raise WireRefusal(
            "a message that is not a task",
            allowed="one frame",
            next="update the coordinator to the same release of oncofed",
            code="malformed",
        ) from None


def _reply(message: Message, *, frame: bytes, code: CarriageCode) -> Message:
    content = RecordDict(
        {
            "oncofed": ConfigRecord({"code": code}),
            "reply": ArrayRecord({"frame": Array(np.frombuffer(frame, np.uint8))}),
        }
    )
    return Message(content, reply_to=message)


app.train()(train)
