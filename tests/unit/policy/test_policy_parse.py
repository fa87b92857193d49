"""Any text either becomes settings or one error with every problem; what is written is what holds."""

from __future__ import annotations

import json
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from callback_priority.core.classes import CALLBACK_CLASSES, CLASS_ORDER, SCHEDULER_SCOPE, Level, ServiceClass
from callback_priority.core.policies import Policy
from callback_priority.core.quotas import NO_QUOTA, Quota
from callback_priority.errors import ConfigurationError
from callback_priority.policy.options import OPTIONS
from callback_priority.policy.parse import parse_settings
from callback_priority.policy.render import render_settings
from callback_priority.policy.settings import (
    INHERIT,
    DagPriority,
    Mode,
    PoolShare,
    Settings,
    WorkerCallbacks,
)

DEADLINE, TASK = ServiceClass.DEADLINE, ServiceClass.TASK
TASK_CALLBACK, DAG_CALLBACK = ServiceClass.TASK_CALLBACK, ServiceClass.DAG_CALLBACK


def problems_of(raw: dict[str, str]) -> dict[str, str]:
    """Each problem's key and its message."""
    with pytest.raises(ConfigurationError) as caught:
        parse_settings(raw)
    return {problem.key: str(problem) for problem in caught.value.problems}


# -- any text

words = st.sampled_from(
    [
        *CLASS_ORDER,
        "reserve",
        "limit",
        "weight",
        "*",
        "inherit",
        "default_pool",
        "etl",
        "tsk",
        "",
        "\ud800",
        "\x00",
    ]
)
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-3, 40)
    | st.floats()
    | words.map(str)
    | st.sampled_from([10**400, 1e300, 0.0005, 2**31])
)
documents = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(words.map(str) | st.text(), inner, max_size=4)
    ),
)
any_text = st.text() | documents.map(json.dumps) | st.from_regex(r"[-+0-9.eE_]{0,12}", fullmatch=True)


@given(st.dictionaries(st.sampled_from([o.name for o in OPTIONS]) | st.text(), any_text, max_size=6))
@example({"weights": "[" * 100_000})
@example({"weights": '{"task": 1e99999999999999999999}'})
@example({"weights": '{"task": ' + "1" * 5_000 + "}"})
@example({"slot_quotas": '{"task": {"reserve": 1e999999999}}'})
@example({"failure_threshold": "1" * 5_000})
@example({"failure_threshold": "1e-999"})
@example({"weights": "NaN"})
def test_any_text_is_settings_or_a_configuration_error(raw):
    """No other exception ever gets out, and the error can be printed and encoded whatever it quotes."""
    try:
        settings = parse_settings(raw)
    except ConfigurationError as caught:
        error = caught
    else:
        assert parse_settings(render_settings(settings)) == settings
        return
    assert error.problems
    assert all(problem.key and problem.remedy for problem in error.problems)
    assert len(str(error).encode()) < 2_000 * len(error.problems)


# -- round trip

slots = st.integers(0, 2**31 - 1)
milliweights = st.integers(1, 10**9)
names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=250).filter(
    lambda name: name.strip() and name not in ("*", INHERIT)
)
quotas = st.builds(
    lambda reserve, more: Quota(
        reserve_slots=reserve, limit_slots=None if more is None else min(reserve + more, 2**31 - 1)
    ),
    slots,
    st.none() | slots,
)
classes = st.sampled_from(CLASS_ORDER)
shares = st.builds(PoolShare, quota=quotas, weight=st.none() | milliweights)
seconds = st.integers(1, 10**9).map(lambda micros: micros / 1000)
callback_classes = st.sampled_from(CALLBACK_CLASSES)
by_class = st.dictionaries(callback_classes, names)
patterns = names.filter(lambda name: "," not in name and name[0] not in "'\"{[").map(str.strip)


@st.composite
def valid_settings(draw):
    pool_quotas = draw(
        st.dictionaries(names, st.dictionaries(st.just(TASK), shares, min_size=1, max_size=1), max_size=4)
    )
    if draw(st.booleans()):
        pool_quotas["*"] = draw(st.dictionaries(classes.filter(lambda cls: cls is not TASK), shares))
        for pool, own in pool_quotas.items():  # what parsing adds to a named pool
            for cls, share in pool_quotas["*"].items() if pool != "*" else ():
                own[cls] = PoolShare(quota=Quota(limit_slots=share.quota.limit_slots), weight=share.weight)
    return Settings(
        mode=draw(st.sampled_from(Mode)),
        policy=draw(st.sampled_from(Policy)),
        weights=draw(st.dictionaries(classes, milliweights)),
        slot_quotas=draw(st.dictionaries(classes, quotas)),
        pool_quotas=pool_quotas,
        callback_pool=dict.fromkeys(CALLBACK_CLASSES, "no pool of these, it is longer"),
        dag_priorities=tuple(
            DagPriority(pattern=pattern, priority=priority)
            for pattern, priority in draw(
                st.dictionaries(names, st.integers(-(2**31) + 1, 2**31 - 1))
            ).items()
        ),
        use_worker_callbacks=draw(st.sampled_from(WorkerCallbacks)),
        worker_callbacks_include=tuple(draw(st.lists(patterns, min_size=1, max_size=3))),
        worker_callbacks_exclude=tuple(draw(st.lists(patterns, max_size=3))),
        callback_executor=draw(by_class),
        callback_queue=draw(by_class),
        callback_batch_size=draw(st.integers(1, 1_000)),
        callback_time_limit_seconds=draw(st.integers(1, 864_000).map(lambda tenths: tenths / 10)),
        callback_log_limit_bytes=draw(st.integers(1_024, 2**31 - 1)),
        callback_max_attempts=draw(st.dictionaries(callback_classes, st.integers(1, 1_000))),
        callback_retry_on_failure=draw(st.frozensets(callback_classes)),
        callback_retry_delay_seconds=draw(
            st.dictionaries(callback_classes, st.integers(0, 86_400).map(float))
        ),
        callback_time_to_live_seconds=draw(
            st.dictionaries(callback_classes, st.integers(1, 10**6).map(float))
        ),
        journal=draw(st.booleans()),
        priority_aging_seconds=draw(seconds),
        wide_bypass_limit=draw(st.integers(0, 10**6)),
    )


@given(valid_settings())
def test_settings_survive_being_written_and_read(settings):
    """Every weight with three decimals, every name a database can hold, comes back exactly."""
    assert parse_settings(render_settings(settings)) == settings


@given(milliweights)
def test_a_weight_is_exactly_what_is_written(milli):
    text = f"{milli // 1000}.{milli % 1000:03d}"
    assert parse_settings({"weights": f'{{"task": {text}}}'}).weights[TASK] == milli


# -- defaults


def test_nothing_set_is_the_defaults_and_off():
    assert parse_settings({}) == Settings()
    assert parse_settings({option.name: option.default for option in OPTIONS}) == Settings()
    assert Settings().mode is Mode.OFF


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_example_is_valid_and_not_the_default(option):
    assert parse_settings({option.name: option.example}) != Settings()


def test_settings_have_exactly_the_options_as_fields():
    assert set(Settings.__annotations__) == {option.name for option in OPTIONS}


# -- all problems at once


def test_every_mistake_is_listed_with_key_value_and_remedy():
    """One mistake per option, one error: nobody restarts a scheduler once per mistake."""
    found = problems_of(
        {
            "mode": "activ",
            "policy": "fair  # or not",
            "weights": '{"task": 0, "deadline": 1.0005, "dag_callback": NaN, "tsk": 1, "task_callback": true}',
            "slot_quotas": '{"task": {"reserve": 5, "limit": 4, "weight": 2, "reserv": 1}}',
            "pool_quotas": '{"etl": {"deadline": {"reserve": 1}, "task": {"reserve": -1}}, "": {}}',
            "callback_pool": '{"deadline": "inherit", "task": "etl", "dag_callback": 7}',
            "dag_priorities": '{"*": 1, "billing_*": 2, "x": 1.5, "": 0}',
            "wide_bypass_limit": "2.5",
            "failure_threshold": "0",
            "history_seconds": "-1",
            "sweep_interval_seconds": "inf",
            "executor_time_to_live_seconds": "5",
            "histroy_seconds": "7",
            "use_worker_callbacks": "tasks",
            "worker_callbacks_include": ",",
            "worker_callbacks_exclude": '["old_*"]',
            "callback_executor": '{"task": "LocalExecutor", "deadline": 1, "dag_callback": ""}',
            "callback_queue": '"alerts"',
            "callback_batch_size": "0",
            "callback_time_limit_seconds": "none",
            "callback_load_limit_seconds": "0.5",
            "callback_log_limit_bytes": "1MB",
            "callback_max_attempts": '{"deadline": 0, "task": 2, "dag_callback": 1.5}',
            "callback_retry_on_failure": "deadlines",
            "callback_retry_delay_seconds": "-1",
            "callback_retry_max_delay_seconds": "soon",
            "callback_time_to_live_seconds": '{"deadline": "1h"}',
            "journal": "maybe",
        }
    )
    assert set(found) == {
        "mode", "policy", "weights.task", "weights.deadline", "weights.dag_callback", "weights['tsk']",
        "weights.task_callback", "slot_quotas.task.reserve", "slot_quotas.task['weight']",
        "slot_quotas.task['reserv']", "pool_quotas['etl'].task.reserve", "pool_quotas['']",
        "callback_pool.deadline", "callback_pool.task", "callback_pool.dag_callback",
        "dag_priorities['billing_*']", "dag_priorities['x']", "dag_priorities['']", "wide_bypass_limit",
        "failure_threshold", "history_seconds", "sweep_interval_seconds", "executor_time_to_live_seconds",
        "histroy_seconds", "use_worker_callbacks", "worker_callbacks_include", "worker_callbacks_exclude",
        "callback_executor.task", "callback_executor.deadline", "callback_executor.dag_callback",
        "callback_queue", "callback_batch_size", "callback_time_limit_seconds",
        "callback_load_limit_seconds", "callback_log_limit_bytes", "callback_max_attempts.deadline",
        "callback_max_attempts.task", "callback_max_attempts.dag_callback", "callback_retry_on_failure",
        "callback_retry_delay_seconds", "callback_retry_max_delay_seconds",
        "callback_time_to_live_seconds.deadline", "journal",
    }  # fmt: skip
    assert "did you mean 'active'" in found["mode"]
    assert "a comment goes on a line of its own" in found["policy"]
    assert "did you mean 'history_seconds'" in found["histroy_seconds"]
    assert "did you mean 'task'" in found["weights['tsk']"]
    assert "weights.dag_callback = NaN: " in found["weights.dag_callback"]
    assert "in the option weights" in found["slot_quotas.task['weight']"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{'task': 1}", "JSON wants double quotes"),
        ('{\n  "task": 1,\n}', "line 3 column 1"),
        ("", "is empty"),
        ("[1]", "write a JSON object"),
        ('{"task": 1} # mine', "a comment goes on a line of its own"),
    ],
)
def test_bad_json_says_where_and_what_to_write(text, says):
    message = problems_of({"weights": text})["weights"]
    assert says in message
    assert '{"task": 3, "deadline": 1}' in message


@pytest.mark.parametrize(
    ("option", "text", "key"),
    [
        ("weights", '{"task": 1, "task": 2}', "weights['task']"),
        ("pool_quotas", '{"a": {}, "a": {}}', "pool_quotas['a']"),
        ("slot_quotas", '{"task": {"limit": 1, "limit": 2}}', "slot_quotas.task['limit']"),
    ],
)
def test_a_key_given_twice_is_a_problem(option, text, key):
    assert "more than once" in problems_of({option: text})[key]


@pytest.mark.parametrize(
    "text", ["1.00000000000000000000000000000000000001", "0.0009", "1000000.001", '"1"', "null"]
)
def test_a_weight_is_never_rounded_or_guessed(text):
    assert set(problems_of({"weights": f'{{"task": {text}}}'})) == {"weights.task"}


# -- callbacks that move


@pytest.mark.parametrize(
    ("option", "text", "key", "says"),
    [
        ("use_worker_callbacks", "tasks", "use_worker_callbacks", "write one of none, task, dag, all; did"),
        ("use_worker_callbacks", "True", "use_worker_callbacks", "write one of none, task, dag, all"),
        ("worker_callbacks_include", "", "worker_callbacks_include", "names no Dag"),
        ("worker_callbacks_include", "'sales_*'", "worker_callbacks_include", "without quotes"),
        ("worker_callbacks_exclude", '["a"]', "worker_callbacks_exclude", "such as legacy_*"),
        ("worker_callbacks_exclude", "a" * 251, "worker_callbacks_exclude", "longer than 250 characters"),
        ("callback_executor", "LocalExecutor", "callback_executor", "is not JSON at line 1"),
        (
            "callback_executor",
            '{"dag_calback": "x"}',
            "callback_executor['dag_calback']",
            "did you mean 'dag_callback'",
        ),
        ("callback_executor", '{"task": "x"}', "callback_executor.task", "set in its Dag"),
        ("callback_executor", '{"deadline": null}', "callback_executor.deadline", "in double quotes"),
        ("callback_queue", '["alerts"]', "callback_queue", "write a queue's name without quotes"),
        ("callback_queue", '{"deadline": " "}', "callback_queue.deadline", "is empty"),
        ("callback_batch_size", "1001", "callback_batch_size", "from 1 to 1000"),
        ("callback_time_limit_seconds", "0", "callback_time_limit_seconds", "from 0.1 to 86400"),
        ("callback_load_limit_seconds", "-1", "callback_load_limit_seconds", "from 1 to 86400"),
        ("callback_log_limit_bytes", "1.5", "callback_log_limit_bytes", "a whole number from 1024"),
    ],
)
def test_each_mistake_about_callbacks_that_move_says_what_to_write(option, text, key, says):
    found = problems_of({option: text})
    assert set(found) == {key}
    assert says in found[key]


@pytest.mark.parametrize(
    ("word", "moved"),
    [
        ("none", set()),
        ("task", {TASK_CALLBACK}),
        ("dag", {DAG_CALLBACK}),
        ("all", {TASK_CALLBACK, DAG_CALLBACK}),
    ],
)
def test_the_word_says_which_classes_move(word, moved):
    """Deadline callbacks never were with the Dag processor, and task instances are no callbacks."""
    settings = parse_settings({"use_worker_callbacks": word})
    assert {cls for cls in ServiceClass if settings.moves(cls, "any")} == moved


def test_a_dag_moves_that_is_included_and_not_excluded():
    settings = parse_settings(
        {
            "use_worker_callbacks": "all",
            "worker_callbacks_include": "billing_*, reports",
            "worker_callbacks_exclude": "*_eu,",
        }
    )
    dags = ("billing_us", "billing_eu", "reports", "reports_2", "Billing_us")
    assert [dag for dag in dags if settings.moves(TASK_CALLBACK, dag)] == ["billing_us", "reports"]


def test_callbacks_that_move_need_no_mode():
    """The mode decides whether anything happens; `callback-priority doctor` warns that nothing does."""
    settings = parse_settings({"mode": "off", "use_worker_callbacks": "all"})
    assert settings.moves(DAG_CALLBACK, "any")


def test_a_queue_is_a_name_for_all_or_one_per_class():
    everywhere = parse_settings({"callback_queue": " alerts "}).callback_queue
    assert everywhere == dict.fromkeys(CALLBACK_CLASSES, "alerts")
    assert parse_settings({"callback_queue": '{"deadline": "alerts"}'}).callback_queue == {DEADLINE: "alerts"}
    assert parse_settings({"callback_queue": " "}).callback_queue == {}


# -- pools


def test_a_named_pool_takes_from_the_star_key_by_key():
    settings = parse_settings(
        {
            "weights": '{"task": 2}',
            "pool_quotas": '{"*": {"task": {"reserve": 2, "limit": 9}, "deadline": {"limit": 8, "weight": 3}},'
            ' "etl": {"task": {"weight": 4}, "deadline": {"limit": null}}}',
        }
    )
    assert settings.quota(Level.POOL, "etl", TASK) == Quota(reserve_slots=2, limit_slots=9)
    assert settings.weight(Level.POOL, "etl", TASK) == 4_000
    assert settings.quota(Level.POOL, "etl", DEADLINE) == NO_QUOTA
    assert settings.weight(Level.POOL, "etl", DEADLINE) == 3_000
    assert settings.quota(Level.POOL, "other", DEADLINE) == Quota(limit_slots=8)
    assert settings.weight(Level.POOL, "other", TASK) == 2_000
    assert settings.weight(Level.SCHEDULER, SCHEDULER_SCOPE, DEADLINE) == 1_000
    assert settings.quota(Level.SCHEDULER, SCHEDULER_SCOPE, DEADLINE) == NO_QUOTA


def test_a_reserve_against_the_limit_of_the_star_is_found_once():
    found = problems_of(
        {"pool_quotas": '{"*": {"task": {"limit": 2}}, "etl": {"task": {"reserve": 3}}, "b": {}}'}
    )
    assert set(found) == {"pool_quotas['etl'].task.reserve"}


def test_no_slots_are_kept_in_pools_that_a_class_never_draws_on():
    """A reserve from the star holds where the class draws; one written for another pool is a mistake."""
    settings = parse_settings({"pool_quotas": '{"*": {"deadline": {"reserve": 2}}, "etl": {}}'})
    assert settings.quota(Level.POOL, "default_pool", DEADLINE).reserve_slots == 2
    assert settings.quota(Level.POOL, "etl", DEADLINE).reserve_slots == 0
    assert settings.quota(Level.POOL, "other", DEADLINE).reserve_slots == 0
    found = problems_of({"pool_quotas": '{"etl": {"deadline": {"reserve": 2}}}'})
    assert "set callback_pool.deadline to this pool" in found["pool_quotas['etl'].deadline.reserve"]


def test_the_callback_pool_is_a_name_for_all_or_one_per_class():
    everywhere = parse_settings({"callback_pool": "alerts"})
    assert {everywhere.pool_of(cls) for cls in CALLBACK_CLASSES} == {"alerts"}
    mixed = parse_settings({"callback_pool": '{"deadline": "alerts", "task_callback": "inherit"}'})
    assert mixed.pool_of(DEADLINE, "etl") == "alerts"
    assert mixed.pool_of(TASK_CALLBACK, "etl") == "etl"
    assert mixed.pool_of(DAG_CALLBACK, "etl") == "default_pool"
    assert set(problems_of({"callback_pool": "inherit"})) == {"callback_pool"}
    assert set(problems_of({"callback_pool": '"alerts"'})) == {"callback_pool"}


def test_the_first_pattern_that_matches_a_dag_wins():
    settings = parse_settings({"dag_priorities": '{"billing_test": 0, "billing_*": 10}'})
    assert [settings.priority(dag, 1) for dag in ("billing_test", "billing_eu", "Billing_eu", "x")] == [
        0,
        10,
        1,
        1,
    ]


@given(st.text(max_size=20), st.text(max_size=20))
def test_a_pattern_that_is_accepted_can_be_matched(pattern, dag_id):
    try:
        settings = parse_settings({"dag_priorities": json.dumps({pattern: 5})})
    except ConfigurationError:
        return
    assert settings.priority(dag_id, 1) in (1, 5)


def test_settings_cannot_be_changed_in_place():
    settings = parse_settings({"weights": '{"task": 2}'})
    with pytest.raises(TypeError):
        settings.weights[TASK] = 1


# -- attempts


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5", (5, 5, 5)), ('{"deadline": 7}', (7, 3, 3)), ("{}", (3, 3, 3)), ('{"dag_callback": 1}', (3, 3, 1))],
)
def test_a_number_stands_for_all_classes_and_an_object_for_those_it_names(text, expected):
    found = parse_settings({"callback_max_attempts": text}).callback_max_attempts
    assert tuple(found[cls] for cls in CALLBACK_CLASSES) == expected


@pytest.mark.parametrize(
    ("option", "text", "key", "says"),
    [
        ("callback_max_attempts", "0", "callback_max_attempts", "from 1 to 1000, or a JSON object such as"),
        ("callback_max_attempts", "2.5", "callback_max_attempts", "a whole number"),
        (
            "callback_max_attempts",
            '{"task": 3}',
            "callback_max_attempts.task",
            "a task's retries are set in its Dag",
        ),
        (
            "callback_max_attempts",
            '{"deadline": "3"}',
            "callback_max_attempts.deadline",
            "a whole number from 1",
        ),
        ("callback_retry_on_failure", "True", "callback_retry_on_failure", "write none, all, or some of"),
        (
            "callback_retry_on_failure",
            "deadline,dag",
            "callback_retry_on_failure",
            "write none, all, or some of",
        ),
        (
            "callback_retry_on_failure",
            "dag_calback",
            "callback_retry_on_failure",
            "did you mean 'dag_callback'",
        ),
        ("callback_retry_delay_seconds", "1e9", "callback_retry_delay_seconds", "from 0 to 86400"),
        ("callback_time_to_live_seconds", "0", "callback_time_to_live_seconds", "a number of seconds from 1"),
        ("journal", "yes", "journal", "write True or False"),
    ],
)
def test_each_mistake_about_attempts_says_what_to_write(option, text, key, says):
    found = problems_of({option: text})
    assert set(found) == {key}
    assert says in found[key]


def test_delays_double_up_to_a_limit_and_are_spread():
    """Between half and all of the delay, the same for the same attempt of the same callback."""
    settings = parse_settings(
        {"callback_retry_delay_seconds": "10", "callback_retry_max_delay_seconds": "60"}
    )
    for failures, longest in ((1, 10), (2, 20), (3, 40), (4, 60), (50, 60), (5_000, 60)):
        delays = [
            settings.retry_delay_seconds(ServiceClass.DEADLINE, failures, UUID(int=each))
            for each in range(200)
        ]
        assert longest / 2 <= min(delays) < 0.55 * longest
        assert 0.95 * longest < max(delays) <= longest
        assert delays[7] == settings.retry_delay_seconds(ServiceClass.DEADLINE, failures, UUID(int=7))
