# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The set's environment file: can the restored application log in to its databases with it, and what if it can't."""

from __future__ import annotations

import os
from typing import List, Optional

from .._core.plan import Plan
from .._core.protocols import ServerTarget
from . import archive
from .errors import BackupError
from .manifest import get_text
from .placement import Placement, Served
from .store import Store

READ_S = 3600
"""Seconds that reading one file from a shard may take."""


class Settings:
    """The environment file as it will be restored.

    :param policy: what happens when it can't log in: ``fail``, ``keep_live`` (the live file's URL stays), ``set_role`` (the
        role gets the set's password)
    """

    def __init__(self, store: Store, policy: str) -> None:
        self.store = store
        self.policy = policy
        self.whose = ""
        """Which file it is, for messages."""
        self.content = b""
        """What the file shall hold; empty where nobody asks."""
        self.passwords: List[ServerTarget] = []
        """Whose role gets the set's password."""
        self.made: List[Served] = []
        """Those that roles are made for: whether they have the right passwords is seen when they are there."""

    def review(self, placement: Placement, plan: Plan) -> None:
        """See before anything stops whether the restored application can log in, and settle the file's content.

        Raises :class:`OpskitError` when it can't and the policy has no way out.
        """
        asking = [served for served in placement.served if served.target.url_variable and not served.target.missing()]
        environment = placement.environment
        if not asking or environment is None:
            return
        self.whose = f"the environment file of set {placement.manifest.id}"
        shard = next(shard for shard in placement.manifest.shards if shard.id == environment.record["shard"])
        # Where it is another name of a member before it, that one has the content.
        name = get_text(environment.record, "link") or get_text(environment.record, "path")
        self.content = archive.member(self.store.object_path(shard.object), name, READ_S)
        live = None
        if os.path.lexists(environment.live):
            with open(environment.live, "rb") as stream:
                live = stream.read()
        for served in asking:
            self._review_one(served, live)
        for one in self.passwords:
            role = one.check_set_password(self.content, self.whose)
            plan.add("set password", role, f"the application logs in with the one in set {placement.manifest.id}")
        placement.settle_environment(self.content)

    def confirm(self) -> None:
        """See whether the application can log in as the roles that were made. Raises :class:`BackupError` when it can't."""
        for served in self.made:
            refusal = served.target.refusal(self.content, self.whose, [])
            if refusal:
                raise self._no_login(served, refusal)

    def _review_one(self, served: Served, live: Optional[bytes]) -> None:
        if self.policy == "keep_live":
            if live is None:
                raise BackupError(
                    "there is no live environment file whose URL could be kept",
                    served.target.url_variable,
                    "Choose fail or set_role for the credentials",
                )
            self.content = served.target.with_live_url(self.content, live)
        made = served.target.check(served.image.facts, bool(served.image.beside))
        if self.policy == "set_role":
            # A role that is made has no password where the set is by a login that may not read them.
            if served.target.refusal(self.content, self.whose, []):
                self.passwords.append(served.target)
            return
        refusal = served.target.refusal(self.content, self.whose, made)
        if refusal:
            raise self._no_login(served, refusal)
        if made:
            self.made.append(served)

    def _no_login(self, served: Served, refusal: str) -> BackupError:
        others = {"fail": "keep_live (the live URL stays) or set_role", "keep_live": "set_role"}[self.policy]
        return BackupError(
            f"the restored application could not log in to its database {served.target.database}: {refusal}",
            served.target.url_variable,
            f"Mend that, or choose for the credentials {others} (the role gets the set's password)",
        )
