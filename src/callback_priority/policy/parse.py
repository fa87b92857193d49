"""From the text of the options to `Settings`, or to every problem at once.

Nothing is repaired silently and nothing is half applied: whoever reads the error must be able to fix the
section in one go, and whoever reads the section must be able to trust that it holds.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Final, TypedDict, TypeVar

import attrs

from callback_priority.core.classes import CALLBACK_CLASSES, CLASS_ORDER, ServiceClass
from callback_priority.core.policies import Policy
from callback_priority.core.quotas import Quota
from callback_priority.core.units import MAX_WEIGHT_MILLI, MILLI, Milliweight
from callback_priority.errors import ConfigurationError, Problem
from callback_priority.policy.checks import check_executors, check_pools, check_slots
from callback_priority.policy.json_text import Json, JsonObject, decode, quoted, shown
from callback_priority.policy.options import OPTIONS_BY_NAME, Option
from callback_priority.policy.settings import (
    EVERY_OTHER_POOL,
    INHERIT,
    DagPriority,
    Mode,
    PoolShare,
    Settings,
    WorkerCallbacks,
)
from callback_priority.policy.spelling import guess

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["load_settings", "parse_settings"]

_LONGEST_POOL: Final = 256
_LONGEST_DAG_ID: Final = 250
_LONGEST_EXECUTOR: Final = 256
_LONGEST_QUEUE: Final = 256
_MOST_SLOTS: Final = 2**31 - 1
_LARGEST_PRIORITY: Final = 2**31 - 1
_SMALLEST_WEIGHT: Final = Decimal("0.001")
_LARGEST_WEIGHT: Final = MAX_WEIGHT_MILLI // MILLI
_MOST_DECIMALS: Final = 30
_LONGEST_BARE: Final = 64
"""A name that nobody knows stands in quotes if it is longer."""

_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,30}(\.[0-9]{1,30})?(e[+-]?[0-9]{1,3})?", re.ASCII | re.IGNORECASE)

_YES: Final = frozenset({"t", "true", "1"})
_NO: Final = frozenset({"f", "false", "0"})

_UNSTORABLE: Final = re.compile(r"[\x00-\x1f\ud800-\udfff]")
"""Control characters, and halves of surrogate pairs, which JSON can spell but UTF-8 cannot."""

_E = TypeVar("_E", Mode, Policy, WorkerCallbacks)


def parse_settings(raw: Mapping[str, str]) -> Settings:
    """Read the section.

    Args:
        raw: The text of each option that is set, by option name; an option that is missing has its default.

    Returns:
        Settings that are valid in themselves; whether they suit the deployment is for `load_settings`.

    Raises:
        ConfigurationError: Something is invalid; it carries every problem.

    >>> parse_settings({"mode": "shadow", "weights": '{"task": 2.5}'}).weights[ServiceClass.TASK]
    2500
    >>> parse_settings({"mode": "activ"})
    Traceback (most recent call last):
    ...
    callback_priority.errors.ConfigurationError: [callback_priority] has 1 problem(s):
      - mode = 'activ': write one of off, shadow, active; did you mean 'active'?
    """
    reader = _Reader()
    settings = reader.read(raw)
    if reader.problems:
        raise ConfigurationError(reader.problems)
    return settings


def load_settings(
    raw: Mapping[str, str],
    *,
    pool_slots: Mapping[str, int | None],
    parallelism: int | None,
    executors: frozenset[str] | None = None,
) -> Settings:
    """Read the section and hold it against the deployment, so that one error lists the problems of both kinds.

    Args:
        raw: The text of each option that is set, by option name.
        pool_slots: The slots of every pool there is; ``None`` for a pool without end.
        parallelism: The slots of one scheduler; ``None`` for no end.
        executors: Every name that Airflow knows an executor by (`callback_priority.adapter.config` lists them);
            ``None`` leaves the names of executors unchecked.

    Raises:
        ConfigurationError: Something is invalid or does not suit; it carries every problem.
    """
    reader = _Reader()
    settings = reader.read(raw)
    problems = [*reader.problems, *check_pools(settings, pool_slots), *check_slots(settings, parallelism)]
    if executors is not None:
        problems += check_executors(settings, executors)
    if problems:
        raise ConfigurationError(problems)
    return settings


class _Share(TypedDict, total=False):
    """The keys of one class's share that were written, and valid."""

    reserve: int
    limit: int | None
    weight: Milliweight | None


_Shares = dict[ServiceClass, _Share]


@attrs.define
class _Reader:
    """Reads options one after another and collects what is wrong; what is wrong counts as not set."""

    problems: list[Problem] = attrs.field(factory=list)

    def read(self, raw: Mapping[str, str]) -> Settings:
        for name in raw:
            if name not in OPTIONS_BY_NAME:
                self._add(
                    name if name.isidentifier() and len(name) <= _LONGEST_BARE else quoted(name),
                    shown(raw[name]),
                    f"no such option{guess(name, OPTIONS_BY_NAME)}; the options are {', '.join(OPTIONS_BY_NAME)}",
                )
        given = {name: text for name, text in raw.items() if name in OPTIONS_BY_NAME}
        callback_pool, callback_pool_is_sound = self._callback_pool(given)
        settings = Settings(
            mode=self._choice("mode", Mode, given),
            policy=self._choice("policy", Policy, given),
            weights=self._weights(given),
            slot_quotas=self._slot_quotas(given),
            callback_pool=callback_pool,
            dag_priorities=tuple(self._dag_priorities(given)),
            use_worker_callbacks=self._choice("use_worker_callbacks", WorkerCallbacks, given),
            worker_callbacks_include=self._patterns("worker_callbacks_include", given),
            worker_callbacks_exclude=self._patterns("worker_callbacks_exclude", given),
            callback_executor=self._names(
                "callback_executor", given, "an executor's name", _LONGEST_EXECUTOR
            ),
            callback_queue=self._names("callback_queue", given, "a queue's name", _LONGEST_QUEUE),
            callback_batch_size=self._count("callback_batch_size", given),
            callback_time_limit_seconds=self._seconds("callback_time_limit_seconds", given),
            callback_load_limit_seconds=self._seconds("callback_load_limit_seconds", given),
            callback_log_limit_bytes=self._count("callback_log_limit_bytes", given),
            callback_max_attempts=self._counts("callback_max_attempts", given),
            callback_retry_on_failure=self._classes("callback_retry_on_failure", given),
            callback_retry_delay_seconds=self._numbers("callback_retry_delay_seconds", given),
            callback_retry_max_delay_seconds=self._seconds("callback_retry_max_delay_seconds", given),
            callback_time_to_live_seconds=self._numbers("callback_time_to_live_seconds", given),
            callback_queued_timeout_seconds=self._seconds("callback_queued_timeout_seconds", given),
            callback_heartbeat_timeout_seconds=self._seconds("callback_heartbeat_timeout_seconds", given),
            callback_running_timeout_seconds=self._seconds("callback_running_timeout_seconds", given),
            initial_hold_seconds=self._seconds("initial_hold_seconds", given),
            priority_aging_seconds=self._seconds("priority_aging_seconds", given),
            dag_turn_seconds=self._seconds("dag_turn_seconds", given),
            wide_bypass_limit=self._count("wide_bypass_limit", given),
            sweep_interval_seconds=self._seconds("sweep_interval_seconds", given),
            reconcile_interval_seconds=self._seconds("reconcile_interval_seconds", given),
            executor_retry_seconds=self._seconds("executor_retry_seconds", given),
            executor_time_to_live_seconds=self._seconds("executor_time_to_live_seconds", given),
            history_seconds=self._seconds("history_seconds", given),
            journal=self._flag("journal", given),
            failure_threshold=self._count("failure_threshold", given),
            failure_back_off_seconds=self._seconds("failure_back_off_seconds", given),
        )
        if settings.executor_time_to_live_seconds < settings.executor_retry_seconds:
            self._add(
                "executor_time_to_live_seconds",
                settings.executor_time_to_live_seconds,
                f"is less than executor_retry_seconds ({settings.executor_retry_seconds:g}), so nothing would ever "
                "be tried again; raise it, or lower that",
            )
        pools = self._pool_quotas(given, settings if callback_pool_is_sound else None)
        return attrs.evolve(settings, pool_quotas=pools)

    def _add(self, key: str, value: object, remedy: str) -> None:
        self.problems.append(Problem(key=key, value=value, remedy=remedy))

    # -- words and numbers

    def _choice(self, name: str, words: type[_E], given: Mapping[str, str]) -> _E:
        option = OPTIONS_BY_NAME[name]
        text = given.get(name, option.default).strip()
        try:
            return words(text)
        except ValueError:
            remedy = f"write one of {', '.join(option.choices)}{guess(text, option.choices)}{_comment(text)}"
            self._add(name, shown(text), remedy)
            return words(option.default)

    def _seconds(self, name: str, given: Mapping[str, str]) -> float:
        option = OPTIONS_BY_NAME[name]
        number = self._plain_number(option, given, "a number of seconds")
        return float(option.default if number is None else number)

    def _count(self, name: str, given: Mapping[str, str]) -> int:
        option = OPTIONS_BY_NAME[name]
        number = self._plain_number(option, given, "a whole number")
        if number is not None and number != number.to_integral_value():
            self._add(
                name, shown(given[name]), f"{_range(option, 'a whole number')}, such as {option.example}"
            )
            number = None
        return int(option.default if number is None else number)

    def _plain_number(self, option: Option, given: Mapping[str, str], what: str) -> Decimal | None:
        if option.name not in given:
            return None
        text = given[option.name].strip()
        number = Decimal(text) if _NUMBER.fullmatch(text) else None
        if number is None or not _within(number, option):
            self._add(
                option.name, shown(text), f"{_range(option, what)}, such as {option.example}{_comment(text)}"
            )
            return None
        return number

    def _flag(self, name: str, given: Mapping[str, str]) -> bool:
        """The words that Airflow's own flags are written with."""
        option = OPTIONS_BY_NAME[name]
        text = given.get(name, option.default).strip()
        if text.lower() in _YES:
            return True
        if text.lower() not in _NO:
            self._add(name, shown(text), f"write True or False{_comment(text)}")
        return False

    def _classes(self, name: str, given: Mapping[str, str]) -> frozenset[ServiceClass]:
        """Callback classes, separated by commas."""
        option = OPTIONS_BY_NAME[name]
        text = given.get(name, option.default).strip()
        if text == "none":
            return frozenset()
        if text == "all":
            return frozenset(CALLBACK_CLASSES)
        names = {cls.value: cls for cls in CALLBACK_CLASSES}
        found = set()
        for word in (each.strip() for each in text.split(",")):
            if word in names:
                found.add(names[word])
            else:
                remedy = f"write none, all, or some of {', '.join(names)}, separated by commas"
                self._add(name, shown(text), remedy + guess(word, [*names, "none", "all"]) + _comment(text))
                return frozenset()
        return frozenset(found)

    # -- JSON

    def _counts(self, name: str, given: Mapping[str, str]) -> dict[ServiceClass, int]:
        return {cls: int(number) for cls, number in self._numbers(name, given, whole=True).items()}

    def _numbers(
        self, name: str, given: Mapping[str, str], *, whole: bool = False
    ) -> dict[ServiceClass, float]:
        """A number by callback class; one number stands for all of them."""
        option = OPTIONS_BY_NAME[name]
        what = "a whole number" if whole else "a number of seconds"
        text = given.get(name, option.default).strip()
        if text.startswith("{"):
            why_not_task = "it is about callbacks; a task's retries are set in its Dag; remove it"
            entries = self._by_class(name, self._object(name, given), CALLBACK_CLASSES, why_not_task)
        else:
            remedy = f"{_range(option, what)}, or a JSON object such as {option.example}{_comment(text)}"
            number = Decimal(text) if _NUMBER.fullmatch(text) else None
            if number is None or not _within(number, option) or (whole and number % 1):
                self._add(name, shown(text), remedy)
                return {}
            entries = [(cls, name, number) for cls in CALLBACK_CLASSES]
        numbers = {}
        for cls, path, value in entries:
            if isinstance(value, Decimal) and _within(value, option) and not (whole and value % 1):
                numbers[cls] = float(value)
            else:
                self._add(path, shown(value), _range(option, what))
        return numbers

    def _object(self, name: str, given: Mapping[str, str]) -> JsonObject:
        """The option's JSON object; an empty one if it is not set or not an object."""
        option = OPTIONS_BY_NAME[name]
        if name not in given:
            return JsonObject([])
        value = decode(name, given[name], option.example)
        if isinstance(value, Problem):
            self.problems.append(value)
            return JsonObject([])
        return self._as_object(name, value, option.example)

    def _as_object(self, path: str, value: Json, example: str) -> JsonObject:
        if not isinstance(value, JsonObject):
            self._add(path, shown(value), f"write a JSON object, such as {example}")
            return JsonObject([])
        for key in value.repeated:
            self._add(
                f"{path}[{quoted(key)}]", shown(value[key]), "is there more than once; keep one of them"
            )
        return value

    def _by_class(
        self, path: str, value: JsonObject, allowed: Sequence[ServiceClass], why_not_task: str = ""
    ) -> Iterable[tuple[ServiceClass, str, Json]]:
        """The entries whose key is a service class, each with its path."""
        names = [cls.value for cls in allowed]
        for key, inner in value.items():
            if key in names:
                yield ServiceClass(key), f"{path}.{key}", inner
            elif key == ServiceClass.TASK.value and why_not_task:
                self._add(f"{path}.{key}", shown(inner), why_not_task)
            else:
                self._add(
                    f"{path}[{quoted(key)}]",
                    shown(inner),
                    f"no such service class{guess(key, names)}; the classes are {', '.join(names)}",
                )

    def _weight(self, path: str, value: Json) -> Milliweight | None:
        if isinstance(value, Decimal) and _SMALLEST_WEIGHT <= value <= _LARGEST_WEIGHT:
            milli = _in_thousandths(value)
            if milli is not None:
                return milli
        remedy = "write a number from 0.001 to 1000000 with at most 3 decimals, such as 2.5"
        if isinstance(value, Decimal) and value == 0:
            remedy += "; 0.001 is as good as nothing while others wait"
        self._add(path, shown(value), remedy)
        return None

    def _slots(self, path: str, value: Json, what: str) -> int | None:
        if isinstance(value, Decimal) and 0 <= value <= _MOST_SLOTS and value == value.to_integral_value():
            return int(value)
        self._add(path, shown(value), f"write a whole number of slots from 0 to {_MOST_SLOTS}{what}")
        return None

    def _weights(self, given: Mapping[str, str]) -> dict[ServiceClass, Milliweight]:
        weights = {}
        for cls, path, value in self._by_class("weights", self._object("weights", given), CLASS_ORDER):
            weight = self._weight(path, value)
            if weight is not None:
                weights[cls] = weight
        return weights

    def _shares(self, path: str, value: JsonObject, keys: Sequence[str]) -> _Shares:
        """What each class has in one scope, as far as it was written."""
        shares: _Shares = {}
        for cls, class_path, inner in self._by_class(path, value, CLASS_ORDER):
            share = _Share()
            example = '{"reserve": 1, "limit": 8}'
            for key, number in self._as_object(class_path, inner, example).items():
                self._share_key(share, f"{class_path}.{key}", key, number, keys, class_path)
            shares[cls] = share
        return shares

    def _share_key(
        self, share: _Share, path: str, key: str, value: Json, keys: Sequence[str], class_path: str
    ) -> None:
        if key not in keys:
            remedy = f"no such key{guess(key, keys)}; the keys are {', '.join(keys)}"
            if key == "weight":
                remedy = "weights of the scheduler's slots are set in the option weights; move it there"
            self._add(f"{class_path}[{quoted(key)}]", shown(value), remedy)
        elif key == "reserve":
            reserve = self._slots(path, value, "")
            if reserve is not None:
                share["reserve"] = reserve
        elif key == "limit":
            limit = None if value is None else self._slots(path, value, ", or null for no limit")
            if limit is not None or value is None:
                share["limit"] = limit
        else:
            weight = None if value is None else self._weight(path, value)
            if weight is not None or value is None:
                share["weight"] = weight

    def _quota(self, path: str, share: _Share, note: str = "", *, already_told: bool = False) -> Quota:
        reserve, limit = share.get("reserve", 0), share.get("limit")
        if limit is not None and reserve > limit:
            if not already_told:
                remedy = f"is more than the limit of {limit}{note}; lower the reserve, or raise the limit"
                self._add(f"{path}.reserve", reserve, remedy)
            reserve = 0
        return Quota(reserve_slots=reserve, limit_slots=limit)

    def _slot_quotas(self, given: Mapping[str, str]) -> dict[ServiceClass, Quota]:
        shares = self._shares("slot_quotas", self._object("slot_quotas", given), ("reserve", "limit"))
        return {cls: self._quota(f"slot_quotas.{cls}", share) for cls, share in shares.items()}

    def _pool_quotas(
        self, given: Mapping[str, str], settings: Settings | None
    ) -> dict[str, dict[ServiceClass, PoolShare]]:
        written: dict[str, _Shares] = {}
        for pool, value in self._object("pool_quotas", given).items():
            path = f"pool_quotas[{quoted(pool)}]"
            inner = self._as_object(path, value, '{"task": {"reserve": 1, "limit": 8, "weight": 2}}')
            shares = self._shares(path, inner, ("reserve", "limit", "weight"))
            if self._is_name(path, pool, "a pool's name", _LONGEST_POOL):
                written[pool] = shares
        everywhere = written.pop(EVERY_OTHER_POOL, None)
        pools: dict[str, dict[ServiceClass, PoolShare]] = {}
        if everywhere is not None:
            pools[EVERY_OTHER_POOL] = {
                cls: PoolShare(
                    quota=self._quota(f"pool_quotas['*'].{cls}", share), weight=share.get("weight")
                )
                for cls, share in everywhere.items()
            }
        for pool, shares in written.items():
            pools[pool] = {
                cls: self._named_share(
                    pool, cls, shares.get(cls, _Share()), (everywhere or {}).get(cls), settings
                )
                for cls in CLASS_ORDER
                if cls in shares or cls in (everywhere or {})
            }
        return pools

    def _named_share(
        self, pool: str, cls: ServiceClass, own: _Share, everywhere: _Share | None, settings: Settings | None
    ) -> PoolShare:
        """A class's share of a pool that is named: its own keys, and those of ``*`` for the rest."""
        path = f"pool_quotas[{quoted(pool)}].{cls}"
        merged = _Share(**{**(everywhere or _Share()), **own})
        if settings is not None and not settings.draws_on(cls, pool):
            self._refuse_idle_reserve(path, cls, own, settings)
            merged["reserve"] = 0
        own_bounds = {"reserve", "limit"} & own.keys()
        note = " (one of the two comes from '*')" if len(own_bounds) == 1 else ""
        quota = self._quota(path, merged, note, already_told=not own_bounds)
        return PoolShare(quota=quota, weight=merged.get("weight"))

    def _refuse_idle_reserve(self, path: str, cls: ServiceClass, own: _Share, settings: Settings) -> None:
        reserve = own.get("reserve", 0)
        if reserve:
            self._add(
                f"{path}.reserve",
                reserve,
                f"would keep slots empty for nothing: {cls} draws on {quoted(settings.pool_of(cls))}; reserve them "
                f"there, or set callback_pool.{cls} to this pool",
            )

    def _callback_pool(self, given: Mapping[str, str]) -> tuple[dict[ServiceClass, str], bool]:
        """The pool of each callback class, and whether that is what was meant."""
        before = len(self.problems)
        name = "callback_pool"
        option = OPTIONS_BY_NAME[name]
        text = given.get(name, option.default).strip()
        pools: dict[ServiceClass, str] = {}
        if text.startswith("{"):
            entries = self._object(name, given)
        else:
            entries = JsonObject([(cls.value, text) for cls in CALLBACK_CLASSES])
            if text[:1] in ("'", '"', "["):
                remedy = f"write a pool's name without quotes, or a JSON object such as {option.example}"
                self._add(name, shown(text), remedy)
                return pools, False
            if text == INHERIT:
                self._add(name, text, 'only a task callback has a task; write {"task_callback": "inherit"}')
                return pools, False
            if not self._is_name(
                name, text, "a pool's name, or a JSON object such as " + option.example, _LONGEST_POOL
            ):
                return pools, False
        why_not_task = "tasks draw on the pool that their Dag names; remove it"
        for cls, path, value in self._by_class(name, entries, CALLBACK_CLASSES, why_not_task):
            if not isinstance(value, str):
                self._add(path, shown(value), 'write a pool\'s name in double quotes, such as "default_pool"')
            elif value == INHERIT and cls is not ServiceClass.TASK_CALLBACK:
                self._add(path, value, f"a {cls} callback belongs to no task; write a pool's name")
            elif self._is_name(path, value, "a pool's name", _LONGEST_POOL):
                pools[cls] = value
        return pools, len(self.problems) == before

    def _dag_priorities(self, given: Mapping[str, str]) -> list[DagPriority]:
        rules: list[DagPriority] = []
        for pattern, value in self._object("dag_priorities", given).items():
            path = f"dag_priorities[{quoted(pattern)}]"
            sound = self._is_name(path, pattern, "a pattern of Dag ids", _LONGEST_DAG_ID)
            if any(rule.pattern == "*" for rule in rules):
                self._add(
                    path, shown(value), "is never reached, because '*' comes before it; move '*' to the end"
                )
            if (
                isinstance(value, Decimal)
                and abs(value) <= _LARGEST_PRIORITY
                and value == value.to_integral_value()
            ):
                if sound:
                    rules.append(DagPriority(pattern=pattern, priority=int(value)))
            else:
                limits = f"{-_LARGEST_PRIORITY} to {_LARGEST_PRIORITY}"
                self._add(path, shown(value), f"write a whole number from {limits}, such as 10")
        return rules

    def _patterns(self, name: str, given: Mapping[str, str]) -> tuple[str, ...]:
        """Patterns of Dag ids, separated by commas."""
        option = OPTIONS_BY_NAME[name]
        text = given.get(name, option.default).strip()
        if text[:1] in ("'", '"', "{") or text.startswith('["'):
            remedy = f"write patterns without quotes, separated by commas, such as {option.example}"
            self._add(name, shown(text), remedy)
            return ()
        patterns = tuple(stripped for pattern in text.split(",") if (stripped := pattern.strip()))
        if not patterns and option.default:
            self._add(
                name, shown(text), f"names no Dag; write patterns, such as {option.example}, or remove it"
            )
        return tuple(
            pattern
            for pattern in patterns
            if self._is_name(name, pattern, "a pattern of Dag ids", _LONGEST_DAG_ID)
        )

    def _names(self, name: str, given: Mapping[str, str], what: str, longest: int) -> dict[ServiceClass, str]:
        """A name by callback class; where the option's default is no object, one name may stand for all."""
        option = OPTIONS_BY_NAME[name]
        text = given.get(name, option.default).strip()
        if option.default or text.startswith("{"):
            entries = self._object(name, given)
        elif not text:
            return {}
        elif text[:1] in ("'", '"', "["):
            self._add(
                name, shown(text), f"write {what} without quotes, or a JSON object such as {option.example}"
            )
            return {}
        else:
            entries = JsonObject([(cls.value, text) for cls in CALLBACK_CLASSES])
        names: dict[ServiceClass, str] = {}
        why_not_task = "a task's executor and queue are set in its Dag; remove it"
        for cls, path, value in self._by_class(name, entries, CALLBACK_CLASSES, why_not_task):
            if not isinstance(value, str):
                self._add(path, shown(value), f"write {what} in double quotes")
            elif self._is_name(path, value, what, longest):
                names[cls] = value
        return names

    def _is_name(self, path: str, name: str, what: str, longest: int) -> bool:
        """Whether a database can hold the name; anything else could never match."""
        if not name.strip():
            self._add(path, name, f"is empty; write {what}")
        elif len(name) > longest:
            self._add(path, shown(name), f"is longer than {longest} characters; write {what}")
        elif _UNSTORABLE.search(name):
            self._add(path, shown(name), f"holds characters that no name can hold; write {what}")
        else:
            return True
        return False


def _in_thousandths(value: Decimal) -> Milliweight | None:
    """The value times a thousand if that is whole; exact, whatever the precision of the decimal context."""
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int) or exponent < -_MOST_DECIMALS:
        return None
    numerator, denominator = value.as_integer_ratio()
    milli, rest = divmod(numerator * MILLI, denominator)
    return None if rest else Milliweight(milli)


def _within(number: Decimal, option: Option) -> bool:
    return (option.minimum is None or number >= Decimal(str(option.minimum))) and (
        option.maximum is None or number <= Decimal(str(option.maximum))
    )


def _range(option: Option, what: str) -> str:
    return f"write {what} from {option.minimum:.6g} to {option.maximum:.0f}"


def _comment(text: str) -> str:
    return "; a comment goes on a line of its own" if "#" in text else ""
