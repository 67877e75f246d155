#!/usr/bin/python
# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_verify
short_description: Verify sets of a backup store
version_added: 1.0.0
author: opskit contributors (@opskit)
description:
  - Reads sets back, says what is wrong with them, and records the verdict in the store.
  - Backups and pruning go on meanwhile; pruning keeps the set that is being read.
  - Fails when a set fails. The verdict is recorded before. The next M(opskit.runbooks.backup_set) stores again what was damaged.
extends_documentation_fragment:
  - opskit.runbooks._attributes
  - opskit.runbooks._backup
  - opskit.runbooks._backup.lock
attributes:
  check_mode:
    support: full
    details:
      - Everything is read in check mode too; only the verdict is not recorded. Database images are decompressed into the store's C(cache).
  diff_mode:
    support: full
  idempotent:
    support: full
    details:
      - A change is a set whose standing changed. That the verdict was confirmed is recorded each time, and is no change.
  safe_file_operations:
    support: full
options:
  set:
    description:
      - Which sets. An id, V(latest) for the newest one, or V(all).
    type: str
    default: latest
  level:
    description:
      - V(stored) compares the bytes of every object with the hash that it is named by.
      - V(content) also decompresses every object, compares every file with the file list, and has each database image checked by its engine.
    type: str
    choices: [stored, content]
    default: content
seealso:
  - module: opskit.runbooks.backup_set
"""

EXAMPLES = r"""
- name: Verify everything once a month
  opskit.runbooks.backup_verify:
    store: /var/backups/opskit/gateway
    application: gateway
    set: all
"""

RETURN = r"""
action:
  description: V(verified) when the standing of a set changed, V(none) otherwise.
  returned: always
  type: str
  sample: verified
plan:
  description: The sets whose standing changes, as steps.
  returned: always
  type: list
  elements: dict
  sample:
    - step: record proof
      target: 20261123T020000Z-7f3a
      reason: "content verified, before: none"
checks:
  description: What was looked at after recording.
  returned: always
  type: list
  elements: dict
  sample: []
sets:
  description: What was found.
  returned: always
  type: list
  elements: dict
  contains:
    id:
      description: The set.
      type: str
    level:
      description: How far it was read.
      type: str
    ok:
      description: Whether nothing was wrong.
      type: bool
    failures:
      description: What was wrong. Each with C(object), empty where it is the set itself, and C(reason).
      type: list
      elements: dict
duration_s:
  description: Seconds that it took.
  returned: always
  type: float
  sample: 2.4
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.opskit.runbooks.plugins.module_utils._application import wiring
from ansible_collections.opskit.runbooks.plugins.module_utils._core.module import run_module


def main() -> None:
    spec = wiring.store_spec()
    spec.update(wiring.lock_spec())
    spec.update(
        set={"type": "str", "default": "latest"},
        level={"type": "str", "choices": ["stored", "content"], "default": "content"},
    )
    run_module(AnsibleModule(argument_spec=spec, supports_check_mode=True), wiring.backup_verify)


if __name__ == "__main__":
    main()
