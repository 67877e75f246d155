#!/usr/bin/python
# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_restore_scope
short_description: Restore one part of an application from a set
version_added: 1.0.0
author: opskit contributors (@opskit)
description:
  - Brings back the files and rows of one named scope (one project, say, or the settings of the providers) while the application goes on
    running. Nothing else is touched.
  - Rows come from the set's database, which is loaded beside the live one for a while. They are compared by their keys and written in one
    transaction, parents before children.
  - Nothing is ever deleted. Rows and files that are live and not in the set stay.
  - Files and rows change together or not at all. After a kill in the middle the next call, of whatever scope, first finishes or undoes what
    was begun.
extends_documentation_fragment:
  - opskit.runbooks._attributes
  - opskit.runbooks._backup
  - opskit.runbooks._backup.source
  - opskit.runbooks._backup.databases
  - opskit.runbooks._backup.keys
  - opskit.runbooks._backup.lock
attributes:
  check_mode:
    support: full
    details:
      - The set's database is loaded beside the live one in check mode too, and removed again. Keys and columns are shown, never values.
  diff_mode:
    support: full
  idempotent:
    support: full
    details:
      - Rows and files that are those of the set already are left alone.
  safe_file_operations:
    support: full
options:
  scope:
    description: Name of the scope to restore, one of O(scopes).
    type: str
    required: true
  value:
    description: Which one of the scope's, such as the name of a project, for a scope that takes a value.
    type: str
    default: ''
  scopes:
    description:
      - Scopes by name. Each is a dictionary.
      - C(paths) is a list of absolute paths of files and folders below O(paths). C({value}) in one stands for the O(value).
      - C(rows) is a list of tables with the rows that belong to the scope, see below. They are all of one database, whose name in a set is
        C(database), by default the first of O(databases).
      - C(value) is V(none), V(optional) or V(required), by default V(none). C(description) says what it is.
      - C(key_bound), by default V(true), says that the rows are of use only under the keys of O(key_variables) that they were written with.
      - In C(rows), C(table) is the name of a table and C(where) an SQL condition on its rows in the set, by default all of them. In it
        C(:value) stands for the O(value), V(NULL) where none is given.
      - C(key) names the columns that tell its rows apart, by default the primary key. C(identity) names the columns that say what a row is of,
        such as a project's name beside its number. Where the identity differs under the same key, the row is another thing by now, and the
        restore is refused whatever the policy.
      - With C(restore) set to V(false) the rows are not restored, but have to be live already as the same things, because others build on
        them.
      - The table's own triggers and rules are at rest while rows are written, so that they come back as they were; C(fire_triggers) set to V(true)
        lets them fire.
    type: dict
    required: true
  policy:
    description:
      - What happens to rows and files that are live and differ from the set.
      - V(fail) refuses, and changes nothing. V(skip) leaves them as they are and restores what is missing. V(replace) gives them what the set
        has.
    type: str
    choices: [fail, skip, replace]
    default: fail
  set:
    description:
      - Which set. An id, V(latest) for the newest verified one, or V(before 2026-11-23T02:00:00Z) for the newest verified one before a
        moment. Empty means V(latest).
    type: str
    default: latest
  state_dir:
    description:
      - Folder for the record of what is being changed, outside of what is saved. It has to survive a reboot.
    type: path
    required: true
  owner:
    description:
      - Files get the owner and group with the stored V(name), where that name exists, or the stored V(id).
      - Without root everything belongs to the user that runs the module.
    type: str
    choices: [name, id]
    default: name
seealso:
  - module: opskit.runbooks.backup_restore
  - module: opskit.runbooks.backup_set
  - module: opskit.runbooks.backup_set_info
"""

EXAMPLES = r"""
- name: Bring one project back, its folder and its rows
  opskit.runbooks.backup_restore_scope:
    store: /var/backups/opskit/gateway
    application: gateway
    state_dir: /var/lib/opskit/gateway
    paths:
      data: /opt/gateway/data
      projects: /opt/gateway/projects
      environment: /opt/gateway/.env
    databases:
      - name: gateway
        engine: sqlite
        path: /opt/gateway/data/gateway.db
    scope: project
    value: atlas
    scopes:
      project:
        value: required
        paths: ["/opt/gateway/projects/{value}"]
        rows:
          - table: projects
            identity: [slug]
            where: slug = :value
          - table: usage
            identity: [project_id, created_at]
            where: project_id IN (SELECT id FROM projects WHERE slug = :value)
"""

RETURN = r"""
action:
  description: V(restored) or V(none).
  returned: success
  type: str
  sample: restored
plan:
  description: The steps, in order, with keys and columns and no values.
  returned: success
  type: list
  elements: dict
  sample:
    - step: insert rows
      target: "gateway: usage"
      reason: "2 are missing: id=45; id=46"
checks:
  description: What was looked at afterwards.
  returned: success
  type: list
  elements: dict
  sample:
    - check: the files are those of the set
      ok: true
      detail: 1 paths put in place
set:
  description: The set, as in M(opskit.runbooks.backup_set_info).
  returned: success
  type: dict
  sample:
    id: 20261123T020000Z-7f3a
scope:
  description: The scope.
  returned: success
  type: str
  sample: project
files:
  description: What became of the files.
  returned: success
  type: dict
  contains:
    found:
      description: Paths of the set that belong to the scope.
      type: int
    changed:
      description: Paths that are put in place; of a folder that is missing, the folder alone.
      type: list
      elements: str
    kept:
      description: Live paths that differ and stay.
      type: list
      elements: str
    same:
      description: Number of paths that are those of the set already.
      type: int
tables:
  description: What became of the rows, by table, in the order in which they are written. Of each kind up to 1000 keys are listed.
  returned: success
  type: list
  elements: dict
  sample:
    - table: usage
      inserted: 2
      updated: 0
      kept: 0
      same: 40
      columns: []
      inserted_keys: ["id=45", "id=46"]
      updated_keys: []
      kept_keys: []
recovered:
  description: What was done about an interrupted run, or empty.
  returned: success
  type: str
  sample: the interrupted restore of project was finished
phases:
  description: Seconds that loading the database, staging the files and writing took.
  returned: success
  type: dict
  sample:
    load_s: 1.9
    stage_s: 0.1
    write_s: 0.1
duration_s:
  description: Seconds that all of it took.
  returned: success
  type: float
  sample: 2.3
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.opskit.runbooks.plugins.module_utils._application import wiring
from ansible_collections.opskit.runbooks.plugins.module_utils._core.module import run_module
from ansible_collections.opskit.runbooks.plugins.module_utils._core.rows import POLICIES


def main() -> None:
    spec = wiring.store_spec()
    spec.update(wiring.lock_spec())
    spec.update(wiring.source_spec())
    spec.update(wiring.key_spec())
    spec.update(
        scope={"type": "str", "required": True},
        value={"type": "str", "default": ""},
        scopes={"type": "dict", "required": True},
        policy={"type": "str", "choices": list(POLICIES), "default": "fail"},
        set={"type": "str", "default": "latest"},
        state_dir={"type": "path", "required": True},
        owner={"type": "str", "choices": ["name", "id"], "default": "name"},
    )
    run_module(AnsibleModule(argument_spec=spec, supports_check_mode=True), wiring.backup_restore_scope)


if __name__ == "__main__":
    main()
