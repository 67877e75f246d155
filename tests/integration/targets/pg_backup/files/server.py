# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A private PostgreSQL server. Usage: server.py FOLDER_OF_POSTGRES_PY FOLDER; it says in FOLDER/where how to reach it.

It ends when FOLDER/stop appears or FOLDER is gone, or after five minutes.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main() -> None:
    tools, folder = sys.argv[1], Path(sys.argv[2])
    sys.path.insert(0, tools)
    import postgres

    with postgres.server() as server:
        written = folder / "where.new"
        written.write_text(json.dumps({"host": server.host, "port": server.port}))
        written.rename(folder / "where")
        end = time.monotonic() + 300
        while folder.exists() and not (folder / "stop").exists() and time.monotonic() < end:
            time.sleep(0.1)


main()
