"""The coordinator's CA and certificate: what Python's own TLS accepts and refuses."""

import datetime
import shutil
import socket
import ssl
import stat
import threading

import pytest
from cryptography import x509

from oncofed_common.errors import SystemRefusal
from oncofed_server.certificates import make_certificates

NOW = datetime.datetime.now(datetime.UTC)


def made(folder, *names, now=NOW):
    make_certificates(folder, names=names, now=now)
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


def server_of(folder):
    return (folder / "server.pem").read_bytes()


def test_certificates_stay_as_they_are_while_they_serve(tmp_path):
    before = {path.name: path.read_bytes() for path in made(tmp_path, "a.example.org").iterdir()}
    make_certificates(tmp_path, names=["a.example.org"], now=NOW + datetime.timedelta(days=330))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "why", ["it ends soon", "another name", "no key", "another key", "damaged"]
)
def test_the_server_certificate_is_renewed_under_the_same_authority(tmp_path, why):
    """A site that pinned the CA once goes on."""
    site, name = tmp_path / "site", "a.example.org"
    age = datetime.timedelta(days=338 if why == "it ends soon" else 0)
    folder = made(tmp_path / "tls", name, now=NOW - age)
    site.mkdir()
    (site / "ca.pem").write_bytes((folder / "ca.pem").read_bytes())
    before = server_of(folder)
    if why == "another name":
        name = "b.example.org"
    elif why == "no key":
        (folder / "server.key").unlink()
    elif why == "another key":
        shutil.copy(made(tmp_path / "other", name) / "server.key", folder / "server.key")
    elif why == "damaged":
        (folder / "server.pem").write_bytes(before[:-40])
    make_certificates(folder, names=[name], now=NOW)
    assert server_of(folder) != before
    assert handshake(folder, site, name) in ("TLSv1.2", "TLSv1.3")
    assert stat.S_IMODE((folder / "server.key").stat().st_mode) == 0o600


def test_a_lost_authority_is_not_made_anew_behind_the_sites_backs(tmp_path):
    folder = made(tmp_path, "a.example.org")
    (folder / "ca.key").unlink()
    before = server_of(folder)
    make_certificates(folder, names=["a.example.org"], now=NOW)  # nothing is due
    with pytest.raises(SystemRefusal) as refused:
        make_certificates(folder, names=["b.example.org"], now=NOW)
    assert refused.value.code == "no_ca"
    assert server_of(folder) == before
