# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in a store."""

from __future__ import annotations

from typing import Any, Dict, List

from .._core.files import free_bytes
from .._core.operation import Operation
from .._core.plan import Plan
from .create import summary
from .manifest import Manifest
from .store import Store


class SetInfo(Operation):
    """List a store's sets. Changes nothing.

    :param which: one set as an operator names it, or empty for all
    """

    def __init__(self, store: Store, which: str) -> None:
        self.store = store
        self.which = which
        self.sets: List[Manifest] = []

    def plan(self) -> Plan:
        self.store.open()
        self.sets = [self.store.find(self.which)] if self.which else self.store.sets()
        return Plan("none")

    def result(self) -> Dict[str, Any]:
        verified = [manifest.id for manifest in self.store.sets() if self.store.verified(manifest.id)]
        objects: Dict[str, int] = {}
        for manifest in self.sets:
            objects.update(manifest.objects)
        return {
            "sets": [summary(self.store, manifest) for manifest in reversed(self.sets)],
            "newest_verified": verified[-1] if verified else "",
            "store": {
                "uuid": self.store.uuid,
                "bytes": sum(objects.values()),
                "free_bytes": free_bytes(self.store.path),
            },
        }
