# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A restore that does not verify: back by itself where that is better, and both ways open where it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.opskit.runbooks.tests.e2e.conftest import Make
from ansible_collections.opskit.runbooks.tests.e2e.world import Run, World, free_port, wait_until

SOON = ("-e", "application_start_timeout=6")
CONFIRM = ("-e", "opskit_confirm=one")


class Broken:
    """An application whose newest set was saved with settings under which it listens where nobody asks."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.application = world.application
        self.other_port = free_port()
        self.application.set_environment(GATEWAY_PORT=self.other_port)
        world.play("backup")
        self.saved = self.application.files()
        self.application.set_environment(GATEWAY_PORT=self.application.port)
        self.application.write_uploads(1, 1000, seed=1)
        self.before = self.application.files()
        self.rows = self.application.rows()

    def restore(self) -> Run:
        return self.world.play("restore", *SOON, *CONFIRM, fails=True)

    def kept(self, run: Run) -> list[Path]:
        aside = run.stats["opskit_restore"]["one"]["aside"]
        assert isinstance(aside, list)
        return [Path(path) for path in aside]


@pytest.fixture(scope="module")
def broken(make_world: Make) -> Broken:
    return Broken(make_world("one"))


def test_goes_back_by_itself_where_it_was_ready(broken: Broken) -> None:
    application = broken.application
    run = broken.restore()
    assert application.ready()
    assert not application.ready(broken.other_port)
    assert application.files() == broken.before
    assert application.rows() == broken.rows
    assert run.stats["opskit_restore"]["one"]["state"] == "went_back"
    assert application.journal()[-1]["outcome"] == "failed"
    assert "the state before the restore, which was ready, is back in place" in run.said()


def test_keeps_both_states_closed_where_it_was_not_ready(broken: Broken) -> None:
    application = broken.application
    application.stop()
    broken.before, broken.rows = application.files(), application.rows()
    run = broken.restore()
    assert not application.running
    assert not application.ready()
    assert not application.ready(broken.other_port)
    assert application.files() == broken.saved
    assert run.stats["opskit_restore"]["one"]["state"] == "closed"
    kept = broken.kept(run)
    assert kept
    assert all(path.exists() for path in kept)
    assert any((path / "projects").is_dir() for path in kept)

    go_on = run.command("To go on with the state as it is now, start the application on the host")
    broken.world.run_shell(go_on)
    wait_until(lambda: application.ready(broken.other_port), "the restored state runs, where its settings say", 20)

    go_back = run.command("To go back to the state before this restore, which is kept")
    broken.world.paste(go_back)
    assert application.ready()
    assert not application.ready(broken.other_port)
    assert application.files() == broken.before
    assert application.rows() == broken.rows


def test_what_is_kept_goes_when_told(broken: Broken) -> None:
    application = broken.application
    run = broken.world.play("restore", *CONFIRM, "-e", "restore_state=purged")
    assert run.stats["opskit_restore"]["one"]["changed"] is True
    assert not (application.root / ".opskit-restore").exists()
    assert application.ready()
    assert application.files() == broken.before
    assert "there is no restore to go back from" in broken.world.play("restore_rollback", *CONFIRM, fails=True).said()
    assert application.ready()
