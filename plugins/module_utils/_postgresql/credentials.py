# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The URL in an application's environment file that it logs in with. Its password never leaves this process."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import parse_qs, parse_qsl, quote, unquote, urlencode, urlsplit

from .._core.environment import value_of
from .errors import PostgresError
from .login import Login


class Url(NamedTuple):
    """A database URL (libpq, 34.1.1.2), taken apart."""

    login: Login
    database: str
    password: str


def moved_url(url: str, host: str, port: int) -> str:
    """Return a database URL that leads to a server at another address, and is else the same."""
    parts = urlsplit(url)
    account, at, _address = parts.netloc.rpartition("@")
    query = [(name, value) for name, value in parse_qsl(parts.query) if name not in ("host", "hostaddr", "port")]
    return parts._replace(netloc=f"{account}{at}{host}:{port}", query=urlencode(query, quote_via=quote)).geturl()


def read_url(content: bytes, variable: str, whose: str) -> Url:
    """Return the URL that an environment file sets. Raises :class:`PostgresError`, which never shows the value.

    :param whose: which file it is, for the message
    """
    value = value_of(content, variable)
    if value is None:
        raise PostgresError(f"{whose} does not set {variable}", todo="Correct url_variable in the description of the database")
    try:
        parts = urlsplit(value)
        port = parts.port or int(parse_qs(parts.query).get("port", ["0"])[-1])
        if "\0" in unquote(value):
            raise ValueError
    except ValueError:
        raise PostgresError(f"{variable} in {whose} is no URL", todo="Mend it there") from None
    # SQLAlchemy and others name the driver, too: postgresql+psycopg2.
    if parts.scheme.split("+")[0] not in ("postgresql", "postgres"):
        raise PostgresError(f"{variable} in {whose} is not the URL of a PostgreSQL database", todo="Correct the engine or url_variable")
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    login = Login(
        host=unquote(parts.hostname or "") or query.get("host", ""),
        port=port,
        user=unquote(parts.username or "") or query.get("user", ""),
        passfile=query.get("passfile", ""),
        service=query.get("service", ""),
    )
    return Url(login, unquote(parts.path[1:]) or query.get("dbname", ""), unquote(parts.password or "") or query.get("password", ""))
