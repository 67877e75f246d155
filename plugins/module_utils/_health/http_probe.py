# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One HTTP request, with assertions on the answer."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import stat
from contextlib import closing
from functools import partial
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, cast
from urllib.parse import urljoin, urlsplit

from .._core.errors import OpskitError
from .._core.redact import redact
from . import jsonpath
from .net import Endpoint, TimedSocket, TlsContexts, connect, endpoint
from .probe import Attempt, Outcome, Probe, ProbeFailure, clean, compile_regex, excerpt

_DEFAULT_PORTS = {"http": 80, "https": 443}
_SECRET_HEADERS = ("authorization", "proxy-authorization", "cookie")
_OWN_HEADERS = ("host", "connection", "content-length", "transfer-encoding", "accept-encoding")
# RFC 9110, 5.6.2 and RFC 6750, 2.1.
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BEARER = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_TOKEN_MIN, _TOKEN_MAX = 8, 65536


class Url(NamedTuple):
    """A checked address of http or https."""

    scheme: str
    to: Endpoint
    path: str
    """With the query, never empty."""

    @property
    def origin(self) -> Tuple[str, Endpoint]:
        """What must stay equal for a redirect to stay at home."""
        return self.scheme, self.to

    @property
    def authority(self) -> str:
        """The Host header."""
        if self.to.port == _DEFAULT_PORTS[self.scheme]:
            return str(self.to)[: -len(f":{self.to.port}")]
        return str(self.to)


def parse_url(text: str) -> Url:
    """Return the parts. Raises :class:`OpskitError` that never repeats a password."""
    shown = redact(text)
    if not text.isascii() or any(char <= " " or char == "\x7f" for char in text):
        raise OpskitError("a URL has no spaces, control or non-ASCII characters", shown, "Percent-encode them")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise OpskitError(f"this is no URL ({error})", shown, "Write it as http://host:port/path") from None
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise OpskitError("this is no http or https URL with a host", shown, "Write it as http://host:port/path")
    if "@" in parts.netloc:
        raise OpskitError(
            "a user or password in a URL would be seen in results, logs and the arguments of the task",
            f"{parts.scheme}://{parts.hostname}",
            "Take it out and use token_file",
        )
    to = endpoint(parts.hostname, _DEFAULT_PORTS[parts.scheme] if port is None else port, shown)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Url(parts.scheme, to, path)


class HttpProbe(Probe):
    """Asks one URL. Proxies from the environment are not used: the answer must come from the address that is meant."""

    timeout_reason = "http_timeout"

    def __init__(self, options: Dict[str, Any], contexts: TlsContexts) -> None:
        self._url = parse_url(options["url"])
        super().__init__(redact(options["url"]))
        self._method: str = options["method"]
        self._status: List[int] = options["status_code"]
        self._max_bytes: int = options["max_bytes"]
        self._max_redirects: int = options["max_redirects"]
        self._server_name: Optional[str] = options["server_name"]
        self._host_header: Optional[str] = options["host_header"]
        self._connect_to = _connect_to(options["connect_to"])
        self._headers = _headers(options["headers"])
        if options["host_header"] is not None:
            _check_header("host_header", options["host_header"])
        if self._max_bytes < 1024 or self._max_redirects < 0:
            raise OpskitError("a limit is too small", self.target, "Set max_bytes to 1024 or more, max_redirects to 0 or more")
        if not self._status or not all(100 <= code <= 599 for code in self._status):
            raise OpskitError("status_code has to name codes from 100 to 599", self.target, "Correct status_code")
        self._tls = partial(contexts.get, options["validate_certs"], options["ca_file"])
        # A redirect may lead to https, and a bad ca_file is refused now.
        if self._url.scheme == "https" or self._max_redirects or options["ca_file"] is not None:
            self._tls()
        if options["token_file"] is not None:
            token = read_token(options["token_file"])
            self.secrets.append(token)
            self._headers["Authorization"] = f"Bearer {token}"
        self.expected["status_code"] = self._status
        self._body = None
        if options["body_regex"] is not None:
            self._body = compile_regex(options["body_regex"], self.target)
            self.expected["body_regex"] = options["body_regex"]
        self._json = [_condition(item, self.target) for item in options["json"] or []]
        if self._json:
            self.expected["json"] = [condition._asdict() for condition in self._json]
        if self._method == "HEAD" and (self._body or self._json):
            raise OpskitError("an answer to HEAD has no body to look at", self.target, "Use GET")

    def ask(self, attempt: Attempt) -> Outcome:
        """Send the request and judge the answer."""
        observed: Dict[str, Any] = {}
        url = self._url
        for left in range(self._max_redirects, -1, -1):
            status, location, body, whole = self._exchange(url, attempt, observed)
            if status in self._status or status not in (301, 302, 303, 307, 308) or not location:
                break
            # The query of a redirect often carries a state or a ticket.
            observed["location"] = excerpt(location.split("?")[0], self.secrets)
            if left == 0:
                raise ProbeFailure("redirect", f"status {status} leads to {observed['location']}", observed, answered=True)
            try:
                url = parse_url(urljoin(f"{url.scheme}://{url.authority}{url.path}", location))
            except OpskitError as error:
                raise ProbeFailure("redirect", f"status {status} leads nowhere: {error.what}", observed, answered=True) from None
        text = body.decode("utf-8", errors="replace")
        if status not in self._status:
            observed["body"] = excerpt(text, self.secrets)
            wanted = ", ".join(str(code) for code in self._status)
            raise ProbeFailure("http_status", f"status {status}, expected {wanted}", observed, answered=True)
        self._judge_body(body, text, whole, observed)
        return Outcome("pass", observed=observed, answered=True)

    def _judge_body(self, body: bytes, text: str, whole: bool, observed: Dict[str, Any]) -> None:
        cut = "" if whole else f" in the first {self._max_bytes} bytes"
        if self._body is not None and not self._body.search(text):
            observed["body"] = excerpt(text, self.secrets)
            raise ProbeFailure("body_mismatch", f"the body does not match body_regex{cut}", observed, answered=True)
        if not self._json:
            return
        try:
            if not whole:
                raise ValueError(f"it is larger than max_bytes, {self._max_bytes}")
            document = json.loads(body.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            observed["body"] = excerpt(text, self.secrets)
            raise ProbeFailure("json_mismatch", f"the body is not JSON: {excerpt(str(error))}", observed, answered=True) from None
        failures = [excerpt(failure, self.secrets) for failure in (item.failure(document) for item in self._json) if failure]
        if failures:
            observed["json"] = failures
            raise ProbeFailure("json_mismatch", failures[0], observed, answered=True)

    def _exchange(self, url: Url, attempt: Attempt, observed: Dict[str, Any]) -> Tuple[int, Optional[str], bytes, bool]:
        home = url.origin == self._url.origin
        sock = connect((self._connect_to if home else None) or url.to, attempt)
        with closing(sock):
            if url.scheme == "https":
                with attempt.timed("tls"):
                    sock.settimeout(attempt.remaining())
                    secured = self._tls().wrap_socket(sock, server_hostname=(self._server_name if home else None) or url.to.host)
                sock = secured
                observed["tls_version"] = secured.version()
                certificate = secured.getpeercert()
                if certificate:
                    observed["certificate_not_after"] = certificate["notAfter"]
            with closing(sock):
                try:
                    return self._talk(url, home, TimedSocket(sock, attempt), attempt, observed)
                except ConnectionError:
                    raise
                except http.client.HTTPException as error:
                    words = excerpt(f"{type(error).__name__} {error}", self.secrets)
                    raise ProbeFailure("http_protocol", f"the answer is not HTTP: {words}", observed) from None

    def _talk(
        self, url: Url, home: bool, sock: TimedSocket, attempt: Attempt, observed: Dict[str, Any]
    ) -> Tuple[int, Optional[str], bytes, bool]:
        connection = http.client.HTTPConnection(url.to.host, url.to.port)
        connection.auto_open = 0
        connection.sock = cast(socket.socket, sock)
        with attempt.timed("ttfb"):
            connection.putrequest(self._method, url.path, skip_host=True, skip_accept_encoding=True)
            connection.putheader("Host", (self._host_header if home else None) or url.authority)
            connection.putheader("Connection", "close")
            if not any(name.lower() == "user-agent" for name in self._headers):
                connection.putheader("User-Agent", "opskit-health-check")
            for name, value in self._headers.items():
                # A credential is for the host that it was given for.
                if home or name != "Authorization":
                    connection.putheader(name, value)
            connection.endheaders()
            response = connection.getresponse()
        observed["status_code"] = response.status
        with closing(response), attempt.timed("transfer"):
            body = b""
            while len(body) <= self._max_bytes:
                piece = response.read(min(65536, self._max_bytes + 1 - len(body)))
                if not piece:
                    break
                body += piece
        whole = len(body) <= self._max_bytes
        if whole and self._method != "HEAD" and response.length:
            raise ProbeFailure("http_protocol", f"the body ended {response.length} bytes early", observed)
        return response.status, response.getheader("Location"), body[: self._max_bytes], whole


def read_token(path: str) -> str:
    """Return the bearer token in a file. Raises :class:`OpskitError` that never shows it."""
    try:
        with open(path, "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise OpskitError("this is not a regular file", path, "Set token_file to a file with the token alone")
            data = stream.read(_TOKEN_MAX + 1)
    except OSError as error:
        raise OpskitError(f"the token can't be read: {error.strerror}", path, "Correct token_file or its rights") from None
    token = data.decode("latin-1").strip()
    if not _TOKEN_MIN <= len(token) <= _TOKEN_MAX or not _BEARER.fullmatch(token):
        # One that is shorter could not be taken out of results without taking out ordinary words.
        raise OpskitError(
            f"this holds no bearer token of {_TOKEN_MIN} characters or more",
            path,
            "Put the token alone into the file, without the word Bearer",
        )
    return token


def _connect_to(text: Optional[str]) -> Optional[Endpoint]:
    if text is None:
        return None
    match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:]+)):([0-9]+)", text)
    if match is None:
        raise OpskitError("connect_to is not HOST:PORT", text, "Write it as 127.0.0.1:8001 or [::1]:8001")
    return endpoint(match.group(1) or match.group(2), int(match.group(3)), text)


def _headers(given: Optional[Dict[str, Any]]) -> Dict[str, str]:
    headers = {}
    for name, value in (given or {}).items():
        if name.lower() in _SECRET_HEADERS:
            raise OpskitError(
                f"the header {name} holds a secret that would be seen in the arguments of the task",
                "headers",
                "Take it out and use token_file",
            )
        if name.lower() in _OWN_HEADERS:
            raise OpskitError(f"the header {name} is set by the probe", "headers", "Use host_header for Host; leave out others")
        _check_header(name, str(value))
        headers[name] = str(value)
    return headers


def _check_header(name: str, value: str) -> None:
    if not _HEADER_NAME.fullmatch(name) or not value.isascii() or not value.isprintable():
        raise OpskitError(f"the header {clean(name)} has characters that a header can't have", "headers", "Use printable ASCII characters")


def _condition(item: Dict[str, Any], where: str) -> jsonpath.Condition:
    jsonpath.parse(item["path"])
    op, value = item["op"], item["value"]
    if (value is None) and op not in ("exists", "eq", "ne"):
        raise OpskitError(f"{op} needs a value to compare with", f"{where} {item['path']}", "Set value")
    return jsonpath.Condition(item["path"], op, value)
