#!/usr/bin/python
# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: journal_entry
short_description: Append one line to the journal of runbooks on a host
version_added: 1.0.0
author: opskit contributors (@opskit)
description:
  - Appends one JSON object as a line (JSON Lines) to a file that only the user it runs as can read (mode 0600).
  - The line is written under a lock, flushed to disk and read back; several runs may write at the same time.
  - Whatever looks like a secret is replaced by asterisks. Do not rely on that; do not pass secrets.
extends_documentation_fragment:
  - opskit.runbooks._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: none
    details:
      - A journal records runs, and every run is a new one.
  safe_file_operations:
    support: partial
    details:
      - The journal is appended to in place. A line that could not be written to its end is taken back.
options:
  path:
    description: The journal. Its folder is made where it is missing.
    type: path
    required: true
  runbook:
    description: Name of the runbook that ran.
    type: str
    required: true
  outcome:
    description: How it ended.
    type: str
    choices: [ok, failed]
    required: true
  host:
    description: Name of the host in the inventory.
    type: str
    required: true
  application:
    description: Name of the application.
    type: str
    required: true
  operator:
    description: Who ran it.
    type: str
    default: ''
  reason:
    description: Why it was run.
    type: str
    default: ''
  error:
    description: What failed.
    type: str
    default: ''
  details:
    description: What the runbook wants to be remembered, small and without secrets.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Remember that a backup was taken
  opskit.runbooks.journal_entry:
    path: /var/lib/opskit/gateway/journal.jsonl
    runbook: backup
    outcome: ok
    host: gateway
    application: gateway
    operator: alice
    reason: before the upgrade
    details:
      set: 20261123T020000Z-7f3a
      changed: true
"""

RETURN = r"""
action:
  description: Always V(appended).
  returned: success
  type: str
  sample: appended
plan:
  description: The one step.
  returned: success
  type: list
  elements: dict
  sample: [{step: append line, target: /var/lib/opskit/gateway/journal.jsonl, reason: every run is recorded, bytes: 187}]
checks:
  description: What was looked at after the line was written.
  returned: success
  type: list
  elements: dict
  sample: [{check: line read back, ok: true, detail: 187 bytes at 0}]
path:
  description: The journal.
  returned: success
  type: str
  sample: /var/lib/opskit/gateway/journal.jsonl
entry:
  description: The entry as it stands in the journal, with the time (RFC 3339, UTC). Options that are empty are left out.
  returned: success
  type: dict
  sample:
    time: '2026-11-23T02:00:07Z'
    runbook: backup
    outcome: ok
    host: gateway
    application: gateway
duration_s:
  description: Seconds that it took.
  returned: success
  type: float
  sample: 0.002
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.opskit.runbooks.plugins.module_utils._application.journal import journal_entry
from ansible_collections.opskit.runbooks.plugins.module_utils._core.module import run_module


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "runbook": {"type": "str", "required": True},
            "outcome": {"type": "str", "choices": ["ok", "failed"], "required": True},
            "host": {"type": "str", "required": True},
            "application": {"type": "str", "required": True},
            "operator": {"type": "str", "default": ""},
            "reason": {"type": "str", "default": ""},
            "error": {"type": "str", "default": ""},
            "details": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    run_module(module, journal_entry)


if __name__ == "__main__":
    main()
