# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names, connections and TLS, each within the time of its attempt, and what it means when they fail."""

from __future__ import annotations

import errno
import io
import socket
import ssl
import threading
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

from .._core.errors import OpskitError
from .probe import FAIL, UNKNOWN, Attempt, Outcome, Probe

# X509_V_ERR_* of OpenSSL's x509_vfy.h.
_VERIFY_REASONS = {
    9: "tls_not_yet_valid",
    10: "tls_expired",
    2: "tls_unknown_ca",
    18: "tls_self_signed",
    19: "tls_unknown_ca",
    20: "tls_unknown_ca",
    21: "tls_unknown_ca",
    62: "tls_hostname",
    64: "tls_hostname",
}
_TIMEOUT_REASONS = {"dns": "dns_timeout", "connect": "connect_timeout", "tls": "tls_handshake"}
_NO_ROUTE = (
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.EHOSTDOWN,
    errno.EADDRNOTAVAIL,
    errno.EACCES,
    errno.EPERM,
)
_AddressInfo = Tuple[int, int, int, str, Any]


class Endpoint(NamedTuple):
    """A host and a port."""

    host: str
    """Without brackets."""
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def endpoint(host: str, port: int, where: str) -> Endpoint:
    """Return a checked endpoint; a name outside ASCII is written as DNS has it. Raises :class:`OpskitError`."""
    if not 1 <= port <= 65535:
        raise OpskitError(f"{port} is not a port", where, "Give a port from 1 to 65535")
    try:
        # Also refuses empty labels and labels longer than 63 characters; an address passes as it is.
        name = host.encode("idna").decode("ascii")
    except UnicodeError:
        name = ""
    if not name or any(char.isspace() or char in "/@?#[]" for char in name):
        raise OpskitError("this is no host name or address", where, "Give a name or an address as host")
    return Endpoint(name, port)


class _Lookup(threading.Thread):
    """One question to the resolver, in a thread of its own because getaddrinfo(3) knows no timeout."""

    def __init__(self, host: str) -> None:
        super().__init__(daemon=True)
        self._host = host
        self._done = threading.Event()
        self._found: List[_AddressInfo] = []
        self._error: Optional[Exception] = None

    def run(self) -> None:
        try:
            self._found = list(socket.getaddrinfo(self._host, None, type=socket.SOCK_STREAM))
        except Exception as error:  # handed on to whoever waits
            self._error = error
        self._done.set()

    def result(self, wait_s: float) -> List[_AddressInfo]:
        if not self._done.wait(wait_s):
            raise TimeoutError
        if self._error is not None:
            raise self._error
        return self._found


_lookups: Dict[str, _Lookup] = {}
_lookups_lock = threading.Lock()


def resolve(host: str, attempt: Attempt) -> List[_AddressInfo]:
    """Return what getaddrinfo(3) finds now. Raises :class:`TimeoutError` when that takes longer than the attempt has.

    A question that still hangs is waited for again instead of asked again, so a dead resolver holds one thread for a name.
    """
    with _lookups_lock:
        lookup = _lookups.get(host)
        if lookup is None or not lookup.is_alive():
            lookup = _lookups[host] = _Lookup(host)
            lookup.start()
    return lookup.result(attempt.remaining())


def connect(to: Endpoint, attempt: Attempt) -> socket.socket:
    """Return a connection to the first address that takes it; every address gets its share of the time that is left."""
    with attempt.timed("dns"):
        found = resolve(to.host, attempt)
    with attempt.timed("connect"):
        problem: Optional[OSError] = None
        for number, (family, kind, protocol, _name, address) in enumerate(found):
            attempt.address = str(Endpoint(address[0], to.port))
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(attempt.remaining() / (len(found) - number))
                sock.connect((address[0], to.port) + tuple(address[2:]))
                return sock
            except OSError as error:
                sock.close()
                problem = error
        raise problem or OSError(errno.EADDRNOTAVAIL, "the name has no address")


class TimedSocket:
    """As much of a socket as http.client needs; every call gets only the time that is left, so a slow drip ends as well."""

    def __init__(self, sock: Union[socket.socket, ssl.SSLSocket], attempt: Attempt) -> None:
        self._sock = sock
        self._attempt = attempt

    def sendall(self, data: bytes) -> None:
        """Send everything."""
        self._sock.settimeout(self._attempt.remaining())
        self._sock.sendall(data)

    def recv(self, count: int) -> bytes:
        """Return up to count bytes; none at the end of the stream."""
        self._sock.settimeout(self._attempt.remaining())
        return self._sock.recv(count)

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return a stream that reads from here."""
        return io.BufferedReader(_Reader(self))

    def close(self) -> None:
        """Do nothing: http.client closes before the body is read and counts on a socket that defers it; the owner closes."""


class _Reader(io.RawIOBase):
    def __init__(self, sock: TimedSocket) -> None:
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._sock.recv(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class TlsContexts:
    """TLS settings; reading the authorities of the system takes time, so equal settings are made once."""

    def __init__(self) -> None:
        self._made: Dict[Tuple[bool, Optional[str]], ssl.SSLContext] = {}

    def get(self, validate: bool, ca_file: Optional[str]) -> ssl.SSLContext:
        """Return the settings. Raises :class:`OpskitError` when the file has no certificates."""
        if (validate, ca_file) not in self._made:
            try:
                context = ssl.create_default_context(cafile=ca_file)
            except OSError as error:
                raise OpskitError(
                    f"certificates can't be read from this file ({error.strerror or error})",
                    ca_file or "",
                    "Set ca_file to a readable file of PEM certificates",
                ) from None
            if not validate:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            self._made[(validate, ca_file)] = context
        return self._made[(validate, ca_file)]


def explain(error: Exception, attempt: Attempt, probe: Probe) -> Union[Outcome, Exception]:
    """Return the outcome that an error of a probe stands for, or the error itself where it is a mistake of ours."""
    at = f" to {attempt.address}" if attempt.address else ""
    if isinstance(error, (TimeoutError, socket.timeout)):
        reason = _TIMEOUT_REASONS.get(attempt.phase, probe.timeout_reason)
        return Outcome(FAIL, reason, f"not done within {attempt.timeout_s:g} s, it was at: {attempt.phase}")
    if isinstance(error, socket.gaierror):
        if error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)):
            return Outcome(FAIL, "dns_nxdomain", "the name has no address")
        return Outcome(FAIL, "dns_servfail", f"the name can't be looked up: {error.strerror}")
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = _VERIFY_REASONS.get(error.verify_code, "tls_handshake")
        return Outcome(FAIL, reason, f"the certificate is not accepted: {error.verify_message}")
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)) and attempt.phase != "tls":
        return Outcome(FAIL, "connect_reset", f"the connection{at} was cut")
    if isinstance(error, ssl.SSLError):
        return Outcome(FAIL, "tls_handshake", f"no TLS connection{at}: {error.reason or error}")
    if isinstance(error, ConnectionRefusedError):
        return Outcome(FAIL, "connect_refused", f"the connection{at} is refused")
    if isinstance(error, ConnectionError):
        return Outcome(FAIL, "connect_reset", f"the connection{at} was closed without an answer")
    if isinstance(error, OSError):
        words = error.strerror or str(error)
        if attempt.phase == "connect" and error.errno in _NO_ROUTE:
            return Outcome(FAIL, "no_route", f"no way{at}: {words}")
        return Outcome(UNKNOWN, "probe_error", words)
    return error
