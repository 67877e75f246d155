# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Between Ansible and the engines: the only place where an error becomes ``fail_json``."""

from __future__ import annotations

from typing import Any, Callable, Dict

from ansible.module_utils.basic import AnsibleModule

from .clock import Clock
from .errors import OpskitError
from .operation import Operation, carry_out
from .redact import redact


def run_module(module: AnsibleModule, build: Callable[[Dict[str, Any], Clock], Operation]) -> None:
    """Build the operation from the module's parameters, carry it out, and leave the process.

    :param build: takes the parameters and the clock and returns the operation; it may raise :class:`OpskitError`
    """
    clock = Clock()
    try:
        operation = build(module.params, clock)
        result = carry_out(operation, module.check_mode, clock)
    except OpskitError as error:
        module.fail_json(msg=redact(str(error)), what=redact(error.what), where=error.where, todo=error.todo)
    except OSError as error:
        # What the operating system refuses is nearly always something an operator can mend.
        module.fail_json(
            msg=f"{error.filename or 'operating system'}: {error.strerror or error}. "
            "Mend what the message names (rights, space, mount) and run the same command again; nothing good was replaced."
        )
    for warning in result.pop("warnings_", []):
        module.warn(warning)
    if module._diff and result["plan"]:
        lines = [f"{step['step']} {step['target']}: {step['reason']}\n" for step in result["plan"]]
        result["diff"] = {"before": "", "after": "".join(lines)}
    failure = operation.failure()
    if failure:
        module.fail_json(msg=redact(failure), **result)
    module.exit_json(**result)
