"""What the doctor asks SuperLink in Flower's own words: a question and an upload that change nothing there.

The question is ``ActivateNodeRequest`` (``fleet.proto`` of Flower 1.41) with a public key alone: the
heartbeat of 0 seconds that this means is refused after the key was looked up. The upload is a protobuf
message with one field that no request has, which is read whole and not signed.
"""

from __future__ import annotations

import base64
import datetime as dt
import http.client
import secrets
import ssl

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from oncofed_client.courier import line
from oncofed_client.courier.line import Broken, Stream

ASK = "/v1/fleet/activate-node"
UPLOAD = "/v1/fleet/push-object"
KNOWN, UNKNOWN, NOT_SIGNED = 2003, 2004, 401
"""SuperLink's codes: a heartbeat out of bounds (the key is known), no such node, no valid signature."""
_UNKNOWN_FIELD = 15


def post(
    to: Stream, path: str, *, host: str, body: bytes, headers: dict[str, str], step: str = "answer"
) -> tuple[int, dict[str, str], bytes]:
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}"]
    lines += ["Content-Type: application/protobuf", "Accept: application/protobuf"]
    lines += [f"Content-Length: {len(body)}", *(f"{k}: {v}" for k, v in headers.items())]
    try:
        to.sendall("\r\n".join([*lines, "", ""]).encode("ascii") + body)
        return line.read_answer(to)
    except http.client.RemoteDisconnected:
        raise Broken(step, "closes") from None
    except http.client.HTTPException:
        raise Broken(step, "no_http") from None
    except ssl.SSLError:
        raise Broken(step, "closes") from None
    except OSError as error:
        raise Broken(step, line.reason(error)) from None


def signed(node_key: bytes) -> tuple[bytes, dict[str, str]]:
    """Body and headers as Flower's node signs them; ``ActivateNodeRequest`` with a public key alone."""
    try:
        key = serialization.load_ssh_private_key(node_key, None)
    except (ValueError, TypeError):
        raise Broken("answer", "bad_key") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Broken("answer", "bad_key")
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    now = dt.datetime.now(tz=dt.UTC).isoformat()
    signature = key.sign(now.encode("ascii"), ec.ECDSA(hashes.SHA256()))
    headers = {
        "flwr-public-key": base64.b64encode(public).decode("ascii"),
        "flwr-timestamp": now,
        "flwr-signature": base64.b64encode(signature).decode("ascii"),
    }
    return _field(1, public), headers


def anything(size_bytes: int) -> bytes:
    """A message of about this size that says nothing: a field that no request has."""
    return _field(_UNKNOWN_FIELD, secrets.token_bytes(size_bytes))


def _field(number: int, content: bytes) -> bytes:
    """One length-delimited field of a protobuf message."""
    size, length = b"", len(content)
    while length > 0x7F:
        size += bytes([length & 0x7F | 0x80])
        length >>= 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + content
