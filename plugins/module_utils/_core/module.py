# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Between Ansible and the engines: the only place where an error becomes ``fail_json``."""

from __future__ import annotations

import os
from typing import Any, Callable, Dict, NoReturn

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
        result = printable(carry_out(operation, module.check_mode, clock))
    except OpskitError as error:
        fail(module, str(error), what=redact(error.what), where=error.where, todo=error.todo)
    except OSError as error:
        # What the operating system refuses is nearly always something an operator can mend.
        fail(
            module,
            f"{os.fsdecode(error.filename or 'operating system')}: {error.strerror or error}. "
            "Mend what this names (rights, space, mount) and run the same command again.",
        )
    for warning in result.pop("warnings_", []):
        module.warn(warning)
    if module._diff and operation.difference():
        result["diff"] = {"prepared": printable(operation.difference())}
    elif module._diff and result["plan"]:
        lines = [f"{step['step']} {step['target']}: {step['reason']}\n" for step in result["plan"]]
        result["diff"] = {"before": "", "after": "".join(lines)}
    failure = operation.failure()
    if failure:
        fail(module, failure, **result)
    module.exit_json(**result)


def fail(module: AnsibleModule, message: str, **result: Any) -> NoReturn:
    """Leave the process with a message, redacted, and with what was found out so far."""
    module.fail_json(msg=printable(redact(message)), **printable(result))
    raise AssertionError("fail_json does not return")


def printable(value: Any) -> Any:
    """Return a result in which no text holds bytes that are not UTF-8: Ansible refuses a result with one.

    Such a byte in a file name is written as ``\\udcff``.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {printable(key): printable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [printable(item) for item in value]
    return value
