# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""TLS with certificates that are right and wrong."""

from __future__ import annotations

import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any, Dict

import pytest

from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._health import lab

CONFIG = """
[req]
distinguished_name = name
prompt = no
[name]
CN = opskit test
[ca]
default_ca = authority
[authority]
dir = .
new_certs_dir = .
database = index
serial = serial
default_md = sha256
policy = anything
unique_subject = no
[anything]
commonName = supplied
[root]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
authorityKeyIdentifier = keyid
subjectKeyIdentifier = hash
subjectAltName = DNS:app.example.com, IP:127.0.0.1
"""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an authority, certificates that it signed, and one that signed itself."""
    folder = tmp_path_factory.mktemp("tls")
    (folder / "openssl.cnf").write_text(CONFIG)
    (folder / "index").write_text("")
    (folder / "serial").write_text("01\n")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, stdin=subprocess.DEVNULL, capture_output=True)

    def request(name: str) -> None:
        new = "req -config openssl.cnf -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
        openssl(*new.split(), "-keyout", f"{name}.key", "-out", f"{name}.csr")

    def sign(name: str, extensions: str, start: str, end: str, *more: str) -> None:
        request(name)
        openssl(
            *("ca -config openssl.cnf -batch -notext -extensions".split()),
            *(extensions, "-startdate", start, "-enddate", end, "-in", f"{name}.csr", "-out", f"{name}.pem", *more),
        )

    past, now, future, end = "20200101000000Z", "20240101000000Z", "20980101000000Z", "20990101000000Z"
    sign("root", "root", past, end, "-selfsign", "-keyfile", "root.key")
    by_root = ("-cert", "root.pem", "-keyfile", "root.key")
    sign("good", "leaf", now, end, *by_root)
    sign("expired", "leaf", past, "20210101000000Z", *by_root)
    sign("early", "leaf", future, end, *by_root)
    sign("self", "leaf", now, end, "-selfsign", "-keyfile", "self.key")
    return folder


def tls_server(folder: Path, name: str) -> lab.Server:
    """Return a server that presents this certificate; requests holds the server names that were asked for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(str(folder / f"{name}.pem"), str(folder / f"{name}.key"))

    def note(_connection: ssl.SSLObject, server_name: Any, _context: ssl.SSLContext) -> None:
        server.requests.append(str(server_name).encode())

    context.sni_callback = note

    def handle(connection: socket.socket, _number: int) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            lab.read_request(secured)
            secured.sendall(lab.reply(b"ok"))

    server = lab.Server(handle)
    return server


def look(server: lab.Server, **options: Any) -> Dict[str, Any]:
    """Ask a server that is known as app.example.com."""
    return lab.look(
        **{"type": "http", "url": f"https://app.example.com:{server.port}/", "connect_to": f"127.0.0.1:{server.port}", **options}
    )


def test_good_certificate(certificates: Path) -> None:
    with tls_server(certificates, "good") as server:
        row = look(server, ca_file=str(certificates / "root.pem"))
        by_address = lab.look(type="http", url=f"https://127.0.0.1:{server.port}/", ca_file=str(certificates / "root.pem"))
    assert (row["status"], by_address["status"]) == ("pass", "pass")
    assert row["observed"]["tls_version"] == "TLSv1.3"
    assert row["observed"]["certificate_not_after"] == "Jan  1 00:00:00 2099 GMT"
    assert "tls" in row["phases_ms"]
    assert server.requests[0] == b"app.example.com"


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("expired", {}, "tls_expired"),
        ("early", {}, "tls_not_yet_valid"),
        ("good", {"url": "https://other.example.com/"}, "tls_hostname"),
        ("good", {"server_name": "other.example.com"}, "tls_hostname"),
        ("good", {"ca_file": "self.pem"}, "tls_unknown_ca"),
        ("self", {}, "tls_self_signed"),
    ],
)
def test_bad_certificate(certificates: Path, name: str, options: Dict[str, Any], reason: str) -> None:
    given = {"ca_file": "root.pem", **options}
    given["ca_file"] = str(certificates / given["ca_file"])
    with tls_server(certificates, name) as server:
        row = look(server, **given)
        unchecked = look(server, **given, validate_certs=False)
    assert (row["status"], row["reason"]) == ("fail", reason)
    assert row["message"].startswith("the certificate is not accepted: ")
    assert unchecked["status"] == "pass"


def test_server_name_is_what_is_asked_for_and_looked_for(certificates: Path) -> None:
    with tls_server(certificates, "good") as server:
        row = look(server, url="https://old.example.com/", server_name="app.example.com", ca_file=str(certificates / "root.pem"))
    assert row["status"] == "pass"
    assert server.requests == [b"app.example.com"]


def test_the_system_does_not_know_the_authority(certificates: Path) -> None:
    with tls_server(certificates, "good") as server:
        assert look(server)["reason"] == "tls_unknown_ca"


def test_no_tls_at_the_other_end() -> None:
    with lab.says(lab.reply(b"", "400 Bad Request")) as server:
        assert look(server)["reason"] == "tls_handshake"
    with lab.Server(lab.silent) as server:
        row = look(server, timeout=0.3)
    assert row["reason"] == "tls_handshake"
    assert "within 0.3 s" in row["message"]


def test_http_to_a_port_that_speaks_tls(certificates: Path) -> None:
    with tls_server(certificates, "good") as server:
        assert lab.look(type="http", url=server.url())["reason"] in ("http_protocol", "connect_reset")
