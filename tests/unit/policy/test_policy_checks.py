"""Settings are held against the pools and slots there are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callback_priority.core.classes import CLASS_ORDER, Level
from callback_priority.errors import ConfigurationError
from callback_priority.policy.checks import check_executors, check_pools, check_slots
from callback_priority.policy.parse import load_settings, parse_settings
from callback_priority.policy.settings import Settings

POOLS = {"default_pool": 128, "etl": 4, "endless": None}


def pool_problems(pool_slots=POOLS, **raw: str) -> dict[str, str]:
    return {problem.key: str(problem) for problem in check_pools(parse_settings(raw), pool_slots)}


def slot_problems(parallelism: int | None, text: str) -> set[str]:
    return {problem.key for problem in check_slots(parse_settings({"slot_quotas": text}), parallelism)}


def test_the_defaults_suit_every_deployment():
    for slots in (None, 0, 1, 128):
        assert check_pools(Settings(), {"default_pool": slots}) == ()
        assert check_slots(Settings(), slots) == ()


def test_pools_that_do_not_exist_are_named_with_the_nearest_that_does():
    found = pool_problems(pool_quotas='{"elt": {}, "et*": {}}', callback_pool='{"deadline": "defaultpool"}')
    assert set(found) == {"pool_quotas['elt']", "pool_quotas['et*']", "callback_pool.deadline"}
    assert "did you mean 'etl'" in found["pool_quotas['elt']"]
    assert "'*' only works alone" in found["pool_quotas['et*']"]
    assert "did you mean 'default_pool'" in found["callback_pool.deadline"]


def test_reserves_over_a_pool_are_refused_and_just_fitting_ones_are_not():
    quotas = '{"etl": {"task": {"reserve": %d}, "task_callback": {"reserve": 2}}}'
    inherit = '{"task_callback": "inherit"}'
    assert pool_problems(pool_quotas=quotas % 2, callback_pool=inherit) == {}
    assert set(pool_problems(pool_quotas=quotas % 3, callback_pool=inherit)) == {
        "pool_quotas['etl'], reserves together"
    }
    assert pool_problems(pool_quotas='{"endless": {"task": {"reserve": 1000000}}}') == {}


def test_the_star_is_held_against_every_pool_but_paused_ones():
    """One problem for the star, however many pools it is too much for."""
    pools = {"default_pool": 128, "paused": 0, **{f"p{n}": 1 for n in range(9)}}
    found = pool_problems(pools, pool_quotas='{"*": {"task": {"reserve": 2}}}')
    assert set(found) == {"pool_quotas['*'], reserves together"}
    assert "and 6 more pool(s)" in found["pool_quotas['*'], reserves together"]
    named = pool_problems(pools, pool_quotas='{"paused": {"task": {"reserve": 2}}}')
    assert set(named) == {"pool_quotas['paused'], reserves together"}


def test_a_class_that_could_never_fit_is_refused_where_it_draws():
    assert set(pool_problems(pool_quotas='{"default_pool": {"deadline": {"limit": 0}}}')) == {
        "pool_quotas['default_pool'].deadline.limit"
    }
    assert pool_problems(pool_quotas='{"etl": {"deadline": {"limit": 0}}}') == {}
    assert set(pool_problems(pool_quotas='{"etl": {"task": {"reserve": 4}}}', callback_pool="etl")) == {
        f"pool_quotas['etl'], reserves of the others than {cls}" for cls in CLASS_ORDER[:-1]
    }


def test_slots_are_checked_like_a_pool():
    assert slot_problems(4, '{"task": {"reserve": 3}}') == set()
    assert slot_problems(4, '{"task": {"reserve": 3}, "deadline": {"reserve": 2}}') == {
        "slot_quotas, reserves together"
    }
    assert slot_problems(None, '{"task": {"reserve": 3}, "deadline": {"limit": 0}}') == {
        "slot_quotas.deadline.limit"
    }
    assert slot_problems(3, '{"task": {"reserve": 3}}') == {
        f"slot_quotas, reserves of the others than {cls}" for cls in CLASS_ORDER[:-1]
    }


KNOWN = frozenset(
    {
        "LocalExecutor",
        "airflow.executors.local_executor.LocalExecutor",
        "pods",
        "KubernetesExecutor",
        "airflow.providers.cncf.kubernetes.executors.kubernetes_executor.KubernetesExecutor",
    }
)


def executor_problems(known, text):
    settings = parse_settings({"callback_executor": text})
    return {problem.key: str(problem) for problem in check_executors(settings, known)}


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_an_executor_may_be_called_by_every_name_that_airflow_knows(name):
    assert executor_problems(KNOWN, '{"dag_callback": "%s"}' % name) == {}  # noqa: UP031


def test_an_executor_that_is_not_configured_is_named_with_the_nearest_that_is():
    found = executor_problems(KNOWN, '{"dag_callback": "localexecutor", "deadline": "celery"}')
    assert set(found) == {"callback_executor.dag_callback", "callback_executor.deadline"}
    assert "did you mean 'LocalExecutor'?" in found["callback_executor.dag_callback"]
    assert (
        "`[core] executor` has KubernetesExecutor, LocalExecutor, pods" in found["callback_executor.deadline"]
    )
    assert "did you mean" not in found["callback_executor.deadline"]
    assert set(executor_problems(frozenset(), '{"deadline": "celery"}')) == {"callback_executor.deadline"}


def test_executors_are_checked_where_they_are_known():
    raw = {"callback_executor": '{"deadline": "Celery"}'}
    assert load_settings(raw, pool_slots=POOLS, parallelism=8).callback_executor
    with pytest.raises(ConfigurationError) as caught:
        load_settings(raw, pool_slots=POOLS, parallelism=8, executors=KNOWN)
    assert [problem.key for problem in caught.value.problems] == ["callback_executor.deadline"]


def test_one_error_has_the_problems_of_text_and_deployment():
    with pytest.raises(ConfigurationError) as caught:
        load_settings(
            {"mode": "on", "callback_pool": "alarms", "slot_quotas": '{"task": {"reserve": 9}}'},
            pool_slots=POOLS,
            parallelism=8,
        )
    keys = {problem.key for problem in caught.value.problems}
    assert {"mode", "callback_pool.deadline", "slot_quotas, reserves together"} <= keys


small = st.integers(0, 4)
some_quotas = st.dictionaries(
    st.sampled_from(CLASS_ORDER),
    st.tuples(small, st.none() | small).filter(lambda q: q[1] is None or q[0] <= q[1]),
)


@given(some_quotas, small, st.sampled_from(["default_pool", "other"]))
def test_whatever_passes_leaves_every_class_a_slot(quotas, slots, callback_pool):
    """The claim of the check, computed another way: alone in an idle pool, each class gets its one slot."""
    text = ", ".join(
        '"%s": {"reserve": %d, "limit": %s}' % (cls, reserve, "null" if limit is None else limit)  # noqa: UP031
        for cls, (reserve, limit) in quotas.items()
    )
    try:
        settings = parse_settings(
            {"pool_quotas": '{"default_pool": {%s}}' % text, "callback_pool": callback_pool}  # noqa: UP031
        )
    except ConfigurationError:
        return
    fits = True
    for cls in CLASS_ORDER:
        if settings.draws_on(cls, "default_pool"):
            free = slots
            for other in CLASS_ORDER:
                if other is not cls:
                    free -= settings.quota(Level.POOL, "default_pool", other).reserve_slots
            limit = settings.quota(Level.POOL, "default_pool", cls).limit_slots
            own_reserve = settings.quota(Level.POOL, "default_pool", cls).reserve_slots
            fits = fits and limit != 0 and free >= max(1, own_reserve)
    found = check_pools(settings, {"default_pool": slots, "other": 1})
    if slots > 0:
        assert (not found) == fits
