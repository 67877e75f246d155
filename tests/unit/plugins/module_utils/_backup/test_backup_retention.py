# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which sets are kept: examples, what holds for all inputs, and pruning a real store."""

from __future__ import annotations

import os
import tempfile
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Dict, List, Set, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.opskit.runbooks.plugins.module_utils._backup import prune
from ansible_collections.opskit.runbooks.plugins.module_utils._backup.retention import (
    FUTURE,
    UNVERIFIED_AGE,
    Candidate,
    Decision,
    Policy,
    days_lost,
    decide,
)
from ansible_collections.opskit.runbooks.plugins.module_utils._core.clock import parse_rfc3339
from ansible_collections.opskit.runbooks.plugins.module_utils._core.errors import OpskitError
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._backup.world import (
    SOAK,
    App,
    FakeClock,
    add_rows,
    flip_bit,
    plan_of,
)

NOW = datetime(2026, 11, 23, 12, tzinfo=timezone.utc)


def at(text: str, seq: int, verified: bool = True) -> Candidate:
    return Candidate(f"{text}#{seq}", seq, datetime.strptime(text, "%Y-%m-%d %H:%M").replace(tzinfo=timezone.utc), verified)


def days(*numbers: int) -> List[Candidate]:
    """A verified set so many days ago each, at noon."""
    return [Candidate(f"-{number}", 1000 - number, NOW - timedelta(days=number), True) for number in numbers]


def test_seven_days_four_weeks_three_months() -> None:
    decision = decide(days(*range(120)), Policy(), NOW)
    # Monday the 23rd; the weeks before end on the 22nd, 15th and 8th, the months on October 31st and September 30th.
    assert sorted(decision.kept, key=lambda name: -int(name)) == ["-0", "-1", "-2", "-3", "-4", "-5", "-6", "-8", "-15", "-23", "-54"]
    assert decision.kept["-0"] == ["newest verified", "daily 2026-11-23", "weekly 2026-W48", "monthly 2026-11"]
    assert decision.kept["-54"] == ["monthly 2026-09"]
    assert len(decision.deleted) == 109


@pytest.mark.parametrize(
    ("candidates", "policy", "kept"),
    [
        # Several a day fill one slot, and the newest by seq is the one.
        (["2026-11-22 01:00", "2026-11-22 23:00"], Policy(2, 0, 0), [1]),
        # By seq also where a clock ran back.
        (["2026-11-22 23:00", "2026-11-22 01:00"], Policy(2, 0, 0), [1]),
        # The last periods that have a set, however long ago.
        (["2020-01-01 00:00", "2020-06-01 00:00", "2026-11-22 00:00"], Policy(2, 0, 0), [1, 2]),
        # ISO weeks across a new year: both lie in 2026-W53.
        (["2026-12-31 00:00", "2027-01-03 00:00", "2027-01-04 00:00"], Policy(0, 2, 0), [1, 2]),
        (["2026-10-31 23:59", "2026-11-01 00:00"], Policy(0, 0, 2), [0, 1]),
        # A tier of none keeps none, but the newest verified one stays always.
        (["2026-11-21 00:00", "2026-11-22 00:00"], Policy(1, 0, 0), [1]),
        ([], Policy(), []),
    ],
)
def test_examples(candidates: List[str], policy: Policy, kept: List[int]) -> None:
    made = [at(text, seq) for seq, text in enumerate(candidates)]
    now = datetime(2027, 2, 1, tzinfo=timezone.utc)
    assert sorted(decide(made, policy, now).kept) == sorted(made[index].id for index in kept)


def test_what_was_never_verified() -> None:
    made = [at("2026-09-01 00:00", 1, False), at("2026-11-01 00:00", 2, False), at("2026-11-20 00:00", 3)]
    decision = decide(made, Policy(), NOW)
    assert sorted(decision.deleted) == [made[0].id]
    assert "older than 30 days, and a newer verified set exists" in decision.deleted[made[0].id]
    assert "not yet 30 days old" in decision.kept[made[1].id][0]
    # The newest one failed: what is old is all there is.
    failed = [*made, at("2026-11-21 00:00", 4, False)]
    assert decide(failed, Policy(1, 0, 0), NOW).deleted == {}


SETS = st.lists(st.tuples(st.integers(-20000, 400000), st.booleans()), max_size=40).map(
    lambda found: [Candidate(str(seq), seq, NOW - timedelta(minutes=minutes), verified) for seq, (minutes, verified) in enumerate(found)]
)
POLICIES = st.builds(Policy, st.integers(0, 10), st.integers(0, 6), st.integers(0, 6)).filter(any)


def left(candidates: List[Candidate], decision: Decision) -> List[Candidate]:
    return [item for item in candidates if item.id in decision.kept]


@settings(max_examples=300, deadline=None)
@given(SETS, POLICIES)
def test_what_always_holds(candidates: List[Candidate], policy: Policy) -> None:
    decision = decide(candidates, policy, NOW)
    ids = {item.id for item in candidates}
    assert set(decision.kept) | set(decision.deleted) == ids
    assert not set(decision.kept) & set(decision.deleted)
    assert all(all(reasons) and reasons for reasons in decision.kept.values())
    assert all(decision.deleted.values())
    past = [item for item in candidates if item.time <= NOW + FUTURE]
    for item in candidates:
        if item not in past:
            assert item.id in decision.kept
    verified = [item for item in past if item.verified]
    if verified:
        assert verified[-1].id in decision.kept
    if past and not past[-1].verified:
        assert not decision.deleted
    for item in candidates:
        if item.id in decision.deleted and not item.verified:
            assert item.time <= NOW - UNVERIFIED_AGE
            assert any(other.seq > item.seq for other in verified)
    total, lost = days_lost(candidates, decision)
    assert 0 <= lost <= total
    # Never more than the tiers hold together, but for the newest one, the future and what is not verified.
    if past and past[-1].verified:
        assert len([item for item in verified if item.id in decision.kept]) <= max(sum(policy), 1)


@settings(max_examples=300, deadline=None)
@given(SETS, POLICIES)
def test_deciding_again_changes_nothing(candidates: List[Candidate], policy: Policy) -> None:
    decision = decide(candidates, policy, NOW)
    again = decide(left(candidates, decision), policy, NOW)
    assert again.deleted == {}
    assert again.kept == decision.kept


@settings(max_examples=300, deadline=None)
@given(SETS, POLICIES, st.integers(0, 10000))
def test_a_newer_set_brings_nothing_back(candidates: List[Candidate], policy: Policy, minutes: int) -> None:
    """What is let go stays let go when a verified set is added, so what pruning deleted is never missed later."""
    decision = decide(candidates, policy, NOW)
    newer = Candidate("newer", len(candidates), NOW + timedelta(minutes=minutes), True)
    later = decide([*candidates, newer], policy, newer.time)
    assert "newer" in later.kept
    for name in decision.deleted:
        assert name in later.deleted


@settings(max_examples=200, deadline=None)
@given(SETS, POLICIES, POLICIES)
def test_a_larger_policy_keeps_no_less(candidates: List[Candidate], policy: Policy, more: Policy) -> None:
    larger = Policy(*(one + other for one, other in zip(policy, more)))
    assert set(decide(candidates, policy, NOW).kept) <= set(decide(candidates, larger, NOW).kept)


# a real store -------------------------------------------------------------------------------------


def build(tmp_path: Path, count: int, hours: float = 24) -> App:
    clock = FakeClock(datetime(2026, 3, 2, 2, tzinfo=timezone.utc))
    app = App(str(tmp_path), clock).build(rows=10)
    for number in range(count):
        app.write("config/gateway.toml", f"{number}\n")
        app.backup()
        clock.forward(hours=hours)
    return app


DAYS_WORK = st.lists(
    st.tuples(
        st.sets(st.sampled_from(["config/gateway.toml", "data/uploads/1.txt", "projects/a/files/7.txt", "rows"])),
        st.sampled_from(["content", "content", "content", "none"]),
        st.sampled_from([-40 * 24, -25, 0, 1, 23, 24, 24, 26, 8 * 24, 31 * 24]),
    ),
    min_size=1,
    max_size=6,
)
"""What changes before a set, how it is verified, and the hours from it to the next one."""


@settings(max_examples=150 if SOAK else 6, deadline=None)
@given(DAYS_WORK, POLICIES)
def test_pruning_takes_no_object_that_a_kept_set_needs(work: List[Tuple[Set[str], str, int]], policy: Policy) -> None:
    """Real sets that share objects: what is left is whole, and nothing else is left."""
    with tempfile.TemporaryDirectory() as top:
        clock = FakeClock(datetime(2026, 3, 2, 2, tzinfo=timezone.utc))
        app = App(top, clock).build(rows=10)
        for number, (changes, level, hours) in enumerate(work):
            for path in changes - {"rows"}:
                app.write(path, f"{number:3}\n" * 50)
            if "rows" in changes:
                add_rows(app.at("data/app.db"), 3)
            app.backup(verify=level, unchanged_interval=0, shrink_limit=0)
            clock.forward(hours=hours)
        before = app.info()["sets"]
        past = [one for one in before if parse_rfc3339(one["time"]) <= clock.now() + FUTURE]
        options: Dict[str, Any] = dict(policy._asdict(), delete_more_than_half=True)
        result = app.prune(**options)
        left = [one["id"] for one in app.info()["sets"]]
        assert left == [one["id"] for one in before if one["id"] not in {gone["id"] for gone in result["deleted"]}]
        # Newest goes by the order in which they were made.
        assert {one["id"] for one in before if one not in past} <= set(left)
        assert {one["id"] for one in [one for one in past if one["verified"] == "content"][:1]} <= set(left)
        assert not past or past[0]["id"] in left
        needed: Set[str] = set()
        for one in left:
            lines = Path(app.set_file(one, "SHA256SUMS")).read_text().splitlines()
            needed.update(os.path.basename(line) for line in lines if "/objects/" in line)
        assert {os.path.basename(path) for path in app.objects()} == needed
        assert app.verify(check=True, set="all")["failure"] == ""
        assert not app.prune(**options)["changed"]


def test_pruning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = build(tmp_path, 9)
    ids = [one["id"] for one in app.info()["sets"]]
    objects = app.objects()
    results = [app.prune(check=c, daily=5, weekly=0, monthly=0) for c in (True, False, True, False)]
    assert [result["changed"] for result in results] == [True, True, False, False]
    assert plan_of(results[0]) == plan_of(results[1]) != []
    assert [one["id"] for one in app.info()["sets"]] == ids[:5]
    assert [one["id"] for one in results[1]["deleted"]] == ids[5:]
    gone = set(objects) - set(app.objects())
    # Each set had one object of its own; what is shared stays.
    assert len(gone) == 4
    trash = os.path.join(app.store, "trash")
    assert results[1]["freed_bytes"] == sum(os.path.getsize(os.path.join(trash, os.path.basename(path))) for path in gone)
    assert app.verify(set="all")["failure"] == ""
    for one in ids[:5]:
        app.restore(set=one)
    # A day later the trash goes, by the clock of the disk.
    now = prune.time.time()
    monkeypatch.setattr(prune.time, "time", lambda: now + prune.TRASH_S + 60)
    result = app.prune(daily=5, weekly=0, monthly=0)
    assert {step["step"] for step in result["plan"]} == {"empty trash"}
    assert os.listdir(trash) == []
    assert not app.prune(daily=5, weekly=0, monthly=0)["changed"]


def test_more_than_half_only_when_told(tmp_path: Path) -> None:
    app = build(tmp_path, 5)
    options: Dict[str, Any] = {"daily": 2, "weekly": 0, "monthly": 0}
    for check in (True, False):
        with pytest.raises(OpskitError, match=r"take away 3 of the 5 days.*delete_more_than_half"):
            app.prune(check=check, **options)
    assert len(app.info()["sets"]) == 5
    assert len(app.prune(delete_more_than_half=True, **options)["deleted"]) == 3


def test_a_policy_that_keeps_nothing(tmp_path: Path) -> None:
    app = build(tmp_path, 1)
    nothing: Dict[str, Any] = {"daily": 0, "weekly": 0, "monthly": 0}
    for options, words in ((nothing, "daily, weekly and monthly are all 0"), ({"daily": -1}, "daily.*0 or more")):
        with pytest.raises(OpskitError, match=words):
            app.prune(**options)


def test_nothing_goes_after_a_failed_set(tmp_path: Path) -> None:
    app = build(tmp_path, 3)
    newest = app.opened().sets()[-1]
    before = {name for one in app.opened().sets()[:-1] for name in one.objects}
    (name,) = set(newest.objects) - before
    flip_bit(app.opened().object_path(name))
    app.verify()
    assert not app.prune(daily=1, weekly=0, monthly=0, delete_more_than_half=True)["changed"]
    assert len(app.info()["sets"]) == 3


def test_what_an_interrupted_run_left_among_the_objects(tmp_path: Path) -> None:
    app = build(tmp_path, 1)
    stray = os.path.join(app.store, "objects/00", "0" * 64 + ".tar.zst")
    os.makedirs(os.path.dirname(stray), exist_ok=True)
    Path(stray).write_bytes(b"x" * 10)
    result = app.prune()
    assert plan_of(result) == [("delete object", os.path.basename(stray), "no set needs it")]
    assert result["freed_bytes"] == 10
    assert app.verify()["failure"] == ""
