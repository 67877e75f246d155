# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prometheus metrics; names follow OpenTelemetry's conventions where one exists."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
PROVIDER = ("gen_ai_provider_name", "gen_ai_operation_name", "gen_ai_request_model")

HTTP_DURATION = Histogram(
    "http_server_request_duration_seconds",
    "Time from a request to the end of its answer",
    ("http_request_method", "http_route", "http_response_status_code"),
    buckets=SECONDS,
)
HTTP_ACTIVE = Gauge("http_server_active_requests", "Requests being answered", ("http_request_method",))
OPEN_CONNECTIONS = Gauge("app_open_connections", "Open long-lived connections", ("kind",))
PROVIDER_DURATION = Histogram(
    "gen_ai_client_operation_duration_seconds",
    "Time of a call to a provider",
    (*PROVIDER, "error_type"),
    buckets=SECONDS,
)
PROVIDER_FIRST_CHUNK = Histogram(
    "gen_ai_client_operation_time_to_first_chunk_seconds",
    "Time to the first chunk of a provider's answer",
    PROVIDER,
    buckets=SECONDS,
)
TOKEN_USAGE = Histogram(
    "gen_ai_client_token_usage",
    "Tokens of a call, cached ones being input and reasoning ones output",
    (*PROVIDER, "gen_ai_token_type"),
    buckets=tuple(4**n for n in range(14)),
)
TOKENS = Counter("app_llm_tokens_total", "Tokens by disjoint type", ("gen_ai_provider_name", "gen_ai_request_model", "type"))
DB_LOCK_WAIT = Histogram(
    "app_db_lock_wait_seconds",
    "Wait for the database's write lock",
    buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10),
)
BUILD = Gauge("app_build_info", "Version and colour that run, always 1", ("version", "colour"))

for _kind in ("sse", "websocket"):
    OPEN_CONNECTIONS.labels(_kind)


def memory_limit() -> int | None:
    """Bytes this process may use by its cgroups (v2) or RLIMIT_AS; None without a limit."""
    limits = [value for value in resource.getrlimit(resource.RLIMIT_AS)[:1] if value != resource.RLIM_INFINITY]
    mount = Path("/sys/fs/cgroup")
    try:
        own = Path("/proc/self/cgroup").read_text(encoding="ascii").rpartition("0::/")[2].strip()
        group = mount / own
        for folder in (group, *group.parents):
            if folder.is_relative_to(mount) and (folder / "memory.max").is_file():
                text = (folder / "memory.max").read_text(encoding="ascii").strip()
                limits += [] if text == "max" else [int(text)]
    except OSError:
        pass  # no cgroup v2 here: there is nothing to report from it
    return min(limits, default=None)


class RuntimeCollector:
    """What is read when metrics are scraped: connection pool, readiness checks, memory limit."""

    def __init__(self, pool: Callable[[], dict[str, int]], health: Callable[[], dict[str, bool]]) -> None:
        self._pool, self._health = pool, health
        REGISTRY.register(self)

    def describe(self) -> list[GaugeMetricFamily]:
        return []  # registering must not query the database

    def collect(self) -> Iterator[GaugeMetricFamily]:
        pool = GaugeMetricFamily("app_db_pool_connections", "Database connections by state", labels=["state"])
        for state, count in self._pool().items():
            pool.add_metric([state], count)
        yield pool
        health = GaugeMetricFamily("app_health_status", "Readiness checks, 1 is passed", labels=["check"])
        for check, passed in self._health().items():
            health.add_metric([check], passed)
        yield health
        limit = memory_limit()
        if limit is not None:
            yield GaugeMetricFamily("app_memory_limit_bytes", "Memory this process may use", value=limit)
