#!/usr/bin/python
# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_restore
short_description: Restore an application from a set
version_added: 1.0.0
author: opskit contributors (@opskit)
description:
  - Puts the copy of a set beside the application's paths, checks every hash there, and then exchanges it for what is live.
  - Everything changes or nothing does. After a crash or a kill in the middle the same call first brings back the state before, then does
    its job.
  - The old state is kept aside until O(state=purged). Live logs and volatile paths stay as they are.
extends_documentation_fragment:
  - opskit.runbooks._attributes
  - opskit.runbooks._backup
  - opskit.runbooks._backup.source
  - opskit.runbooks._backup.databases
  - opskit.runbooks._backup.lock
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
    details:
      - When the live state is that of the set already, nothing is done.
  safe_file_operations:
    support: full
options:
  set:
    description:
      - Which set. An id, V(latest) for the newest verified one, or V(before 2026-11-23T02:00:00Z) for the newest verified one before a
        moment. Empty means V(latest).
    type: str
    default: latest
  state:
    description:
      - V(staged) puts the set's copy beside the paths and checks it. The application may run, and so may backups and pruning.
      - V(restored) stages if that was not done yet, and exchanges. No process may have a file of the application open.
      - V(rolled_back) brings back the state before the last restore.
      - V(purged) removes what was staged or is kept aside.
    type: str
    choices: [staged, restored, rolled_back, purged]
    default: restored
  state_dir:
    description:
      - Folder for the record of what was exchanged, outside of what is saved. It has to survive a reboot.
    type: path
    required: true
  owner:
    description:
      - Files get the owner and group with the stored V(name), where that name exists, or the stored V(id).
      - Without root everything belongs to the user that runs the module.
    type: str
    choices: [name, id]
    default: name
  credentials:
    description:
      - What happens when the set's environment file can't log in to a database whose C(url_variable) is named.
      - V(fail) refuses, before anything is touched. V(keep_live) restores the file with the URL of the live one. V(set_role) gives the
        role the password that the set's file has.
    type: str
    choices: [fail, keep_live, set_role]
    default: fail
seealso:
  - module: opskit.runbooks.backup_restore_scope
  - module: opskit.runbooks.backup_set
  - module: opskit.runbooks.backup_set_info
"""

EXAMPLES = r"""
- name: Put the newest verified set back
  opskit.runbooks.backup_restore:
    store: /var/backups/opskit/gateway
    application: gateway
    state_dir: /var/lib/opskit/gateway
    paths: &paths
      data: /opt/gateway/data
      environment: /opt/gateway/.env
    databases: &databases
      - name: gateway
        engine: sqlite
        path: /opt/gateway/data/gateway.db

- name: Go back to what was before
  opskit.runbooks.backup_restore:
    store: /var/backups/opskit/gateway
    application: gateway
    state_dir: /var/lib/opskit/gateway
    paths: *paths
    databases: *databases
    state: rolled_back
"""

RETURN = r"""
action:
  description: The O(state) that was reached, or V(none).
  returned: success
  type: str
  sample: restored
plan:
  description: The steps, in order.
  returned: success
  type: list
  elements: dict
  sample:
    - step: exchange
      target: /opt/gateway/data
      reason: it is missing
checks:
  description: What was looked at afterwards.
  returned: success
  type: list
  elements: dict
  sample:
    - check: data is that of the set
      ok: true
      detail: ""
set:
  description: The set, as in M(opskit.runbooks.backup_set_info).
  returned: O(state=staged) or O(state=restored)
  type: dict
  sample:
    id: 20261123T020000Z-7f3a
aside:
  description: Folders that keep the other state.
  returned: success
  type: list
  elements: str
  sample:
    - /opt/gateway/.opskit-restore/1b5e/20261123T020000Z-7f3a-data
recovered:
  description: What was done about an interrupted run, or empty.
  returned: success
  type: str
  sample: the interrupted exchange was undone
phases:
  description: Seconds that staging and exchanging took.
  returned: success
  type: dict
  sample:
    stage_s: 7.9
    exchange_s: 0.1
duration_s:
  description: Seconds that all of it took.
  returned: success
  type: float
  sample: 8.4
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.opskit.runbooks.plugins.module_utils._application import wiring
from ansible_collections.opskit.runbooks.plugins.module_utils._core.module import run_module


def main() -> None:
    spec = wiring.store_spec()
    spec.update(wiring.lock_spec())
    spec.update(wiring.source_spec())
    spec.update(
        set={"type": "str", "default": "latest"},
        state={"type": "str", "choices": ["staged", "restored", "rolled_back", "purged"], "default": "restored"},
        state_dir={"type": "path", "required": True},
        credentials={"type": "str", "choices": ["fail", "keep_live", "set_role"], "default": "fail"},
        owner={"type": "str", "choices": ["name", "id"], "default": "name"},
    )
    run_module(AnsibleModule(argument_spec=spec, supports_check_mode=True), wiring.backup_restore)


if __name__ == "__main__":
    main()
