"""The doctor before the real SuperLink: it learns what it asks for, and leaves nothing behind there."""

from __future__ import annotations

import base64
import datetime as dt
import json

import pytest
from cryptography.hazmat.primitives import serialization
from doctor_inspection import inspector
from doctor_lab import HOST, NAMES, a_lab, codes
from doctor_servers import certificate_of, serving
from doctor_servers import superlink as stand_in
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.error.catalog import ApiErrorCode
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature

from oncofed_client.courier.node import make_node_key
from oncofed_client.courier.probe import Seen, probe
from oncofed_client.courier.question import KNOWN, UNKNOWN, anything, signed
from oncofed_client.doctor import answered
from oncofed_server import superlink

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A site, and the coordinator that it joined, as a real SuperLink."""
    root = tmp_path_factory.mktemp("superlink")
    with a_lab(root) as lab:
        home = root / "coordinator"
        home.mkdir()
        superlink.prepare(home, names=NAMES, now=dt.datetime.now(dt.UTC))
        running = superlink.start(
            home=home, host="127.0.0.1", port=None, within_s=PATIENCE_S,
            environment=superlink.link_environment(home),
        )  # fmt: skip
        lab.open.callback(running.stop, grace_s=0.0)
        pem = running.link.ca_path.read_text()
        (lab.home.courier / "ca.pem").write_text(pem)
        answer = json.loads((lab.home.root / "answer.json").read_text())
        answer |= {"ca_pem": pem, "address": f"127.0.0.1:{running.link.port}"}
        (lab.home.root / "answer.json").write_text(json.dumps(answer))
        yield lab, running


def seen_at(address, pem, key, *, upload_bytes=300_000) -> Seen:
    return probe(superlink=address, ca_pem=pem, node_key=key, proxy=None, upload_bytes=upload_bytes)


def asked_of(seen: Seen) -> dict[str, object]:
    return {"status": seen.status, "code": seen.code, "bytes": seen.upload_bytes, "step": seen.step}


@pytest.mark.slow
def test_a_clean_site_and_one_that_is_not_enrolled_yet(site):
    """The same site before and after the coordinator takes it in; neither makes it look online."""
    lab, running = site
    assert codes(lab.doctor()) == ["not_enrolled"]
    request = json.loads((lab.home.root / "enrolment.json").read_text())["request"]
    superlink.sync_nodes(running.link, {"north": request["node_key"]})
    found = [lab.doctor() for _ in range(3)]
    assert [(codes(one), codes(one, "warning")) for one in found] == 3 * [([], [])]
    assert min(one["predicted"]["line_s"] for one in found) < 10
    assert superlink.online_sites(running.link) == set()


@pytest.mark.slow
def test_the_stand_in_answers_as_superlink_does(site, tmp_path):
    """To a key that is enrolled, and to one that is not; to the question, and to an update of true size."""
    lab, running = site
    pem = (lab.home.courier / "ca.pem").read_text()
    known, line_of = make_node_key()
    superlink.sync_nodes(running.link, {"north": line_of})
    for key, is_known in ((known, True), (make_node_key()[0], False)):
        real = seen_at(f"127.0.0.1:{running.link.port}", pem, key)
        tls = certificate_of(running.link.home / "tls")
        with serving(stand_in(known=is_known), host=HOST, tls=tls) as port:
            ours = seen_at(f"{HOST}:{port}", pem, key)
        assert asked_of(ours) == asked_of(real)
        assert real.step == ""
        assert real.code == (KNOWN if is_known else UNKNOWN)
        assert abs(real.date_s - real.local_s) < 5
        assert real.upload_bytes >= 300_000


def test_nothing_is_said_to_who_shows_another_certificate(tmp_path):
    """TLS begins, the certificate is looked at, and not one byte of a request follows."""
    (tmp_path / "home").mkdir()
    heard = []

    async def listening(reader, writer):
        heard.append(await reader.read(2**16))

    with a_lab(tmp_path / "home") as lab:
        pem = (lab.home.courier / "ca.pem").read_text()
        with serving(listening, host=HOST, tls=inspector(tmp_path / "inspection")) as port:
            seen = seen_at(f"{HOST}:{port}", pem, make_node_key()[0])
    assert not seen.ours
    assert "Hospital Web Gateway CA" in seen.issuer
    assert set(heard) <= {b""}


def test_the_question_is_the_one_that_flowers_node_asks():
    """Its bytes, headers and signature, read by Flower itself; the heartbeat is out of bounds."""
    private, public = make_node_key()
    body, headers = signed(private)
    pem = serialization.load_ssh_public_key(public.encode()).public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert body == ActivateNodeRequest(public_key=pem).SerializeToString()
    assert ActivateNodeRequest.FromString(body).heartbeat_interval == 0
    assert set(headers) == {
        FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER, TIMESTAMP_HEADER,
    }  # fmt: skip
    at = headers[TIMESTAMP_HEADER]
    signature = base64.b64decode(headers[FLEET_HTTP_SIGNATURE_HEADER])
    assert verify_signature(bytes_to_public_key(pem), at.encode(), signature)


def test_an_update_of_true_size_is_a_message_that_says_nothing():
    """Flower reads it, finds no field that it knows, and so keeps nothing of it."""
    for size in (1, 127, 128, 70_000):
        message = PushObjectRequest.FromString(anything(size))
        assert (message.object_id, message.object_content, message.run_id) == ("", b"", 0)
        assert size <= len(anything(size)) <= size + 6
    assert anything(1000) != anything(1000)


def test_the_doctors_bounds_are_those_of_flower():
    """Codes and the window of a signature, as this version of Flower has them."""
    assert ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL == KNOWN
    assert ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED == UNKNOWN
    assert SYSTEM_TIME_TOLERANCE - 1 < answered.AHEAD_S < SYSTEM_TIME_TOLERANCE
    assert answered.BEHIND_S <= TIMESTAMP_TOLERANCE
