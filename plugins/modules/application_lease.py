#!/usr/bin/python
# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: application_lease
short_description: Say who is at work on an application, and keep other runbooks away meanwhile
version_added: 1.0.0
author: opskit contributors (@opskit)
description:
  - A lease is a file (mode 0600) with the runbook, the operator, the run, since when, and a time limit.
  - The same runbook takes the lease of another run over at once. Another runbook waits until it is released or the time limit is over.
  - What excludes work is the lock that each module of this collection holds while it is at work, and that dies with it.
    While one of the O(locks) is held, nobody's lease is taken over, not even with O(steal).
  - A lease whose end is further away than its own time limit is over, because then the clock was set back.
  - A file that is damaged says so. It is taken over with O(steal), or when it was written longer ago than O(seconds).
extends_documentation_fragment:
  - opskit.runbooks._attributes
attributes:
  check_mode:
    support: full
    details:
      - It waits and refuses as the real run does, and takes nothing.
  diff_mode:
    support: full
  idempotent:
    support: partial
    details:
      - Taking it again renews it, which is a change. Releasing what is not held by the run is none.
  safe_file_operations:
    support: full
options:
  path:
    description: The lease. Its folder is made where it is missing. A lock of the same name and C(.lock) lies beside it.
    type: path
    required: true
  runbook:
    description: Name of the runbook that is at work.
    type: str
    required: true
  run:
    description: Anything that names this run and no other. The lease belongs to it.
    type: str
    required: true
  operator:
    description: Who is at work.
    type: str
    default: ''
  controller:
    description: Name of the machine that Ansible runs on.
    type: str
    default: ''
  state:
    description:
      - V(taken) takes the lease, or renews it where the O(run) holds it already.
      - V(renewed) renews it, and fails where somebody else has taken it over meanwhile.
      - V(released) removes it where the O(run) holds it, and else changes nothing and says why.
    type: str
    choices: [taken, renewed, released]
    default: taken
  seconds:
    description: Time limit in seconds, counted from now on.
    type: int
    default: 3600
  wait:
    description: Seconds to wait for somebody else, so that it can be taken. V(0) asks once.
    type: int
    default: 0
  steal:
    description: Whether the lease of another runbook is taken over before its time limit.
    type: bool
    default: false
  locks:
    description: Lock files of the modules that may be at work. Those that are not there are held by nobody.
    type: list
    elements: path
    default: []
"""

EXAMPLES = r"""
- name: Say that an upgrade begins
  opskit.runbooks.application_lease:
    path: /var/lib/opskit/gateway/lease.json
    runbook: upgrade
    run: 20261123T020000Z-1f3a9c04
    operator: alice
    seconds: 1800
    locks:
      - /var/lib/opskit/gateway/restore.lock
      - /var/backups/opskit/gateway/lock

- name: Say that it is done
  opskit.runbooks.application_lease:
    path: /var/lib/opskit/gateway/lease.json
    runbook: upgrade
    run: 20261123T020000Z-1f3a9c04
    state: released
"""

RETURN = r"""
action:
  description: The O(state), or V(none) where there was nothing to do.
  returned: success
  type: str
  sample: taken
plan:
  description: The one step, or none.
  returned: success
  type: list
  elements: dict
  sample: [{step: take lease, target: /var/lib/opskit/gateway/lease.json, reason: nobody is at work}]
checks:
  description: What was looked at after the change.
  returned: success
  type: list
  elements: dict
  sample: [{check: lease read back, ok: true, detail: /var/lib/opskit/gateway/lease.json}]
holder:
  description: Who holds the lease now; in check mode, who held it before. Empty when nobody does.
  returned: success
  type: dict
  contains:
    runbook:
      description: What is at work.
      type: str
    operator:
      description: Who.
      type: str
    controller:
      description: From where.
      type: str
    since:
      description: When it was taken, RFC 3339, UTC.
      type: str
    expires:
      description: When its time limit is over, RFC 3339, UTC.
      type: str
  sample:
    runbook: upgrade
    operator: alice
    controller: admin1
    since: '2026-11-23T02:00:00Z'
    expires: '2026-11-23T02:30:00Z'
taken_over_from:
  description: Who held the lease until now, in the form of RV(holder). Empty when it was free, damaged or held by this run.
  returned: success
  type: dict
  sample: {}
reason:
  description: Why it was taken, or why it was not released.
  returned: success
  type: str
  sample: nobody is at work
duration_s:
  description: Seconds that it took.
  returned: success
  type: float
  sample: 0.002
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.opskit.runbooks.plugins.module_utils._application.lease import application_lease
from ansible_collections.opskit.runbooks.plugins.module_utils._core.module import run_module


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "runbook": {"type": "str", "required": True},
            "run": {"type": "str", "required": True},
            "operator": {"type": "str", "default": ""},
            "controller": {"type": "str", "default": ""},
            "state": {"type": "str", "choices": ["taken", "renewed", "released"], "default": "taken"},
            "seconds": {"type": "int", "default": 3600},
            "wait": {"type": "int", "default": 0},
            "steal": {"type": "bool", "default": False},
            "locks": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    run_module(module, application_lease)


if __name__ == "__main__":
    main()
