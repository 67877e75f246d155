#!/usr/bin/python
# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_set_info
short_description: List the sets of a backup store, and what they hold
version_added: 1.0.0
author: opskit contributors (@opskit)
description:
  - Lists the sets of a store with how far each was proven.
  - Says what one set holds, and which sets still have the good version of a path or a table.
extends_documentation_fragment:
  - opskit.runbooks._attributes
  - opskit.runbooks._attributes.info_module
  - opskit.runbooks._backup
  - opskit.runbooks._backup.lock
options:
  set:
    description:
      - Only this set. An id, V(latest) for the newest verified one, or V(before 2026-11-23T02:00:00Z) for the newest verified one before a
        moment.
      - Empty means all sets.
    type: str
    default: ''
  contents:
    description:
      - Whether to say what O(set) holds, as RV(contents).
    type: bool
    default: false
  projects:
    description:
      - The folder with one folder a project, for O(contents).
      - Default is the saved path named V(projects).
    type: path
  scopes:
    description:
      - What can be restored by name, as in M(opskit.runbooks.backup_restore_scope), for O(contents).
    type: dict
    default: {}
  path:
    description:
      - An absolute path as the application knows it. RV(versions) says what the sets hold there, and with O(set) RV(entries) lists it.
      - A byte that is not UTF-8 may be written as results print it, C(\udcff).
    type: path
  table:
    description:
      - A table of a database, as C(<database>.<table>), in PostgreSQL C(<database>.<schema>.<table>). Without a schema it is C(public).
      - RV(versions) says how many rows the sets hold. Not together with O(path).
    type: str
  limit:
    description:
      - The most RV(entries) that are listed.
    type: int
    default: 1000
seealso:
  - module: opskit.runbooks.backup_diff
  - module: opskit.runbooks.backup_set
  - module: opskit.runbooks.backup_restore
"""

EXAMPLES = r"""
- name: List the sets
  opskit.runbooks.backup_set_info:
    store: /var/backups/opskit/gateway
    application: gateway
  register: result

- name: What the newest verified set holds
  opskit.runbooks.backup_set_info:
    store: /var/backups/opskit/gateway
    application: gateway
    set: latest
    contents: true

- name: Which sets still have the good version of a project
  opskit.runbooks.backup_set_info:
    store: /var/backups/opskit/gateway
    application: gateway
    path: /opt/gateway/projects/atlas

- name: Fail when the newest verified set is older than 26 hours
  ansible.builtin.assert:
    that:
      - result.newest_verified | length > 0
      - (now(utc=true).replace(tzinfo=none) - (result.newest_verified[:16] | to_datetime('%Y%m%dT%H%M%SZ'))).total_seconds() < 26 * 3600
"""

RETURN = r"""
sets:
  description: The sets, newest first.
  returned: success
  type: list
  elements: dict
  sample:
    - id: 20261123T020000Z-7f3a
      seq: 12
      time: "2026-11-23T02:00:00Z"
      files: 12040
      bytes: 1510000000
      stored_bytes: 747000000
      new_bytes: 4200000
      guarantee: none
      paths: [config, data, environment, projects]
      databases: [gateway]
      schema_versions: {gateway: "0002"}
      verified: content
      verified_at: "2026-11-23T02:00:21Z"
      failed: ""
contents:
  description:
    - What the set holds. Sizes are in bytes.
    - C(paths) are the saved paths, without logs and databases; C(logs) is the sum of all logs.
    - C(scopes) are the O(scopes), with the files that lie at their paths, all rows of their tables, and up to O(limit) of the values that they
      can be asked for with.
  returned: O(contents) is true
  type: dict
  sample:
    paths:
      - {name: projects, path: /opt/gateway/projects, type: dir, files: 11800, bytes: 1310000000}
    projects:
      - {name: atlas, files: 240, bytes: 2600000}
    logs: {files: 4, bytes: 81000}
    databases:
      - name: gateway
        engine: sqlite
        path: /opt/gateway/data/gateway.db
        bytes: 104857600
        schema_version: "0002"
        tables:
          - {name: accounts, rows: 1200}
    scopes:
      - name: project
        files: 11800
        bytes: 1310000000
        values: [atlas]
        values_total: 1
        tables:
          - {name: projects, rows: 1}
versions:
  description:
    - What the sets hold of O(path) or O(table), the newest first; sets that follow each other and hold the same are one version.
    - Two folders are the same when everything in them is, but for the times of folders. Databases in a folder do not count, nor do logs, unless
      O(path) lies in the logs.
  returned: O(path) or O(table) is given
  type: list
  elements: dict
  contains:
    type:
      description:
        - V(file), V(dir), V(symlink), V(database), V(table), V(missing) where the set does not hold it, or V(unreadable) where the set is damaged.
      type: str
    size:
      description: Bytes of the file, or of all files in the folder.
      type: int
    files:
      description: How many files are in the folder.
      type: int
    mtime:
      description: When the file was modified, or the youngest of the folder (RFC 3339, UTC).
      type: str
    sha256:
      description: Of the file's content. Of a folder it is a hash of everything in it.
      type: str
    target:
      description: Where the symlink points.
      type: str
    rows:
      description: Rows of the table.
      type: int
    sum:
      description: A sum over the content of the table, null where it is not known. Of SQLite only the number of rows is known.
      type: str
    error:
      description: What is wrong with the set.
      type: str
    first_set:
      description: The oldest set with this version, made at C(first_time).
      type: str
    last_set:
      description: The newest set with this version, made at C(last_time).
      type: str
    count:
      description: How many sets have it.
      type: int
    verified_set:
      description: The newest verified one among them, which can be restored, or empty.
      type: str
  sample:
    - type: missing
      first_set: 20261123T020000Z-7f3a
      first_time: "2026-11-23T02:00:00Z"
      last_set: 20261123T020000Z-7f3a
      last_time: "2026-11-23T02:00:00Z"
      count: 1
      verified_set: 20261123T020000Z-7f3a
    - type: dir
      files: 240
      size: 2600000
      mtime: "2026-11-19T16:40:02Z"
      sha256: 27a3cb3fe1c0a7b0f56f4c0f6cf6dfb1c1a0ff3da6d5bfb8d4b7c0b5a4d1e3f2
      first_set: 20261119T200000Z-02aa
      first_time: "2026-11-19T20:00:00Z"
      last_set: 20261122T020000Z-19c2
      last_time: "2026-11-22T02:00:00Z"
      count: 4
      verified_set: 20261122T020000Z-19c2
entries:
  description: What the set holds at and below O(path), by name. C(mode) is octal; C(size) is in bytes, C(mtime) in RFC 3339, UTC.
  returned: O(path) and O(set) are given
  type: list
  elements: dict
  sample:
    - path: /opt/gateway/projects/atlas/plan.txt
      type: file
      size: 812
      mtime: "2026-11-19T16:40:02Z"
      mode: "0644"
      owner: gateway
      group: gateway
      sha256: 5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03
      target: ""
entries_total:
  description: How many entries there are.
  returned: O(path) and O(set) are given
  type: int
  sample: 240
truncated:
  description: Whether RV(entries) are fewer than that.
  returned: O(path) and O(set) are given
  type: bool
  sample: false
newest_verified:
  description: Id of the newest set whose content was verified, or empty.
  returned: success
  type: str
  sample: 20261123T020000Z-7f3a
store:
  description: The store itself.
  returned: success
  type: dict
  contains:
    uuid:
      description: Identity of the store.
      type: str
    bytes:
      description: Bytes of all objects that its sets need.
      type: int
    free_bytes:
      description: Bytes that are free on its file system.
      type: int
duration_s:
  description: Seconds that it took.
  returned: success
  type: float
  sample: 0.1
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.opskit.runbooks.plugins.module_utils._application import wiring
from ansible_collections.opskit.runbooks.plugins.module_utils._core.module import run_module


def main() -> None:
    spec = wiring.store_spec()
    spec.update(wiring.lock_spec())
    spec.update(
        set={"type": "str", "default": ""},
        contents={"type": "bool", "default": False},
        projects={"type": "path"},
        scopes={"type": "dict", "default": {}},
        path={"type": "path"},
        table={"type": "str"},
        limit={"type": "int", "default": 1000},
    )
    run_module(AnsibleModule(argument_spec=spec, supports_check_mode=True), wiring.backup_set_info)


if __name__ == "__main__":
    main()
