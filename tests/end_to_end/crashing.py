"""One run in a process that the tests may kill at any moment."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from temper.core import catalog
from temper.core.goal import Goal
from temper.pipeline.optimize import optimize


def run_once(
    task: str, out: str, distribution: str, recipes: Sequence[Any], mark: str, said: str, resume: bool
) -> None:
    """Run or resume with the scripted search; each line of progress is appended to the file `said`."""
    os.environ |= {"PYTHONPATH": distribution, "TEMPER_TEST_RECIPES": json.dumps(recipes), "TEMPER_TEST_MARK": mark}
    sys.path.insert(0, distribution)
    catalog._entries.cache_clear()
    with Path(said).open("a", encoding="utf-8") as stream:

        def tell(line: str) -> None:
            print(line, file=stream, flush=True)

        tell("started")
        goal = Goal(minimize="size", max_drop=0.05)
        optimize(task, goal, out=out, trials=len(recipes), search="scripted", resume=resume, tell=tell)
