# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The HTTP application: endpoints, readiness, and what is measured and logged about each request."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from datetime import UTC
from pathlib import Path
from typing import IO, Any

import sqlalchemy as sa
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy.engine import Connection
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from gateway import GatewayError, __version__, logs, metrics, provider
from gateway.database import Database, now, projects, providers, reason, sign, uploads, upsert, usage, user_preferences, users
from gateway.faults import Faults
from gateway.settings import Settings, check_faults
from gateway.writes import PauseFailed, WriteGate, WritesPaused

DRAIN_SECONDS = 10.0
CHUNK = 1024 * 1024
SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
NAME = re.compile(r"[^\W_][\w.@ -]{0,127}")  # of users and files; letters of any language, no separators
NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")  # in JSON; PostgreSQL's text cannot hold it
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")


class Gateway:
    """The endpoints and what they share."""

    def __init__(self, settings: Settings, database: Database, colour: str) -> None:
        self.settings, self.database, self.colour = settings, database, colour
        self.layout, self.limits = settings.layout, settings.limits
        self.faults = Faults(database, settings.faults)
        self.gate = WriteGate(self.limits["write_wait_seconds"])
        self.headers = [(b"x-gateway-version", __version__.encode()), (b"x-gateway-colour", colour.encode())]
        metrics.BUILD.labels(__version__, colour).set(1)
        metrics.RuntimeCollector(self._pool, lambda: {k: not v for k, v in self._checks().items()})

    def routes(self) -> list[Route | WebSocketRoute]:
        table: list[tuple[str, str, Callable[..., Any]]] = [
            ("GET", "/healthz", self.healthz),
            ("GET", "/readyz", self.readyz),
            ("GET", "/metrics", self.metrics),
            ("GET", "/api/projects", self.list_projects),
            ("POST", "/api/projects", self.create_project),
            ("GET", "/api/projects/{slug}", self.get_project),
            ("DELETE", "/api/projects/{slug}", self.delete_project),
            ("GET", "/api/projects/{slug}/files/{name}", self.get_file),
            ("PUT", "/api/projects/{slug}/files/{name}", self.put_file),
            ("GET", "/api/uploads/{name}", self.get_file),
            ("PUT", "/api/uploads/{name}", self.put_file),
            ("GET", "/api/users/{name}/preferences", self.get_preferences),
            ("PUT", "/api/users/{name}/preferences", self.put_preferences),
            ("GET", "/api/providers", self.list_providers),
            ("POST", "/api/chat", self.chat),
            ("GET", "/api/chat/stream", self.chat_stream),
            ("GET", "/admin/writes", self.writes),
            ("POST", "/admin/writes/pause", self.pause_writes),
            ("POST", "/admin/writes/resume", self.resume_writes),
            ("GET", "/admin/faults", self.get_faults),
            ("POST", "/admin/faults", self.set_faults),
        ]
        return [Route(path, endpoint, methods=[method]) for method, path, endpoint in table] + [
            WebSocketRoute("/ws/chat", self.chat_websocket)
        ]

    # -- health -----------------------------------------------------------------------------------------------

    async def healthz(self, request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def readyz(self, request: Request) -> Response:
        checks = await run_in_threadpool(self._checks)
        ready = not any(checks.values())
        body = {
            "ready": ready,
            "version": __version__,
            "colour": self.colour,
            "checks": {name: reason or "ok" for name, reason in checks.items()},
        }
        return JSONResponse(body, 200 if ready else 503)

    def _checks(self) -> dict[str, str]:
        """Each readiness check with the reason why it fails, "" where it passes."""
        checks = dict.fromkeys(("database", "schema", "providers"), "not checked: the database cannot be read")
        try:
            if self.database.replaced():
                checks["database"] = f"{self.database.name} was removed or replaced under the server: restart it"
                return checks
            with self.database.engine.begin() as connection:
                count = connection.execute(sa.select(sa.func.count()).select_from(providers)).scalar()
            checks["database"] = ""
            checks["providers"] = "" if count else "no provider is known: add one to config/gateway.toml and restart"
            self.database.check_schema()
            checks["schema"] = ""
        except GatewayError as exc:
            checks["schema"] = str(exc)
        except (sa.exc.SQLAlchemyError, OSError) as exc:
            failed = "schema" if checks["database"] == "" else "database"
            checks[failed] = f"{self.database.name} cannot be read: {reason(exc)}"
        return checks

    def _pool(self) -> dict[str, int]:
        pool: Any = self.database.engine.pool
        return {"used": pool.checkedout(), "idle": pool.checkedin()}

    async def metrics(self, request: Request) -> Response:
        if not _is_loopback(request):
            self._require_token(request)
        return Response(await run_in_threadpool(generate_latest), headers={"content-type": CONTENT_TYPE_LATEST})

    # -- projects and files -----------------------------------------------------------------------------------

    async def list_projects(self, request: Request) -> Response:
        """Projects by slug, `limit` (1 to 1000) a page; `next` is the `after` of the next page."""
        text = request.query_params.get("limit", "100")
        limit = int(text) if text.isascii() and text.isdigit() and len(text) < 5 else 0
        if not 1 <= limit <= 1000:
            raise HTTPException(400, "limit must be a number from 1 to 1000")

        def query() -> list[dict[str, Any]]:
            select = _project_select().order_by(projects.c.slug).limit(limit)
            with self.database.engine.begin() as connection:
                rows = connection.execute(select.where(projects.c.slug > request.query_params.get("after", ""))).all()
            return [_project(row) for row in rows]

        found = await run_in_threadpool(query)
        return JSONResponse({"projects": found, "next": found[-1]["slug"] if len(found) == limit else None})

    async def create_project(self, request: Request) -> Response:
        body = await self._json(request)
        slug = _match(SLUG, body.get("slug"), "slug", "small letters, digits and hyphens, at most 64")
        title = body.get("title", slug)
        owner = body.get("owner")
        if not isinstance(title, str) or len(title) > 256:
            raise HTTPException(400, "title must be text of at most 256 characters")
        if owner is not None:
            _match(NAME, owner, "owner", "a user's name")

        def create() -> dict[str, Any]:
            folder, made = self.layout.projects / slug, False
            try:
                with self.database.writer.begin() as connection:
                    if _project_id(connection, slug) is not None or folder.exists():
                        raise HTTPException(409, f"project {slug} exists")
                    user = _user_id(connection, owner) if owner is not None else None
                    values = {"slug": slug, "title": title, "user_id": user, "created_at": now()}
                    connection.execute(sa.insert(projects).values(values))
                    row = _project(connection.execute(_project_select().where(projects.c.slug == slug)).one())
                    folder.mkdir()
                    made = True
                    (folder / "files").mkdir()
                    _publish(folder / "project.json", iter([json.dumps(row, indent=2).encode() + b"\n"]))
            except BaseException:
                if made:
                    shutil.rmtree(folder)
                raise
            return row

        async with self.gate.write():
            try:
                return JSONResponse(await run_in_threadpool(create), 201)
            except sa.exc.IntegrityError:  # another request was faster
                raise HTTPException(409, f"project {slug} exists") from None

    async def get_project(self, request: Request) -> Response:
        slug = request.path_params["slug"]

        def query() -> dict[str, Any]:
            with self.database.engine.begin() as connection:
                row = connection.execute(_project_select().where(projects.c.slug == slug)).first()
                if row is None:
                    raise HTTPException(404, "no such project")
                project_id = _project_id(connection, slug)
                sums = sa.select(usage.c.type, sa.func.sum(usage.c.tokens)).group_by(usage.c.type)
                tokens = connection.execute(sums.where(usage.c.project_id == project_id)).all()
                columns = (uploads.c.path, uploads.c.bytes, uploads.c.sha256)
                files = connection.execute(sa.select(*columns).where(uploads.c.project_id == project_id).order_by(uploads.c.path)).all()
            listed = [{"name": Path(path).name, "bytes": size, "sha256": sha256} for path, size, sha256 in files]
            return {**_project(row), "tokens": {kind: int(total) for kind, total in tokens}, "files": listed}

        return JSONResponse(await run_in_threadpool(query))

    async def delete_project(self, request: Request) -> Response:
        slug = _match(SLUG, request.path_params["slug"], "slug", "a project's slug")

        def delete() -> None:
            folder = self.layout.projects / slug
            doomed = self.layout.projects / f".deleted-{slug}-{secrets.token_hex(4)}"
            try:
                with self.database.writer.begin() as connection:
                    if not connection.execute(sa.delete(projects).where(projects.c.slug == slug)).rowcount:
                        raise HTTPException(404, "no such project")
                    if folder.exists():
                        folder.rename(doomed)
            except BaseException:
                if doomed.exists():
                    doomed.rename(folder)
                raise
            if doomed.exists():
                shutil.rmtree(doomed)

        async with self.gate.write():
            await run_in_threadpool(delete)
        logs.audited("project.delete", project=slug)
        return Response(status_code=204)

    def _target(self, request: Request) -> tuple[str | None, Path]:
        """The project's slug, None for the users' uploads, and the file's path."""
        name = _match(NAME, request.path_params["name"], "file name", "a plain file name of at most 128 characters")
        if len(name.encode()) > 200:
            raise HTTPException(400, "the file name is longer than 200 bytes")
        if "slug" not in request.path_params:
            return None, self.layout.uploads / name
        slug = _match(SLUG, request.path_params["slug"], "slug", "a project's slug")
        return slug, self.layout.projects / slug / "files" / name

    async def put_file(self, request: Request) -> Response:
        slug, target = self._target(request)
        path = target.relative_to(self.layout.root).as_posix()
        with tempfile.TemporaryFile(dir=self.layout.cache) as spool:
            digest, size = hashlib.sha256(), 0
            async for part in request.stream():
                size += len(part)
                if size > self.limits["upload_max_bytes"]:
                    raise HTTPException(413, f"a file may have {self.limits['upload_max_bytes']} bytes")
                digest.update(part)
                await run_in_threadpool(spool.write, part)
            values = {
                "path": path,
                "sha256": digest.hexdigest(),
                "bytes": size,
                "signature": sign(self.settings.secret_key, path, digest.hexdigest()),
                "created_at": now(),
            }

            def store() -> bool:
                with self.database.writer.begin() as connection:
                    if slug is not None:
                        values["project_id"] = _project_id(connection, slug)
                        if values["project_id"] is None:
                            raise HTTPException(404, "no such project")
                    row = sa.select(uploads.c.id).where(uploads.c.path == path)
                    replaced = connection.execute(row).first() is not None
                    upsert(connection, uploads, "path", values, values)
                    spool.seek(0)
                    _publish(target, _parts(spool))
                return replaced

            async with self.gate.write():
                try:
                    replaced = await run_in_threadpool(store)
                except sa.exc.IntegrityError:
                    raise HTTPException(404, "the project was deleted during the upload") from None
        if replaced:
            logs.audited("file.replace", path=path)
        answer = {"path": path, "bytes": size, "sha256": values["sha256"]}
        return JSONResponse(answer, 200 if replaced else 201)

    async def get_file(self, request: Request) -> Response:
        """A file, only if it is what its row says and the row was signed with this APP_SECRET_KEY."""
        target = self._target(request)[1]
        path = target.relative_to(self.layout.root).as_posix()

        def open_verified() -> tuple[IO[bytes], int]:
            with self.database.engine.begin() as connection:
                select = sa.select(uploads.c.sha256, uploads.c.signature, uploads.c.bytes)
                row = connection.execute(select.where(uploads.c.path == path)).first()
            if row is None:
                raise HTTPException(404, "no such file")
            sha256, signature, size = row
            if not hmac.compare_digest(signature, sign(self.settings.secret_key, path, sha256)):
                raise _broken(path, "its row was not signed with this APP_SECRET_KEY")
            try:
                stream = target.open("rb")
            except FileNotFoundError:
                raise _broken(path, "the database has a row, the file is missing") from None
            digest = hashlib.sha256()
            for part in _parts(stream):
                digest.update(part)
            if digest.hexdigest() != sha256:
                stream.close()
                raise _broken(path, "its content is not what the database recorded")
            stream.seek(0)
            return stream, size

        stream, size = await run_in_threadpool(open_verified)
        headers = {"content-length": str(size), "x-content-type-options": "nosniff"}
        return StreamingResponse(_parts(stream, close=True), headers=headers, media_type="application/octet-stream")

    # -- users and providers ----------------------------------------------------------------------------------

    async def get_preferences(self, request: Request) -> Response:
        def query() -> dict[str, Any]:
            with self.database.engine.begin() as connection:
                user = connection.execute(sa.select(users.c.id).where(users.c.name == request.path_params["name"]))
                user_id = user.scalar()
                if user_id is None:
                    raise HTTPException(404, "no such user")
                columns = sa.select(user_preferences.c.key, user_preferences.c.value)
                rows = connection.execute(columns.where(user_preferences.c.user_id == user_id)).all()
            return dict(sorted(tuple(row) for row in rows))

        return JSONResponse(await run_in_threadpool(query))

    async def put_preferences(self, request: Request) -> Response:
        """Replace all preferences of a user, who is created if unknown."""
        name = _match(NAME, request.path_params["name"], "user", "a user's name of at most 128 characters")
        body = await self._json(request)
        if any(len(key) > 128 for key in body):
            raise HTTPException(400, "a preference's name has at most 128 characters")

        def replace() -> None:
            with self.database.writer.begin() as connection:
                user = _user_id(connection, name)
                connection.execute(sa.delete(user_preferences).where(user_preferences.c.user_id == user))
                rows = [{"user_id": user, "key": key, "value": value} for key, value in body.items()]
                if rows:
                    connection.execute(sa.insert(user_preferences), rows)

        async with self.gate.write():
            await run_in_threadpool(replace)
        return JSONResponse(body)

    async def list_providers(self, request: Request) -> Response:
        def query() -> list[dict[str, Any]]:
            with self.database.engine.begin() as connection:
                columns = sa.select(providers.c.name, providers.c.settings, providers.c.api_key)
                rows = connection.execute(columns.order_by(providers.c.name)).all()
            return [{"name": name, "settings": values, "api_key_set": bool(key)} for name, values, key in rows]

        return JSONResponse({"providers": await run_in_threadpool(query)})

    # -- chat -------------------------------------------------------------------------------------------------

    async def chat(self, request: Request) -> Response:
        call = await self._call(await self._json(request))
        text = ""
        async with contextlib.aclosing(self._answer(**call)) as items:
            async for kind, value in items:
                if kind == "done":
                    return JSONResponse({"reply": text.strip(), **value})
                text += value
        raise AssertionError("an answer ends with done")

    async def chat_stream(self, request: Request) -> Response:
        call = await self._call(dict(request.query_params))

        async def events() -> AsyncIterator[bytes]:
            with metrics.OPEN_CONNECTIONS.labels("sse").track_inprogress():
                async with contextlib.aclosing(self._reported(call)) as items:
                    async for kind, value in items:
                        yield f"event: {kind}\ndata: {json.dumps(value)}\n\n".encode()
                        if await request.is_disconnected():  # not every server says so when it is sent to
                            return

        return StreamingResponse(events(), media_type="text/event-stream", headers={"cache-control": "no-store"})

    async def chat_websocket(self, websocket: WebSocket) -> None:
        """Each JSON text message is a call, answered by messages with `event` and `data`."""
        await websocket.accept()
        with metrics.OPEN_CONNECTIONS.labels("websocket").track_inprogress():
            try:
                while True:
                    try:
                        call = await self._call(_object(await websocket.receive_text()))
                    except HTTPException as exc:
                        await websocket.send_json({"event": "error", "data": {"error": exc.detail}})
                        continue
                    async with contextlib.aclosing(self._reported(call)) as items:
                        async for kind, value in items:
                            await websocket.send_json({"event": kind, "data": value})
            except WebSocketDisconnect:
                return

    async def _call(self, body: dict[str, Any]) -> dict[str, Any]:
        """Check a call's project, provider, model and prompt; what `_answer` takes."""
        prompt, slug = body.get("prompt"), body.get("project")
        if not isinstance(prompt, str) or not prompt or not isinstance(slug, str):
            raise HTTPException(400, "a call needs the texts project and prompt")

        def query() -> dict[str, Any]:
            with self.database.engine.begin() as connection:
                project_id = _project_id(connection, slug)
                columns: Any = sa.select(providers.c.id, providers.c.name, providers.c.settings)
                if body.get("provider") is not None:
                    columns = columns.where(providers.c.name == str(body["provider"]))
                row = connection.execute(columns.order_by(providers.c.id)).first()
            if project_id is None or row is None:
                raise HTTPException(404, f"no such {'project' if project_id is None else 'provider'}")
            settings: dict[str, Any] = row.settings
            model = body.get("model") or settings["models"][0]
            if model not in settings["models"]:
                raise HTTPException(400, f"provider {row.name} has no such model, but {', '.join(settings['models'])}")
            call = {"project_id": project_id, "provider_id": row.id, "provider_name": row.name}
            return {**call, "model": model, "prompt": prompt, "chunk_seconds": float(settings["chunk_seconds"])}

        return await run_in_threadpool(query)

    async def _reported(self, call: dict[str, Any]) -> AsyncGenerator[tuple[str, Any], None]:
        """`_answer` for a stream that has begun: what fails becomes its last event, and goes to the log."""
        try:
            async with contextlib.aclosing(self._answer(**call)) as items:
                async for item in items:
                    yield item
        except HTTPException as exc:
            yield "error", {"error": exc.detail}
        except WritesPaused as exc:
            yield "error", {"error": str(exc), "retry_after": exc.retry_after}
        except sa.exc.SQLAlchemyError as exc:
            logs.app.error("database error in a stream: %s", exc, exc_info=exc)
            yield "error", {"error": "the database did not answer"}

    async def _answer(
        self, project_id: int, provider_id: int, provider_name: str, model: str, prompt: str, chunk_seconds: float
    ) -> AsyncGenerator[tuple[str, Any], None]:
        """Yield ("chunk", text) as the provider answers, then record the usage and yield ("done", counts and ids)."""
        labels = (provider_name, "chat", model)
        started = time.perf_counter()
        deadline = started + self.limits["provider_timeout_seconds"]
        error_type = "cancelled"  # by the client, unless one of the ways below is taken
        try:
            chunks = provider.answer(model, prompt, self.faults.values["slow_provider_seconds"], chunk_seconds)
            first = True
            while True:
                chunk = await asyncio.wait_for(_next(chunks), deadline - time.perf_counter())
                if chunk is None:
                    break
                if first:
                    metrics.PROVIDER_FIRST_CHUNK.labels(*labels).observe(time.perf_counter() - started)
                    first = False
                yield "chunk", chunk
            error_type = ""
        except TimeoutError:
            error_type = "timeout"
            logs.app.error("provider %s did not answer in time", provider_name)
            raise HTTPException(504, f"provider {provider_name} did not answer in time") from None
        finally:
            metrics.PROVIDER_DURATION.labels(*labels, error_type).observe(time.perf_counter() - started)
        counts = provider.token_counts(model, prompt)
        rows: list[dict[str, Any]] = [{"type": kind, "tokens": count} for kind, count in counts.items() if count]
        shared = {"project_id": project_id, "provider_id": provider_id, "model": model, "created_at": now()}

        def record() -> list[int]:
            with self.database.writer.begin() as connection:
                return [_insert(connection, usage, {**shared, **row}) for row in rows]

        async with self.gate.write():
            try:
                ids = await run_in_threadpool(record)
            except sa.exc.IntegrityError:
                raise HTTPException(404, "the project was deleted during the call") from None
        for row in rows:
            metrics.TOKENS.labels(provider_name, model, row["type"]).inc(row["tokens"])
        output = counts["output"] + counts["reasoning"]
        metrics.TOKEN_USAGE.labels(*labels, "input").observe(sum(counts.values()) - output)
        metrics.TOKEN_USAGE.labels(*labels, "output").observe(output)
        usage_rows = [{"id": row_id, **row} for row_id, row in zip(ids, rows, strict=True)]
        yield "done", {"provider": provider_name, "model": model, "usage": usage_rows}

    # -- administration ---------------------------------------------------------------------------------------

    def _require_token(self, request: Request) -> None:
        scheme, _space, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(token.encode(), self.settings.admin_token.encode()):
            logs.audited("admin.denied", path=request.url.path, client=_client(request))
            raise HTTPException(401, "the administrator's token is needed", {"www-authenticate": "Bearer"})

    def _require_admin(self, request: Request) -> None:
        if not _is_loopback(request):
            logs.audited("admin.denied", path=request.url.path, client=_client(request))
            raise HTTPException(403, "administration is answered on loopback only")
        self._require_token(request)

    async def writes(self, request: Request) -> Response:
        self._require_admin(request)
        return JSONResponse(self.gate.state())

    async def pause_writes(self, request: Request) -> Response:
        self._require_admin(request)
        seconds, longest = (await self._json(request)).get("seconds"), self.limits["pause_max_seconds"]
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= longest:
            raise HTTPException(400, f"seconds must be a number above 0 and up to {longest}")
        try:
            return JSONResponse(await self.gate.pause(float(seconds), DRAIN_SECONDS))
        except PauseFailed as exc:
            raise HTTPException(503, f"writes are not paused: {exc}", {"retry-after": "5"}) from None

    async def resume_writes(self, request: Request) -> Response:
        self._require_admin(request)
        return JSONResponse(self.gate.resume())

    async def get_faults(self, request: Request) -> Response:
        self._require_admin(request)
        return JSONResponse(self.faults.values)

    async def set_faults(self, request: Request) -> Response:
        self._require_admin(request)
        try:
            values = check_faults(await self._json(request), "request")
        except GatewayError as exc:
            raise HTTPException(400, str(exc)) from None
        await run_in_threadpool(self.faults.set, values)
        logs.audited("faults.set", faults=values)
        return JSONResponse(self.faults.values)

    async def _json(self, request: Request) -> dict[str, Any]:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > self.limits["request_max_bytes"]:
                raise HTTPException(413, f"a request may have {self.limits['request_max_bytes']} bytes")
        return _object(body)


class Observe:
    """Around every request: its id, headers, metrics, one line in access.log, and answers to what went wrong."""

    def __init__(self, app: ASGIApp, gateway: Gateway, templates: dict[Any, str]) -> None:
        self.app, self.gateway, self.templates = app, gateway, templates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        connection, http = HTTPConnection(scope), scope["type"] == "http"
        given = connection.headers.get("x-request-id", "")
        request_id = given if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given) else secrets.token_hex(8)
        logs.request_id.set(request_id)
        headers = [*self.gateway.headers, (b"x-request-id", request_id.encode())]
        status, sent, started = 0, 0, time.perf_counter()

        async def observed_send(message: Message) -> None:
            nonlocal status, sent
            if message["type"] in ("http.response.start", "websocket.accept", "websocket.http.response.start"):
                status = message.get("status", 101)
                message = {**message, "headers": [*message.get("headers", ()), *headers]}
            elif message["type"] == "websocket.close" and not status:
                status = 403  # what a server answers when a handshake is refused
            sent += len(message.get("body", b""))
            await send(message)

        method = scope["method"] if http and scope["method"] in METHODS else "GET" if not http else "_OTHER"
        try:
            with metrics.HTTP_ACTIVE.labels(method).track_inprogress() if http else contextlib.nullcontext():
                self.gateway.faults.leak()
                if http and scope["path"].startswith("/api/") and self.gateway.faults.fails():
                    raise RuntimeError("fault: this request fails because error_rate asks for it")
                if "\0" in scope["path"] or b"%00" in scope["query_string"]:
                    await JSONResponse({"error": "the request has a NUL character"}, 400)(scope, receive, observed_send)
                else:
                    await self.app(scope, receive, observed_send)
        except ClientDisconnect:
            status = 499  # nobody is left to answer; the number that nginx logs for it
        except Exception:
            logs.app.exception("%s %s failed", method, scope["path"])
            if status or not http:
                raise  # the answer has begun: the server has to cut it off
            await JSONResponse({"error": "internal error", "request_id": request_id}, 500)(scope, receive, observed_send)
        finally:
            seconds = time.perf_counter() - started
            route = self.templates.get((scope.get("endpoint"), frozenset(scope.get("path_params", ()))), "")
            if http:
                metrics.HTTP_DURATION.labels(method, route, str(status)).observe(seconds)
            fields = {
                "client": _client(connection),
                "method": method,
                "path": scope["path"],  # without the query, which may hold what a user typed
                "route": route,
                "status": status,
                "bytes": sent,
                "duration_ms": round(seconds * 1000, 3),
            }
            logs.access.info("%s %s %s", method, scope["path"], status, extra={"fields": fields})


def create_app(gateway: Gateway) -> Starlette:
    async def http_error(_request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)
        return JSONResponse({"error": exc.detail}, exc.status_code, headers=exc.headers)

    async def paused(_request: Request, exc: Exception) -> Response:
        assert isinstance(exc, WritesPaused)
        return JSONResponse({"error": str(exc)}, 503, headers={"retry-after": str(exc.retry_after)})

    async def database_error(_request: Request, exc: Exception) -> Response:
        logs.app.error("database error: %s", exc, exc_info=exc)
        return JSONResponse({"error": "the database did not answer"}, 503, headers={"retry-after": "5"})

    routes = gateway.routes()
    templates = {(route.endpoint, frozenset(route.param_convertors)): route.path for route in routes}
    return Starlette(
        routes=routes,
        middleware=[Middleware(Observe, gateway=gateway, templates=templates)],
        exception_handlers={
            HTTPException: http_error,
            WritesPaused: paused,
            sa.exc.OperationalError: database_error,
            sa.exc.InterfaceError: database_error,  # how a driver says that the session has ended
            sa.exc.TimeoutError: database_error,
        },
    )


# -- helpers ------------------------------------------------------------------------------------------------------


def _client(connection: HTTPConnection) -> str:
    return connection.client.host if connection.client else ""


def _is_loopback(request: Request) -> bool:
    try:
        return ipaddress.ip_address(_client(request)).is_loopback
    except ValueError:
        return False


def _object(text: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise HTTPException(400, "the request is not JSON") from None
    if NUL.search(text if isinstance(text, str) else text.decode(json.detect_encoding(text))):
        raise HTTPException(400, "the request has a NUL character")
    if not isinstance(value, dict):
        raise HTTPException(400, "the request is not a JSON object")
    return value


def _match(pattern: re.Pattern[str], value: Any, what: str, rule: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise HTTPException(400, f"{what} must be {rule}")
    return value


def _broken(path: str, reason: str) -> HTTPException:
    logs.app.error("%s is not served: %s", path, reason)
    return HTTPException(500, f"{path} is not served: {reason}")


async def _next(chunks: AsyncIterator[str]) -> str | None:
    return await anext(chunks, None)


def _parts(stream: IO[bytes], close: bool = False) -> Iterator[bytes]:
    try:
        while part := stream.read(CHUNK):
            yield part
    finally:
        if close:
            stream.close()


def _publish(target: Path, parts: Iterator[bytes]) -> None:
    """Write a file so that its name is either the old content or the whole new one, also after a crash."""
    temporary = target.with_name(f".upload-{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as stream:
            for part in parts:
                stream.write(part)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _project_select() -> Any:
    columns = (projects.c.slug, projects.c.title, users.c.name.label("owner"), projects.c.created_at)
    return sa.select(*columns).select_from(projects.outerjoin(users))


def _project(row: Any) -> dict[str, Any]:
    created = row.created_at
    created = created.astimezone(UTC) if created.tzinfo else created  # SQLite keeps UTC without saying so
    return {"slug": row.slug, "title": row.title, "owner": row.owner, "created_at": created.strftime("%Y-%m-%dT%H:%M:%SZ")}


def _project_id(connection: Connection, slug: str) -> int | None:
    found: int | None = connection.execute(sa.select(projects.c.id).where(projects.c.slug == slug)).scalar()
    return found


def _user_id(connection: Connection, name: str) -> int:
    """The id of a user, who is created if unknown; needs a write transaction."""
    upsert(connection, users, "name", {"name": name, "created_at": now()}, ())
    return int(connection.execute(sa.select(users.c.id).where(users.c.name == name).with_for_update(key_share=True)).scalar_one())


def _insert(connection: Connection, table: sa.Table, values: dict[str, Any]) -> int:
    key: Any = connection.execute(sa.insert(table).values(values)).inserted_primary_key
    return int(key[0])
