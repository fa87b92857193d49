"""``python -m tests.tuning``: tunings of scenarios that nobody has looked at, checked with seeds that nobody has used.

First come three scenarios of the library, with goals that can be met and goals that cannot. Then twenty are drawn at random: tasks
that never end to wait; alerts, at random or in storms; in some of them a flood of other callbacks, or a pool that is full. Goals are
drawn, too, and some contradict one another or cannot be met. Where a tuning says that they are met, each must be met by nine in ten of
thirty seeds that neither its search nor its own check has used. Where one is not, or nothing is promised, a judge that knows nothing
of the tuning tries more than a hundred other settings (`tests.tuning.judge`): what it finds is feasible, and the tuning was wrong.

It ends non-zero if more than one in ten promised too much, or overlooked what there is.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from itertools import chain

from callback_priority.policy.parse import parse_settings
from callback_priority.policy.render import render_settings
from callback_priority.policy.settings import Settings
from callback_priority.simulation.engine import Treatment
from callback_priority.simulation.goals import parse_goals
from callback_priority.simulation.results import run
from callback_priority.simulation.tune import SEEDS, TRIALS, tune
from callback_priority.simulation.tuned import Verdict, section_text
from tests.tuning.generated import generated
from tests.tuning.judge import judged, meets
from tests.tuning.kept import kept

FRESH_SEED = 50_000_000
REQUIRED = 0.9
TOO_MUCH = "promised too much"
SAID = {Verdict.CONTRADICTORY: "said", Verdict.UNREACHABLE: "said", Verdict.UNSURE: "unsure"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.tuning", description=__doc__.splitlines()[0])
    parser.add_argument("--scenarios", type=int, default=20)
    parser.add_argument(
        "--kept", action=argparse.BooleanOptionalAction, default=True, help="those of the library, too"
    )
    parser.add_argument("--first", type=int, default=1, help="the number of the first scenario")
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--fresh", type=int, default=30, help="so many fresh seeds for each")
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    outcomes: Counter[tuple[bool, str]] = Counter()
    met, judged_runs = 0, 0
    numbers = range(arguments.first, arguments.first + arguments.scenarios)
    drawn = ((str(number), *generated(number)) for number in numbers)
    for name, scenario, text in chain(kept() if arguments.kept else (), drawn):
        goals = parse_goals(text)
        began = time.monotonic()
        found = tune(
            scenario,
            goals,
            trials=arguments.trials,
            seeds=arguments.seeds,
            jobs=arguments.jobs,
        )
        took = time.monotonic() - began
        line = f"{name:>3} {text}: {found.verdict}"
        if found.verdict is Verdict.MET:
            settings = parse_settings(render_settings(found.settings))
            treatment = Treatment(name="found", settings=settings)
            seeds = range(FRESH_SEED, FRESH_SEED + arguments.fresh)
            results = [run(scenario, treatment, seed=seed) for seed in seeds]
            parts = []
            for goal in goals:
                of = [meets(goal, each.classes[goal.service_class]) for each in results]
                parts.append(sum(of) / len(of))
                met, judged_runs = met + sum(of), judged_runs + len(of)
            line += ", with fresh seeds " + " and ".join(f"{each:.0%}" for each in parts)
            outcome = "met" if min(parts) >= REQUIRED else TOO_MUCH
        else:
            outcome = SAID[found.verdict]
        is_feasible = True
        if outcome != "met":
            others, tried = judged(scenario, goals)
            line += f", the judge tried {tried} settings" + (f" and found {render(others)}" if others else "")
            is_feasible = others is not None
        outcomes[is_feasible, outcome] += 1
        print(f"{line}; {found.runs} runs, {took:.0f} s", flush=True)
    feasible = sum(count for (is_feasible, _), count in outcomes.items() if is_feasible)
    infeasible = sum(outcomes.values()) - feasible
    well, too_much = outcomes[True, "met"], outcomes[True, TOO_MUCH]
    print(
        f"Of {feasible} feasible ones {well} were met, also with fresh seeds, {too_much} promised too much and "
        f"{feasible - well - too_much} were overlooked. "
        f"Of {infeasible} infeasible ones {outcomes[False, 'said']} were said to be, "
        f"{outcomes[False, 'unsure']} were not promised and {outcomes[False, TOO_MUCH]} promised too much."
    )
    print(f"{met} of {judged_runs} goals of single runs were met ({met / max(1, judged_runs):.1%})")
    wrong = feasible - well + outcomes[False, TOO_MUCH]
    return 0 if wrong <= sum(outcomes.values()) / 10 else 1


def render(settings: Settings) -> str:
    """Settings on one line."""
    return " ".join(section_text(settings).splitlines()[1:])


if __name__ == "__main__":
    sys.exit(main())
