#!/usr/bin/python
# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_diff
short_description: Compare a set of a backup store with what is live, or with another set
version_added: 1.0.0
author: opskit contributors (@opskit)
description:
  - Says which paths were added, removed or changed since a set was made, and how the tables of databases differ.
  - Logs and volatile paths are not compared. The time of a folder does not count, because it moves whenever something passes through it.
  - Differences are a result, not a failure. RV(is_equal) tells.
extends_documentation_fragment:
  - opskit.runbooks._attributes
  - opskit.runbooks._attributes.info_module
  - opskit.runbooks._backup
  - opskit.runbooks._backup.databases
  - opskit.runbooks._backup.lock
  - opskit.runbooks._backup.source
attributes:
  diff_mode:
    support: full
    details:
      - Shows the names of what differs, never contents.
options:
  set:
    description:
      - The set. An id, V(latest) for the newest verified one, or V(before 2026-11-23T02:00:00Z) for the newest verified one before a
        moment.
    type: str
    default: latest
  other:
    description:
      - What it is compared with. V(live) for the application as it is now, or another set, in the words of O(set).
    type: str
    default: live
  path:
    description:
      - Only what is at and below this absolute path, as the application knows it. A byte that is not UTF-8 may be written as results
        print it, C(\udcff).
      - A database in a server is then not compared.
    type: path
  content:
    description:
      - Whether all live content is read.
      - Otherwise a file is not read whose size differs, nor one of which size, time, inode and time of change are what they were when the
        last set was made.
    type: bool
    default: false
  limit:
    description:
      - The most paths that each of the lists names. The counts are of all.
    type: int
    default: 1000
seealso:
  - module: opskit.runbooks.backup_set_info
  - module: opskit.runbooks.backup_restore
"""

EXAMPLES = r"""
- name: What was done to the application since the last verified set
  opskit.runbooks.backup_diff:
    store: /var/backups/opskit/gateway
    application: gateway
    paths:
      data: /opt/gateway/data
      environment: /opt/gateway/.env
      config: /opt/gateway/config
      projects: /opt/gateway/projects
    logs: [/opt/gateway/data/logs]
    databases:
      - name: gateway
        engine: sqlite
        path: /opt/gateway/data/gateway.db
  register: result

- name: What changed in one project between two sets
  opskit.runbooks.backup_diff:
    store: /var/backups/opskit/gateway
    application: gateway
    paths:
      projects: /opt/gateway/projects
    set: 20261120T020000Z-19c2
    other: 20261123T020000Z-7f3a
    path: /opt/gateway/projects/atlas
"""

RETURN = r"""
set:
  description: The set, as in M(opskit.runbooks.backup_set_info).
  returned: success
  type: dict
  sample:
    id: 20261123T020000Z-7f3a
other:
  description: The other set in the same form. Of what is live only C(id), V(live).
  returned: success
  type: dict
  sample:
    id: live
is_equal:
  description: Whether nothing differs, and of nothing it is unknown whether it does.
  returned: success
  type: bool
  sample: false
counts:
  description: How many paths are only in the other (C(added)), only in the set (C(removed)), in both but different (C(changed)), and C(same).
  returned: success
  type: dict
  sample: {added: 1, removed: 0, changed: 1, same: 12040}
paths:
  description:
    - The paths that differ, in the lists C(added), C(removed) and C(changed), by name.
    - Each has C(path), C(type), C(size) (bytes) and C(mtime) (RFC 3339, UTC).
    - One that changed has those of the other as C(other_type), C(other_size) and C(other_mtime), and in C(what) a list of C(type), C(size),
      C(mtime), C(mode), C(owner), C(xattrs), C(target), C(content) and C(link) (it is, or is no longer, another name of the same file).
  returned: success
  type: dict
  sample:
    added: []
    removed:
      - {path: /opt/gateway/projects/atlas/plan.txt, type: file, size: 812, mtime: "2026-11-20T09:12:44Z"}
    changed:
      - path: /opt/gateway/.env
        type: file
        size: 412
        mtime: "2026-11-01T08:00:00Z"
        other_type: file
        other_size: 412
        other_mtime: "2026-11-23T08:30:12Z"
        what: [mtime, content]
truncated:
  description: Whether a list names fewer paths than there are.
  returned: success
  type: bool
  sample: false
databases:
  description: The databases that were compared.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Its name in the set.
      type: str
    engine:
      description: Its engine.
      type: str
    path:
      description: Its file, empty for one in a server.
      type: str
    state:
      description:
        - V(same), V(differs), V(added), V(removed) or V(unknown).
        - V(unknown) is an SQLite database with other bytes than in the set and as many rows in each table, and what C(error) is about.
      type: str
    what:
      description: What differs beside tables, of C(schema), C(sequences), C(properties), C(schema_version), C(mode), C(owner) and C(xattrs).
      type: list
      elements: str
    tables:
      description:
        - The tables that are not known to be the same. Each with C(name), C(rows) in the set and C(other_rows) in the other (null where there is
          no such table), and C(content), V(differs) or V(unknown).
      type: list
      elements: dict
    error:
      description: Why it could not be compared, or empty.
      type: str
duration_s:
  description: Seconds that it took.
  returned: success
  type: float
  sample: 0.8
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.opskit.runbooks.plugins.module_utils._application import wiring
from ansible_collections.opskit.runbooks.plugins.module_utils._core.module import run_module


def main() -> None:
    spec = wiring.store_spec()
    spec.update(wiring.source_spec())
    spec.update(wiring.lock_spec())
    spec.update(
        set={"type": "str", "default": "latest"},
        other={"type": "str", "default": "live"},
        path={"type": "path"},
        content={"type": "bool", "default": False},
        limit={"type": "int", "default": 1000},
    )
    run_module(AnsibleModule(argument_spec=spec, supports_check_mode=True), wiring.backup_diff)


if __name__ == "__main__":
    main()
