# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a module of this collection with a clock that stands at a given moment: simulated MODULE MOMENT ARGUMENTS."""

from __future__ import annotations

import importlib
import sys
from datetime import datetime

from ansible_collections.opskit.runbooks.plugins.module_utils._core import clock, module

MODULES = "ansible_collections.opskit.runbooks.plugins.modules."


def main() -> None:
    program, name, moment, arguments = sys.argv

    class Standing(clock.Clock):
        def now(self) -> datetime:
            return datetime.fromisoformat(moment)

    vars(module)["Clock"] = Standing
    sys.argv = [program, arguments]
    importlib.import_module(MODULES + name).main()


if __name__ == "__main__":
    main()
