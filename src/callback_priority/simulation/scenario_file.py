"""Scenarios as files: TOML or JSON to a `Scenario` and the treatments to try on it, or every problem at once.

Times are in seconds, numbers are numbers, and the settings of a treatment are written as in ``[callback_priority]``: the same names,
the same texts, read by the same parser and held against the scenario's pools and slots as the scheduler holds them against its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs

from callback_priority.core.classes import CALLBACK_CLASSES, CLASS_ORDER, ServiceClass
from callback_priority.errors import ConfigurationError, Problem
from callback_priority.policy.parse import load_settings, parse_settings
from callback_priority.policy.settings import DEFAULT_POOL, INHERIT, Settings
from callback_priority.policy.spelling import guess
from callback_priority.simulation.arrivals import DAY_SECONDS, Arrivals, Diurnal, Poisson, Regular, Storms
from callback_priority.simulation.document import Problems, Table
from callback_priority.simulation.engine import Accounting, Treatment
from callback_priority.simulation.holds import Empirical, Exponential, Fixed, Holds, LogNormal
from callback_priority.simulation.scenario import UNLIMITED_POOL, Crash, Scenario, Stream

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["ScenarioFile", "load_scenario", "parse_scenario", "read_scenario"]

SCENARIO_KEYS: Final = (
    "description",
    "seconds",
    "warm_up_seconds",
    "slots",
    "schedulers",
    "loop_seconds",
    "max_tis_per_query",
    "pools",
    "work",
    "crashes",
    "settings",
)
WORK_KEYS: Final = (
    "name",
    "class",
    "pool",
    "width",
    "priority",
    "dags",
    "batch",
    "spread_seconds",
    "arrivals",
    "holds",
)
CRASH_KEYS: Final = ("at_seconds", "scheduler", "down_seconds", "takeover_seconds")
ARRIVALS_KEYS: Final = {
    "endless": (),
    "poisson": ("per_second", "from_seconds"),
    "regular": ("every_seconds", "from_seconds"),
    "diurnal": ("per_second", "swing", "peak_seconds", "period_seconds"),
    "storms": ("at_seconds",),
}
HOLDS_KEYS: Final = {
    "fixed": ("seconds",),
    "exponential": ("mean_seconds",),
    "log_normal": ("median_seconds", "sigma"),
    "empirical": ("seconds",),
}
TREATMENT_KEYS: Final = ("accounting", "shared_tags", "changes")

NO_END: Final = -1
"""How a pool without end is written, here as in Airflow."""

_MOST_SLOTS: Final = 1_000_000
_MOST_PRIORITY: Final = 2**31 - 1
_SHORTEST: Final = 0.000_001
_DEFAULT_TREATMENT: Final = "default"


@attrs.frozen(kw_only=True)
class ScenarioFile:
    """What a file says.

    Args:
        scenario: What wants slots, and what there is.
        treatments: The settings to try on it, in the order of the file; one with the defaults if it names none.
    """

    scenario: Scenario
    treatments: tuple[Treatment, ...]


def read_scenario(path: Path) -> ScenarioFile:
    """Read a file.

    Args:
        path: A TOML file, or a JSON file if its name ends in ``.json``.

    Raises:
        ConfigurationError: Something in it is invalid; it carries every problem.
        OSError: It cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        problem = Problem(key=str(path), value=f"byte {error.start}", remedy="is not UTF-8")
        raise ConfigurationError([problem], f"scenario {path.stem!r}") from error
    return load_scenario(text, path.stem, is_json=path.suffix == ".json")


def load_scenario(text: str, name: str, *, is_json: bool = False) -> ScenarioFile:
    """Read what a file holds.

    Args:
        text: All of it.
        name: The scenario's name.
        is_json: Whether it is JSON, not TOML.

    Raises:
        ConfigurationError: Something in it is invalid; it carries every problem.
    """
    return parse_scenario(_document(text, name, is_json=is_json), name)


def parse_scenario(document: Mapping[str, object], name: str) -> ScenarioFile:
    """Read what a TOML or JSON file holds.

    Args:
        document: Its top table.
        name: The scenario's name.

    Raises:
        ConfigurationError: Something in it is invalid; it carries every problem.

    >>> work = {"name": "alerts", "class": "deadlines", "holds": {"kind": "fixed", "seconds": 6}}
    >>> parse_scenario({"seconds": 60, "slots": 4, "work": [work]}, "mine")
    Traceback (most recent call last):
    ...
    callback_priority.errors.ConfigurationError: scenario 'mine' has 2 problem(s):
      - work[0].class = 'deadlines': write one of deadline, task_callback, dag_callback, task; did you mean 'deadline'?
      - work[0].arrivals = missing: write a table with a kind, such as { kind = "endless" }
    """
    problems = Problems()
    scenario = _scenario(Table(problems, "", document, SCENARIO_KEYS), problems, name)
    treatments = _treatments(Table(Problems(), "", document, SCENARIO_KEYS), problems, scenario)
    if problems:
        raise ConfigurationError(problems, f"scenario {name!r}")
    return ScenarioFile(scenario=scenario, treatments=treatments)


def _document(text: str, name: str, *, is_json: bool) -> Mapping[str, object]:
    try:
        found: object = (
            json.loads(text, object_pairs_hook=_object, parse_constant=_no_number)
            if is_json
            else tomllib.loads(text)
        )
    except (ValueError, RecursionError) as error:
        kind = "JSON" if is_json else "TOML"
        problem = Problem(key=name, value=f"{len(text)} characters", remedy=f"is not {kind}: {error}")
        raise ConfigurationError([problem], f"scenario {name!r}") from error
    if not isinstance(found, Mapping):
        problem = Problem(key=name, value=type(found).__name__, remedy="write one JSON object")
        raise ConfigurationError([problem], f"scenario {name!r}")
    return found


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is there more than once; keep one of them")
        found[key] = value
    return found


def _no_number(text: str) -> object:
    raise ValueError(f"{text} is no number that could be counted with")


# The scenario -------------------------------------------------------------------------------------------------


def _scenario(top: Table, problems: Problems, name: str) -> Scenario:
    seconds = top.seconds("seconds", None, least=1.0)
    warm_up = top.seconds("warm_up_seconds", 0.0)
    if warm_up >= seconds:
        top.tell("warm_up_seconds", f"leaves nothing to measure; write less than the {seconds:g} seconds")
    schedulers = top.whole("schedulers", 1, least=1, most=100)
    pools = _pools(top, problems)
    works = [_work(each, problems, pools) for each in top.tables("work", WORK_KEYS)]
    if not works:
        top.tell("work", "write at least one table under [[work]]")
    names = [each.name for each in works if each is not None]
    for each in sorted({name for name in names if names.count(name) > 1}):
        problems.tell("work", each, "is the name of more than one; each draws its random numbers by its name")
    without_end = [each.pool for each in works if each is not None and each.endless]
    for pool in sorted({pool for pool in without_end if without_end.count(pool) > 1}):
        problems.tell("work", pool, "is the pool of more than one backlog without end; keep one of them")
    crashes = top.tables("crashes", CRASH_KEYS)
    return Scenario(
        name=name,
        description=top.name("description", "-", "a sentence") if "description" in top else "",
        seconds=seconds,
        warm_up_seconds=warm_up,
        slots=top.whole("slots", None, least=1, most=_MOST_SLOTS),
        schedulers=schedulers,
        loop_seconds=top.seconds("loop_seconds", 2.0, most=3600.0),
        tasks_per_query=top.whole("max_tis_per_query", 16, least=1, most=_MOST_SLOTS)
        if "max_tis_per_query" in top
        else None,
        pools=pools,
        streams=tuple(each for each in works if each is not None),
        crashes=tuple(_crash(each, schedulers) for each in crashes),
    )


def _pools(top: Table, problems: Problems) -> dict[str, int | None]:
    if "pools" not in top:
        return {DEFAULT_POOL: UNLIMITED_POOL}
    pools: dict[str, int | None] = {}
    for name, path, value in top.entries("pools", "pools with their slots"):
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if not is_number or not NO_END <= int(str(value)) <= _MOST_SLOTS:
            problems.tell(path, value, f"write a whole number of slots to {_MOST_SLOTS}, or -1 for no end")
        pools[name] = UNLIMITED_POOL if value == NO_END or not is_number else int(str(value))
    if not pools:
        top.tell("pools", 'names no pool; write one, such as default_pool = 128, or remove "pools"')
    return pools


def _work(table: Table, problems: Problems, pools: Mapping[str, int | None]) -> Stream | None:
    name = table.name("name", None, "a name")
    word = table.choice("class", None, [cls.value for cls in CLASS_ORDER])
    pool = table.name("pool", DEFAULT_POOL, "a pool's name")
    if pool and pool not in pools:
        table.tell("pool", f"[pools] has no such pool{guess(pool, pools)}; it has {', '.join(pools)}")
    width = table.whole("width", 1, least=1, most=_MOST_SLOTS)
    slots = pools.get(pool)
    if word is not None and word != ServiceClass.TASK.value and width > 1:
        table.tell("width", "a callback takes one slot; remove it")
    elif slots is not None and width > slots:
        table.tell("width", f"can never run: the pool has {slots} slots; write fewer, or give the pool more")
    holds = _holds(table, problems)
    arrivals = _arrivals(table, problems)
    if _is_endless(table):
        if word != ServiceClass.TASK.value:
            table.tell("arrivals", "only tasks have a backlog without end; write arrivals of another kind")
        for key in ("batch", "dags", "spread_seconds"):
            if key in table:
                table.tell(key, "has no meaning for a backlog without end; remove it")
    if word is None or holds is None:
        return None
    return Stream(
        name=name,
        service_class=ServiceClass(word),
        pool=pool,
        width=width,
        priority=table.whole("priority", 0, least=-_MOST_PRIORITY, most=_MOST_PRIORITY),
        dags=table.whole("dags", 1, least=1, most=100_000),
        batch=table.whole("batch", 1, least=1, most=1_000_000),
        spread_seconds=table.seconds("spread_seconds", 0.0),
        arrivals=arrivals,
        holds=holds,
    )


def _is_endless(table: Table) -> bool:
    value = table.get("arrivals")
    return isinstance(value, Mapping) and value.get("kind") == "endless"


def _kind(
    table: Table, problems: Problems, key: str, kinds: Mapping[str, tuple[str, ...]], example: str
) -> tuple[str, Table] | None:
    """A table that says what it is by its ``kind``."""
    value = table.get(key)
    if not isinstance(value, Mapping) or "kind" not in value:
        table.tell(key, f"write a table with a kind, such as {example}")
        return None
    every = tuple(dict.fromkeys(each for keys in kinds.values() for each in keys))
    kind = Table(Problems(), "", value, ("kind", *every)).get("kind")
    keys = ("kind", *kinds[kind]) if isinstance(kind, str) and kind in kinds else ("kind", *every)
    inner = Table(problems, table.path(key), value, keys)
    found = inner.choice("kind", None, list(kinds))
    return None if found is None else (found, inner)


def _arrivals(table: Table, problems: Problems) -> Arrivals | None:
    found = _kind(table, problems, "arrivals", ARRIVALS_KEYS, '{ kind = "endless" }')
    if found is None:
        return None
    kind, inner = found
    if kind == "poisson":
        return Poisson(rate_per_second=_rate(inner), from_seconds=inner.seconds("from_seconds", 0.0))
    if kind == "regular":
        return Regular(
            every_seconds=inner.seconds("every_seconds", None, least=0.001),
            from_seconds=inner.seconds("from_seconds", 0.0),
        )
    if kind == "diurnal":
        period = inner.seconds("period_seconds", DAY_SECONDS, least=1.0)
        return Diurnal(
            rate_per_second=_rate(inner),
            swing=inner.number("swing", 0.8, least=0.0, most=1.0),
            peak_seconds=inner.seconds("peak_seconds", period / 2),
            period_seconds=period,
        )
    if kind == "storms":
        return Storms(at_seconds=inner.numbers("at_seconds", least=0.0))
    return None


def _rate(table: Table) -> float:
    return table.number("per_second", None, least=_SHORTEST, most=10_000.0)


def _holds(table: Table, problems: Problems) -> Holds | None:
    found = _kind(table, problems, "holds", HOLDS_KEYS, '{ kind = "exponential", mean_seconds = 60 }')
    if found is None:
        return None
    kind, inner = found
    if kind == "fixed":
        return Fixed(seconds=inner.seconds("seconds", None, least=_SHORTEST))
    if kind == "exponential":
        return Exponential(mean_seconds=inner.seconds("mean_seconds", None, least=_SHORTEST))
    if kind == "log_normal":
        return LogNormal(
            median_seconds=inner.seconds("median_seconds", None, least=_SHORTEST),
            sigma=inner.number("sigma", None, least=0.0, most=5.0),
        )
    return Empirical(seconds=inner.numbers("seconds", least=_SHORTEST))


def _crash(table: Table, schedulers: int) -> Crash:
    return Crash(
        at_seconds=table.seconds("at_seconds", None),
        scheduler=table.whole("scheduler", 0, least=0, most=schedulers - 1),
        down_seconds=table.seconds("down_seconds", 10.0),
        takeover_seconds=table.seconds("takeover_seconds", 60.0),
    )


# The treatments -----------------------------------------------------------------------------------------------


def _treatments(top: Table, problems: Problems, scenario: Scenario) -> tuple[Treatment, ...]:
    found = []
    for name, path, value in top.entries("settings", "treatments, each with its options"):
        if not isinstance(value, Mapping):
            problems.tell(path, value, "write a table of options, such as { weights = '{\"task\": 3}' }")
            continue
        own = {key: inner for key, inner in value.items() if key in TREATMENT_KEYS}
        options = {key: inner for key, inner in value.items() if key not in TREATMENT_KEYS}
        table = Table(problems, path, own, TREATMENT_KEYS)
        accounting = table.choice(
            "accounting", Accounting.SLOT_TIME.value, [each.value for each in Accounting]
        )
        found.append(
            Treatment(
                name=name,
                settings=_settings(problems, path, options, scenario),
                changes=_changes(problems, path, table, options, scenario),
                accounting=Accounting(accounting or Accounting.SLOT_TIME),
                shared_tags=table.flag("shared_tags", default=True),
            )
        )
    return tuple(found) or (Treatment(name=_DEFAULT_TREATMENT),)


def _changes(
    problems: Problems, path: str, table: Table, options: Mapping[str, object], scenario: Scenario
) -> tuple[tuple[float, Settings], ...]:
    """Settings from a time on: the treatment's own with some of them changed."""
    value = table.get("changes")
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(each, Mapping) for each in value):
        table.tell("changes", "write a list of tables, each with at_seconds and the options that change")
        return ()
    changes: list[tuple[float, Settings]] = []
    current = dict(options)
    for at, each in enumerate(value):
        where = f"{path}.changes[{at}]"
        time = {key: inner for key, inner in each.items() if key == "at_seconds"}
        seconds = Table(problems, where, time, ("at_seconds",)).seconds("at_seconds", None)
        if changes and seconds <= changes[-1][0]:
            problems.tell(f"{where}.at_seconds", seconds, "write them in the order of their times")
        current |= {key: inner for key, inner in each.items() if key != "at_seconds"}
        changes.append((seconds, _settings(problems, where, current, scenario)))
    return tuple(changes)


def _settings(problems: Problems, path: str, options: Mapping[str, object], scenario: Scenario) -> Settings:
    texts = {}
    for key, value in options.items():
        if isinstance(value, str):
            texts[key] = value
        else:
            problems.tell(f"{path}.{key}", value, "write it in quotes, as it stands in [callback_priority]")
    try:
        settings = load_settings(
            texts,
            pool_slots={DEFAULT_POOL: UNLIMITED_POOL, **scenario.pools},
            # What is wrong with the slots themselves is told already.
            parallelism=None if any(each.key == "slots" for each in problems) else scenario.slots,
        )
    except ConfigurationError as error:
        problems += [attrs.evolve(each, key=f"{path}.{each.key}") for each in error.problems]
        return parse_settings({})
    for work in scenario.streams:
        if work.service_class not in CALLBACK_CLASSES:
            continue
        home = settings.callback_pool.get(work.service_class, INHERIT)
        if home not in (INHERIT, work.pool):
            problems.tell(
                f"{path}.callback_pool",
                texts.get("callback_pool", home),
                f"sends {work.service_class} callbacks to {home!r}, and the work {work.name!r} draws on "
                f"{work.pool!r}; let both name the same pool",
            )
    return settings
