# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where things are below the application's root, and what `.env` and `config/gateway.toml` say."""

from __future__ import annotations

import json
import os
import re
import secrets
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway import GatewayError

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
FAULTS = {  # name -> highest value allowed; 0 is off
    "leak_bytes": 64 * 1024 * 1024,
    "slow_provider_seconds": 600.0,
    "hold_lock_seconds": 600.0,
    "error_rate": 1.0,
}
LIMITS = {
    "upload_max_bytes": 64 * 1024 * 1024,
    "request_max_bytes": 1024 * 1024,
    "write_wait_seconds": 30,
    "pause_max_seconds": 600,
    "provider_timeout_seconds": 60,
    "stop_grace_seconds": 10,
}
DATABASE_URL = "sqlite:///data/gateway.db"
PROVIDER_DEFAULTS: dict[str, Any] = {"kind": "fake", "chunk_seconds": 0}

CONFIG_TEMPLATE = (
    "# Limits of one request, in bytes and seconds.\n[limits]\n"
    + "".join(f"{name} = {value}\n" for name, value in LIMITS.items())
    + """
# Providers that the database does not know yet are added to it when the server starts; from then on the
# database holds their settings. api_key_env names the line of .env that holds the key.
[[providers]]
name = "fake"
kind = "fake"
models = ["fake-small", "fake-large-think"]
api_key_env = "FAKE_API_KEY"
chunk_seconds = 0.0
"""
)


@dataclass(frozen=True)
class Layout:
    root: Path

    @property
    def env(self) -> Path:
        return self.root / ".env"

    @property
    def config(self) -> Path:
        return self.root / "config" / "gateway.toml"

    @property
    def projects(self) -> Path:
        return self.root / "projects"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def uploads(self) -> Path:
        return self.data / "uploads"

    @property
    def cache(self) -> Path:
        return self.data / "cache"

    @property
    def logs(self) -> Path:
        return self.data / "logs"

    @property
    def run(self) -> Path:
        return self.data / "run"

    def make_folders(self) -> None:
        """Create what may be missing. The database is never created here."""
        for folder in (self.config.parent, self.projects, self.uploads, self.cache, self.logs, self.run):
            folder.mkdir(mode=0o750, parents=True, exist_ok=True)


@dataclass(frozen=True)
class Settings:
    layout: Layout
    host: str
    port: int
    url: str  # of the database, as it was written
    secret_key: str
    admin_token: str
    log_level: str
    faults: dict[str, float]
    limits: dict[str, int]
    providers: list[dict[str, Any]]  # name, api_key, settings

    @cached_property
    def database(self) -> URL:
        """Where the database is; of SQLite with an absolute path."""
        return database_url(self.layout, self.url)


def read_env(path: Path) -> dict[str, str]:
    """Read `KEY=value` lines; blank lines and `#` comments are skipped, one pair of quotes is removed."""
    try:
        if path.stat().st_mode & 0o007:
            raise GatewayError(f"{path} holds secrets and is open to every user: chmod o= {path}")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise GatewayError(f"{path} is missing: create the application with `init`, or restore it") from None
    except (OSError, UnicodeDecodeError) as exc:
        raise GatewayError(f"{path} cannot be read: {exc}") from None
    values: dict[str, str] = {}
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        key, equals, value = line.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            raise GatewayError(f"{path} line {number} is not KEY=value")  # not quoted: it may be a secret
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        values[key] = value
    return values


def log_level(env: dict[str, str], path: Path) -> str:
    level = env.get("LOG_LEVEL", "INFO").upper()
    if level not in LOG_LEVELS:
        raise GatewayError(f"{path}: LOG_LEVEL must be one of {', '.join(LOG_LEVELS)}, not {level!r}")
    return level


def check_faults(values: dict[str, Any], where: str) -> dict[str, float]:
    """Validate fault switches by name; unknown names and values out of range are refused."""
    faults: dict[str, float] = {}
    for name, value in values.items():
        if name not in FAULTS:
            raise GatewayError(f"{where}: unknown fault {name!r}, known are {', '.join(FAULTS)}")
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = -1.0
        if not 0 <= number <= FAULTS[name]:
            raise GatewayError(f"{where}: fault {name} must be a number from 0 to {FAULTS[name]:g}")
        faults[name] = number
    return faults


def database_url(layout: Layout, text: str) -> URL:
    """Check DATABASE_URL; the path of an SQLite file is made absolute. No message quotes it: it may hold a password."""
    # Who pauses or resumes writes waits for every import, and needs no database.
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    where = f"{layout.env}: DATABASE_URL"
    if text.count("@") > 1:  # otherwise a part of the password would be taken for the host, and be shown
        raise GatewayError(f"{where} has more than one @: write those of the user and the password as %40")
    try:
        parsed = make_url(text)
    except (ArgumentError, ValueError):
        raise GatewayError(f"{where} is not a database URL") from None
    if parsed.drivername == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise GatewayError(f"{where} names no file")
        return parsed.set(database=str(layout.root / parsed.database))
    if parsed.drivername not in ("postgresql", "postgresql+psycopg2"):
        raise GatewayError(f"{where} must be sqlite:///<path> or postgresql+psycopg2://..., not {parsed.drivername}://")
    if not parsed.database:
        raise GatewayError(f"{where} names no database")
    return parsed.set(drivername="postgresql+psycopg2")


def load(root: Path) -> Settings:
    layout = Layout(root)
    env = read_env(layout.env)
    for key in ("APP_SECRET_KEY", "ADMIN_TOKEN"):
        if len(env.get(key, "")) < 16:
            raise GatewayError(f"{layout.env}: {key} is missing or shorter than 16 characters")
    try:
        port = int(env.get("GATEWAY_PORT", "8080"))
    except ValueError:
        port = -1
    if not 0 <= port <= 65535:
        raise GatewayError(f"{layout.env}: GATEWAY_PORT must be a number from 0 to 65535")
    faults = {key[6:].lower(): value for key, value in env.items() if key.startswith("FAULT_")}
    limits, providers = read_config(layout.config, env)
    return Settings(
        layout=layout,
        host=env.get("GATEWAY_HOST", "127.0.0.1"),
        port=port,
        url=env.get("DATABASE_URL", DATABASE_URL),
        secret_key=env["APP_SECRET_KEY"],
        admin_token=env["ADMIN_TOKEN"],
        log_level=log_level(env, layout.env),
        faults=dict.fromkeys(FAULTS, 0.0) | check_faults(faults, str(layout.env)),
        limits=limits,
        providers=providers,
    )


def read_config(path: Path, env: dict[str, str]) -> tuple[dict[str, int], list[dict[str, Any]]]:
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GatewayError(f"{path} is missing: restore it, or copy it from a new application (`init`)") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise GatewayError(f"{path} cannot be read: {exc}") from None
    limits = config.get("limits", {})
    for name, value in limits.items() if isinstance(limits, dict) else [("limits", limits)]:
        if name not in LIMITS or not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise GatewayError(f"{path}: limit {name} must be one of {', '.join(LIMITS)}, a whole number from 1")
    listed = config.get("providers", [])
    providers = []
    for entry in listed if isinstance(listed, list) else [listed]:
        settings: dict[str, Any] = PROVIDER_DEFAULTS | entry if isinstance(entry, dict) else {}
        name, key_name = settings.pop("name", None), settings.pop("api_key_env", None)
        models, delay = settings.get("models"), settings.get("chunk_seconds")
        if (
            not isinstance(name, str)
            or settings.get("kind") != "fake"
            or not isinstance(models, list)
            or not models
            or not all(isinstance(model, str) for model in models)
            or not isinstance(delay, (int, float))
        ):
            raise GatewayError(f'{path}: a provider needs name, kind = "fake" and a list of models')
        providers.append({"name": name, "api_key": env.get(key_name or ""), "settings": settings})
    return LIMITS | limits, providers


def refuse_existing(layout: Layout) -> None:
    for path in (layout.env, layout.config, layout.data / "gateway.db"):
        if path.exists():
            raise GatewayError(f"{path} exists: there is an application already, nothing was changed")


def create(layout: Layout, host: str, port: int, url: str) -> None:
    """Write a new application's folders, configuration and `.env` (0600, random secrets)."""
    try:
        layout.make_folders()
        layout.config.write_text(CONFIG_TEMPLATE, encoding="utf-8")
        lines = [
            f"GATEWAY_HOST={host}",
            f"GATEWAY_PORT={port}",
            f"DATABASE_URL={url}",
            f"APP_SECRET_KEY={secrets.token_urlsafe(32)}",
            f"ADMIN_TOKEN={secrets.token_urlsafe(32)}",
            f"FAKE_API_KEY=sk-fake-{secrets.token_hex(16)}",
            "LOG_LEVEL=INFO",
            "# Faults for exercises, off at 0; see README.md",
            *(f"FAULT_{name.upper()}=0" for name in FAULTS),
        ]
        descriptor = os.open(layout.env, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as stream:
            stream.write("\n".join(lines) + "\n")
    except OSError as exc:
        raise GatewayError(f"the application cannot be created: {exc}") from None


def canonical(value: Any) -> bytes:
    """One JSON spelling of a value, for hashing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
