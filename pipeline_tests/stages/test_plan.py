"""The plan: what a sync would do."""

from __future__ import annotations

import asyncio
from pathlib import Path

from pipeline.stages.plan import make_plan
from pipeline_tests.world import open_world


def test_a_plan_costs_a_bad_file_no_attempt_and_says_that_it_is_not_counted(tmp_path: Path) -> None:
    with open_world(tmp_path) as world:
        world.write("good.md", "# Good\n\nText.\n")
        world.write("bad.md", "# Bad\n\nText.\n")
        world.faults(payloads={"bad.md": "not_json"})
        world.refresh()
        for _ in range(2):
            plan = asyncio.run(make_plan(world.export, run_id="command-plan"))
            assert (list(plan.failures), plan.chunks, plan.whole) == ([world.file_id("bad.md")], 1, False)
        assert {row.attempts for row in world.export.ledger.files().values()} == {0}
        world.faults()
        assert world.sync().ok
        world.assert_settled()
