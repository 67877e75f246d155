#!/usr/bin/python
# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: sqlite_snapshot
short_description: Take verified snapshots of a live SQLite database and put them back
version_added: 1.0.0
author:
  - opskit contributors (@opskit)
description:
  - Takes a consistent copy of a SQLite database while the application goes on reading and writing, checks it, and keeps the newest
    O(keep) good ones in a folder.
  - With O(state=restored) puts a snapshot in the place of the database without ever letting it meet a C(-wal), C(-shm) or C(-journal)
    file of the database that was there before. Those are kept together beside it.
  - A database is opened read-only. One that does not exist is never made.
extends_documentation_fragment:
  - opskit.runbooks._attributes
attributes:
  check_mode:
    support: full
    details:
      - Check mode reads files but does not open the database with SQLite. It does not look for locks and does not refuse a restore
        because the database is in use; RV(holders) says who uses it.
  diff_mode:
    support: full
    details:
      - The difference is the list of steps.
  idempotent:
    support: partial
    details:
      - With O(state=present), no snapshot is taken when nothing was written to the database since the newest good one. A checkpoint
        counts as a write. With O(force=true) one is taken each time.
      - With O(state=restored), nothing is changed when the database is the snapshot already.
  safe_file_operations:
    support: full
options:
  path:
    description:
      - The main file of the database, an absolute path. Links are followed.
      - In C(WAL) mode the folder must be writable for the user of the task, or the database be open in the application already.
    type: path
    required: true
  directory:
    description:
      - Folder for the snapshots, an absolute path. With O(state=present) it is made, for the user of the task only, if it does not exist.
    type: path
    required: true
  name:
    description:
      - First part of the names of the snapshots. Several databases may share O(directory) under different names.
      - Default is the name of the file in O(path), with C(_) for whatever is not a letter, digit, C(.), C(_) or C(-).
    type: str
    default: ""
  state:
    description:
      - V(present) takes a snapshot if one is needed and removes the surplus.
      - V(restored) puts the O(snapshot) in the place of the database. Stop the application first; the module refuses when any process
        has the database open. Only root sees the processes of other users.
      - A restore that was interrupted is completed, or undone where that is not possible, by running it again.
    type: str
    choices: [present, restored]
    default: present
  snapshot:
    description:
      - With O(state=restored), the id of a snapshot, or V(latest) for the newest one that is whole.
    type: str
    default: latest
  keep:
    description:
      - With O(state=present), the number of newest good snapshots to keep, at least 1. Older ones are deleted after the new one was
        checked. Nothing is deleted after a failure.
    type: int
    default: 7
  force:
    description:
      - With O(state=present), take a snapshot even when nothing was written since the newest one.
    type: bool
    default: false
  database_timeout:
    description:
      - Seconds to wait for a lock that the application holds on the database.
    type: int
    default: 30
  lock_timeout:
    description:
      - Seconds to wait for another run with the same O(directory) and O(name).
    type: int
    default: 0
seealso:
  - name: SQLite online backup API
    description: How a live database is copied.
    link: https://www.sqlite.org/backup.html
"""

EXAMPLES = r"""
- name: Take a snapshot of a live database
  opskit.runbooks.sqlite_snapshot:
    path: /opt/gateway/data/gateway.db
    directory: /var/backups/gateway/sqlite

- name: Take one before a risky change, even if nothing was written
  opskit.runbooks.sqlite_snapshot:
    path: /opt/gateway/data/gateway.db
    directory: /var/backups/gateway/sqlite
    name: before-change
    keep: 3
    force: true

- name: Put the newest good snapshot back while the application is stopped
  opskit.runbooks.sqlite_snapshot:
    path: /opt/gateway/data/gateway.db
    directory: /var/backups/gateway/sqlite
    state: restored
"""

RETURN = r"""
action:
  description: What was done, or in check mode would be done. One of V(created), V(deleted), V(restored) and V(none).
  returned: success
  type: str
  sample: created
plan:
  description: The steps in their order, the same in check mode and in the real run.
  returned: success
  type: list
  elements: dict
  contains:
    step:
      description: What is done.
      returned: success
      type: str
      sample: take snapshot
    target:
      description: What it is done to. An id that does not exist yet is V(<new>).
      returned: success
      type: str
      sample: <new>
    reason:
      description: Why it is needed.
      returned: success
      type: str
      sample: the database was written since the newest snapshot
    bytes:
      description: Upper bound of the bytes that it writes.
      returned: when it writes
      type: int
      sample: 28672
checks:
  description: What was looked at after the change. Empty when nothing changed, and in check mode.
  returned: success
  type: list
  elements: dict
  contains:
    check:
      description: What was looked at.
      returned: success
      type: str
      sample: integrity_check
    ok:
      description: Whether it was as it should be.
      returned: success
      type: bool
      sample: true
    detail:
      description: What was seen.
      returned: success
      type: str
      sample: ok
reason:
  description: Why something was done, or why not.
  returned: success
  type: str
  sample: nothing was written since the snapshot gateway.db-20261123T020000Z-7f3a
snapshot:
  description: The newest good snapshot, or the one that was restored. Empty in check mode when one would be taken.
  returned: success
  type: dict
  contains:
    id:
      description: Its id.
      returned: success
      type: str
      sample: gateway.db-20261123T020000Z-7f3a
    path:
      description: The file, a whole SQLite database of its own.
      returned: success
      type: str
      sample: /var/backups/gateway/sqlite/gateway.db-20261123T020000Z-7f3a.sqlite
    time:
      description: When it was taken, UTC.
      returned: success
      type: str
      sample: "2026-11-23T02:00:00Z"
    bytes:
      description: Size in bytes.
      returned: success
      type: int
      sample: 28672
    sha256:
      description: SHA-256 of the file.
      returned: success
      type: str
      sample: 5daa6b4fc2616dc454fa5c0d5579fa810549a9b8447769b9434fb87cece0b1d0
    rows:
      description: Number of rows by table.
      returned: success
      type: dict
      sample: {"usage": 5000}
    journal_mode:
      description: Journal mode that the database has, V(wal) or V(rollback).
      returned: success
      type: str
      sample: wal
    foreign_key_violations:
      description: Number of rows that violate a foreign key in the database itself. Null where SQLite can't tell.
      returned: success
      type: int
      sample: 0
    notes:
      description: What could not be counted, and why.
      returned: success
      type: list
      elements: str
      sample: []
snapshots:
  description: Ids of the snapshots that are there, the oldest first.
  returned: when O(state=present)
  type: list
  elements: str
  sample: [gateway.db-20261123T020000Z-7f3a]
deleted:
  description: Ids of those that were deleted, or in check mode would be.
  returned: when O(state=present)
  type: list
  elements: str
  sample: []
damaged:
  description: Snapshots that are there but can't be relied on.
  returned: when O(state=present)
  type: list
  elements: dict
  contains:
    id:
      description: Its id.
      returned: success
      type: str
      sample: gateway.db-20261122T020000Z-19ce
    damage:
      description: What is wrong.
      returned: success
      type: str
      sample: its image is missing
  sample: []
orphans:
  description: Images without a description. They do not count as snapshots and are never deleted.
  returned: when O(state=present)
  type: list
  elements: str
  sample: []
aside:
  description: Folder with the database that was replaced, or empty. It is never deleted by this module.
  returned: when O(state=restored)
  type: str
  sample: /opt/gateway/data/gateway.db.before-20261123T020000Z-7f3a
holders:
  description: Processes that have the database open.
  returned: when O(state=restored)
  type: list
  elements: dict
  contains:
    pid:
      description: Process id.
      returned: success
      type: int
      sample: 4711
    command:
      description: Short name of the program.
      returned: success
      type: str
      sample: gunicorn
    path:
      description: The file that it has open.
      returned: success
      type: str
      sample: /opt/gateway/data/gateway.db
  sample: []
duration_s:
  description: Seconds that it took.
  returned: success
  type: float
  sample: 0.042
"""

from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.opskit.runbooks.plugins.module_utils._core.clock import Clock
from ansible_collections.opskit.runbooks.plugins.module_utils._core.module import run_module
from ansible_collections.opskit.runbooks.plugins.module_utils._core.operation import Operation
from ansible_collections.opskit.runbooks.plugins.module_utils._sqlite.database import SqliteDatabase
from ansible_collections.opskit.runbooks.plugins.module_utils._sqlite.restore import RestoreSnapshot
from ansible_collections.opskit.runbooks.plugins.module_utils._sqlite.snapshots import (
    SnapshotDirectory,
    TakeSnapshot,
    default_name,
    require_path,
)


def build(params: Dict[str, Any], clock: Clock) -> Operation:
    for option in ("path", "directory"):
        require_path(params[option], option)
    name = params["name"] or default_name(params["path"])
    database = SqliteDatabase(name, params["path"], params["database_timeout"])
    directory = SnapshotDirectory(params["directory"], name)
    if params["state"] == "restored":
        return RestoreSnapshot(database, directory, params["snapshot"], params["lock_timeout"], clock)
    return TakeSnapshot(database, directory, params["keep"], params["force"], params["lock_timeout"], clock)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "directory": {"type": "path", "required": True},
            "name": {"type": "str", "default": ""},
            "state": {"type": "str", "choices": ["present", "restored"], "default": "present"},
            "snapshot": {"type": "str", "default": "latest"},
            "keep": {"type": "int", "default": 7},
            "force": {"type": "bool", "default": False},
            "database_timeout": {"type": "int", "default": 30},
            "lock_timeout": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    run_module(module, build)


if __name__ == "__main__":
    main()
