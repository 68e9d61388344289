"""The coordinator's CA and certificate: what Python's own TLS accepts and refuses."""

import datetime
import socket
import ssl
import stat
import threading

import pytest
from cryptography import x509

from oncofed_server.certificates import make_certificates

NOW = datetime.datetime.now(datetime.UTC)


def made(folder, *names):
    make_certificates(folder, names=names, now=NOW)
    return folder


def handshake(server_folder, ca_folder, name):
    """What a client that trusts ``ca_folder`` alone thinks of the server when it calls it ``name``."""
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(server_folder / "server.pem", server_folder / "server.key")
    ours = ssl.create_default_context(cafile=str(ca_folder / "ca.pem"))
    near, far = socket.socketpair()

    def serve():
        try:
            theirs.wrap_socket(far, server_side=True).close()
        except (ssl.SSLError, OSError):
            far.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with near, ours.wrap_socket(near, server_hostname=name) as line:
            return line.version()
    finally:
        thread.join()


@pytest.mark.parametrize("name", ["federation.example.org", "192.0.2.7", "127.0.0.1", "localhost"])
def test_every_name_a_site_may_use_and_loopback_are_accepted(tmp_path, name):
    folder = made(tmp_path, "federation.example.org", "192.0.2.7")
    assert handshake(folder, folder, name) in ("TLSv1.2", "TLSv1.3")


def test_another_name_and_another_authority_are_refused(tmp_path):
    ours, others = made(tmp_path / "a", "a.example.org"), made(tmp_path / "b", "a.example.org")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(ours, ours, "b.example.org")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(ours, others, "a.example.org")


def test_the_server_certificate_cannot_sign_others_and_keys_are_private(tmp_path):
    folder = made(tmp_path / "tls")
    certificate = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes())
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert certificate.not_valid_after_utc - NOW <= datetime.timedelta(days=398)
    for name in ("ca.key", "server.key"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_certificates_are_made_once(tmp_path):
    before = (made(tmp_path, "a.example.org") / "ca.pem").read_bytes()
    assert (made(tmp_path, "b.example.org") / "ca.pem").read_bytes() == before
