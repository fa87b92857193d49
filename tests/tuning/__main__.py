"""``python -m tests.tuning``: tunings of scenarios that nobody has looked at, checked with seeds that nobody has used.

Twenty scenarios are drawn at random: tasks that never end to wait; alerts, at random or in storms; in some of them a flood of other
callbacks, or a pool that is full. Goals are drawn, too, and some contradict one another or cannot be met. Where a tuning says that they
are met, each must be met by nine in ten of thirty seeds that neither its search nor its own check has used.

It ends non-zero if more than one in ten of these tunings promised too much.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from callback_priority.policy.parse import parse_settings
from callback_priority.policy.render import render_settings
from callback_priority.simulation.engine import Treatment
from callback_priority.simulation.goals import Goal, parse_goals
from callback_priority.simulation.results import ClassResult, run
from callback_priority.simulation.tune import tune
from callback_priority.simulation.tuned import Verdict
from tests.tuning.generated import generated

FRESH_SEED = 50_000_000
REQUIRED = 0.9


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.tuning", description=__doc__.splitlines()[0])
    parser.add_argument("--scenarios", type=int, default=20)
    parser.add_argument("--first", type=int, default=1, help="the number of the first scenario")
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fresh", type=int, default=30, help="so many fresh seeds for each")
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    verdicts: Counter[Verdict] = Counter()
    kept_word = 0
    met, judged = 0, 0
    for number in range(arguments.first, arguments.first + arguments.scenarios):
        scenario, text = generated(number)
        goals = parse_goals(text)
        began = time.process_time()
        found = tune(
            scenario,
            goals,
            trials=arguments.trials,
            seeds=arguments.seeds,
            unseen_seeds=20,
            jobs=arguments.jobs,
        )
        verdicts[found.verdict] += 1
        line = f"{number:3} {text}: {found.verdict}"
        if found.verdict is Verdict.MET:
            settings = parse_settings(render_settings(found.settings))
            treatment = Treatment(name="found", settings=settings)
            seeds = range(FRESH_SEED, FRESH_SEED + arguments.fresh)
            results = [run(scenario, treatment, seed=seed) for seed in seeds]
            parts = []
            for goal in goals:
                of = [_meets(goal, each.classes[goal.service_class]) for each in results]
                parts.append(sum(of) / len(of))
                met, judged = met + sum(of), judged + len(of)
            kept_word += min(parts) >= REQUIRED
            line += ", with fresh seeds " + " and ".join(f"{each:.0%}" for each in parts)
        print(f"{line}; {found.runs} runs, {time.process_time() - began:.0f} s", flush=True)
    promised = verdicts[Verdict.MET]
    print(", ".join(f"{verdict}: {count}" for verdict, count in sorted(verdicts.items())))
    print(
        f"{kept_word} of {promised} kept their word; {met} of {judged} goals of single runs were met "
        f"({met / max(1, judged):.1%})"
    )
    return 0 if kept_word >= REQUIRED * promised else 1


def _meets(goal: Goal, found: ClassResult) -> bool:
    if goal.least_share is not None:
        return found.kept_share is None or goal.shortfall(found.kept_share) <= 0
    return goal.shortfall(found.delay_seconds[goal.quantile]) <= 0


if __name__ == "__main__":
    sys.exit(main())
