#!/usr/bin/python
# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_prune
short_description: Delete the sets that the retention policy lets go
version_added: 1.0.0
author: opskit contributors (@opskit)
description:
  - Keeps the newest verified set of each of the last so many days, ISO weeks and months (UTC) that have one, and deletes the others.
  - Only verified sets fill a slot. The newest verified one is never deleted, and nothing is deleted while the newest set is not verified.
  - Sets that were never verified go when they are 30 days old and a newer verified one exists. Sets dated in the future are kept.
  - A set that a verification or a restore reads at this moment is kept, with what it needs, until the next run.
  - What is deleted lies in the store's C(trash) for 24 hours.
extends_documentation_fragment:
  - opskit.runbooks._attributes
  - opskit.runbooks._backup
  - opskit.runbooks._backup.lock
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
  safe_file_operations:
    support: full
options:
  daily:
    description: How many days keep a set.
    type: int
    default: 7
  weekly:
    description: How many ISO weeks keep a set.
    type: int
    default: 4
  monthly:
    description: How many months keep a set.
    type: int
    default: 3
  delete_more_than_half:
    description:
      - Allow a run that leaves more than half of the days that have a verified set without one. Without this it is refused, because it is
        more often a wrong clock or policy than an intention.
    type: bool
    default: false
seealso:
  - module: opskit.runbooks.backup_set
"""

EXAMPLES = r"""
- name: Keep 7 days, 4 weeks and 3 months
  opskit.runbooks.backup_prune:
    store: /var/backups/opskit/gateway
    application: gateway
"""

RETURN = r"""
action:
  description: V(pruned) or V(none).
  returned: success
  type: str
  sample: pruned
plan:
  description: The steps, in order.
  returned: success
  type: list
  elements: dict
  sample:
    - step: delete set
      target: 20261101T020000Z-11ab
      reason: a newer set fills each of its slots, or its periods are over
checks:
  description: What was looked at afterwards.
  returned: success
  type: list
  elements: dict
  sample: []
kept:
  description: The sets that are kept, newest first, and every reason for each.
  returned: success
  type: list
  elements: dict
  sample:
    - id: 20261123T020000Z-7f3a
      reasons: [newest verified, daily 2026-11-23, weekly 2026-W48, monthly 2026-11]
deleted:
  description: The sets that are deleted, and why.
  returned: success
  type: list
  elements: dict
  sample:
    - id: 20261101T020000Z-11ab
      reason: a newer set fills each of its slots, or its periods are over
freed_bytes:
  description: Bytes of the objects that no set needs any more. They are free 24 hours later.
  returned: success
  type: int
  sample: 1234567
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
        daily={"type": "int", "default": 7},
        weekly={"type": "int", "default": 4},
        monthly={"type": "int", "default": 3},
        delete_more_than_half={"type": "bool", "default": False},
    )
    run_module(AnsibleModule(argument_spec=spec, supports_check_mode=True), wiring.backup_prune)


if __name__ == "__main__":
    main()
