"""The one table of options in ``[callback_priority]``.

The parser, the settings' defaults, the provider information that `airflow config list` prints and the
reference page are all made from it, so that none of them can disagree with another. It is read at start by
every Airflow process, so it imports next to nothing.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["OPTIONS", "OPTIONS_BY_NAME", "SECTION", "SECTION_DESCRIPTION", "Option"]

SECTION: Final = "callback_priority"
"""The section's name in Airflow's configuration."""

SECTION_DESCRIPTION: Final = (
    "How callback-priority shares slots between task instances and callbacks. The scheduler reads this "
    "section at start; restart it to apply a change. If anything in the section is invalid, the scheduler runs "
    "as it would without the library and logs one error that lists every problem."
)

_DAY_SECONDS: Final = 86_400
_YEAR_SECONDS: Final = 366 * _DAY_SECONDS


@attrs.frozen(kw_only=True)
class Option:
    """One option.

    Args:
        name: Its name in the section, and the name of the field of `Settings` that holds it.
        type: Its type as Airflow's configuration describes types; JSON is a string there.
        default: What stands for it when it is not set, as it would be written.
        example: Something an operator could write.
        description: What it does, for `airflow config list` and the reference page.
        why_default: Why the default is what it is, for the reference page.
        choices: The words it may be, if it is one of a few.
        minimum: The smallest number allowed, for numbers.
        maximum: The largest number allowed, for numbers.
        version_added: The version of this library that brought it.
    """

    name: str
    type: Literal["string", "integer", "float", "boolean"]
    default: str
    example: str
    description: str
    why_default: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    version_added: str = "0.1.0"


OPTIONS: Final[tuple[Option, ...]] = (
    Option(
        name="mode",
        type="string",
        default="off",
        example="active",
        choices=("off", "shadow", "active"),
        description=(
            "Whether the library takes part in scheduling. `off`: Airflow runs unchanged. `shadow`: decide and "
            "record what it would do, in its own tables only. `active`: hand out the slots."
        ),
        why_default=(
            "Installing a package must not change how a deployment schedules. Go through `shadow` first, which "
            "changes nothing but shows what `active` would do."
        ),
    ),
    Option(
        name="policy",
        type="string",
        default="fair",
        example="callbacks_first",
        choices=("fair", "callbacks_first", "tasks_first"),
        description=(
            "How free slots are split between service classes, within reserves and limits. `fair`: by `weights`, "
            "in slot-time. `callbacks_first`, `tasks_first`: strictly one before the other, as Airflow does by "
            "accident."
        ),
        why_default=(
            "It is the only one of the three under which neither side can starve the other. The other two are "
            "for those who want Airflow's old outcome on purpose."
        ),
    ),
    Option(
        name="weights",
        type="string",
        default='{"deadline": 1, "task_callback": 1, "dag_callback": 1, "task": 1}',
        example='{"task": 3, "deadline": 1}',
        description=(
            "JSON object: service class (`deadline`, `task_callback`, `dag_callback`, `task`) to its share of "
            "slot-time while it has work, relative to the other classes that have work. From 0.001 to 1000000, "
            "at most 3 decimals; a class that is not named has 1."
        ),
        why_default=(
            "Equal shares need no knowledge of the deployment and promise something to everybody: a class that "
            "always has work gets at least a quarter, and at least half against one other class. A share is only "
            "felt while others wait, so short callbacks take far less than theirs in quiet times."
        ),
    ),
    Option(
        name="slot_quotas",
        type="string",
        default="{}",
        example='{"deadline": {"reserve": 2, "limit": 16}, "task": {"reserve": 4}}',
        description=(
            "JSON object: service class to `reserve` and `limit`, in slots of each scheduler (of `[core] "
            "parallelism`). A reserve is held empty for the class and never lent; a limit is the most that the "
            "class may hold; `null` is no limit."
        ),
        why_default=(
            "A reserve costs capacity at all times, so it has to be chosen: only you know what an alert that "
            "starts within seconds is worth. Without limits no slot stays empty while anything waits."
        ),
    ),
    Option(
        name="pool_quotas",
        type="string",
        default="{}",
        example='{"*": {"deadline": {"limit": 8}}, "etl": {"task": {"reserve": 10, "weight": 4}}}',
        description=(
            "JSON object: pool to service class to `reserve`, `limit` and `weight`, in pool slots of the whole "
            "deployment. The pool `*` stands for every pool that is not named; a named pool takes from `*` each "
            "key that it does not set itself. Without a `weight` the one in `weights` holds."
        ),
        why_default=(
            "As for `slot_quotas`; and a pool's slots already are a limit, which callbacks keep to as soon as the "
            "library is active."
        ),
    ),
    Option(
        name="callback_pool",
        type="string",
        default="default_pool",
        example='{"deadline": "alerts", "task_callback": "inherit"}',
        description=(
            "The pool whose slots callbacks take: a pool's name for all of them, or a JSON object from callback "
            "class to pool. `inherit`, for `task_callback` only, is the pool of the task. A class that is not "
            "named draws on `default_pool`."
        ),
        why_default=(
            "`default_pool` exists in every deployment and is where tasks run that name none, so callbacks are "
            "counted where most of the work is. Inheriting would let a small pool that guards a fragile system "
            "hold up callbacks that never touch it."
        ),
    ),
    Option(
        name="dag_priorities",
        type="string",
        default="{}",
        example='{"billing_*": 10, "sandbox_*": -5}',
        description=(
            "JSON object: pattern of Dag ids (`*`, `?`, `[abc]`; case matters) to the priority of the Dag's "
            "deadline and Dag callbacks within their class, a whole number; the first pattern that matches wins. "
            "Dags that match none keep the priority Airflow gave the callback; task callbacks take their task's "
            "`priority_weight`."
        ),
        why_default="Airflow gives every deadline callback the same priority; only you know which Dags matter more.",
    ),
    Option(
        name="use_worker_callbacks",
        type="string",
        default="none",
        example="all",
        choices=("none", "task", "dag", "all"),
        description=(
            "Which callbacks leave the Dag processor for workers and the triggerer, where they compete for slots by "
            "their class. `task`: task callbacks and the e-mails of tasks. `dag`: Dag callbacks. `all`: both. "
            "`none`: the Dag processor runs them, as Airflow does. Takes effect with `mode = active`; with `shadow` "
            "it is only counted what would be moved. Set it for schedulers, triggerers, Dag processors, API servers "
            "and workers alike."
        ),
        why_default="Installing a package must not move anybody's callbacks. Move one Dag first, see `worker_callbacks_include`.",
    ),
    Option(
        name="worker_callbacks_include",
        type="string",
        default="*",
        example="billing_*, reports",
        description=(
            "The Dags that `use_worker_callbacks` is about: patterns of Dag ids (`*`, `?`, `[abc]`; case matters), "
            "separated by commas."
        ),
        why_default="Whoever switches `use_worker_callbacks` on means every Dag, unless they say which.",
    ),
    Option(
        name="worker_callbacks_exclude",
        type="string",
        default="",
        example="legacy_*",
        description="Patterns of the Dags whose callbacks stay with the Dag processor; they win over `worker_callbacks_include`.",
        why_default="Nothing is left out unless named.",
    ),
    Option(
        name="callback_executor",
        type="string",
        default="{}",
        example='{"dag_callback": "LocalExecutor", "task_callback": "LocalExecutor"}',
        description=(
            "JSON object: callback class to the executor that runs it, named as in `[core] executor`. A callback that "
            "names an executor itself keeps it; a class that is not named runs on the default executor."
        ),
        why_default=(
            "Most deployments have one executor. Where tasks run on Kubernetes, name a second one here, so that no "
            "pod is started for each callback."
        ),
    ),
    Option(
        name="callback_queue",
        type="string",
        default="",
        example='{"deadline": "alerts", "task_callback": "callbacks"}',
        description=(
            "The queue of an executor that has queues (Celery): a name for all callbacks, or a JSON object from callback "
            "class to name. What is not named goes to `[operators] default_queue`."
        ),
        why_default=(
            "Workers listen to `default_queue` in every deployment. Callbacks that must not wait in the broker behind "
            "tasks need a queue with workers of its own."
        ),
    ),
    Option(
        name="callback_batch_size",
        type="integer",
        default="8",
        example="1",
        minimum=1,
        maximum=1_000,
        description=(
            "How many waiting callbacks of one Dag file and class may share one run of a worker, one after the other, "
            "so that the file is parsed once for all of them. Each has its own state, log and time limit. 1 gives each "
            "a run of its own."
        ),
        why_default=(
            "Parsing costs far more than most callbacks, so eight together are several times as fast; and a run of "
            "eight is still short enough to let others have their turn."
        ),
    ),
    Option(
        name="callback_time_limit_seconds",
        type="float",
        default="300",
        example="60",
        minimum=0.1,
        maximum=_DAY_SECONDS,
        description=(
            "How long, in seconds, a Dag or task callback may run on a worker before its process is killed and it is "
            "failed. Deadline callbacks have Airflow's own limit, `[callbacks] callback_execution_timeout`."
        ),
        why_default=(
            "Alerts take seconds; five minutes lets a slow service answer, and no callback holds a slot for ever. The "
            "Dag processor allows 50 s for a whole file (`[dag_processor] dag_file_processor_timeout`)."
        ),
    ),
    Option(
        name="callback_load_limit_seconds",
        type="float",
        default="120",
        example="30",
        minimum=1,
        maximum=_DAY_SECONDS,
        description="How long, in seconds, a worker may take to fetch the bundle and parse the Dag file before its first callback.",
        why_default="Four times Airflow's `dagbag_import_timeout`, since a bundle may have to be fetched first.",
    ),
    Option(
        name="callback_log_limit_bytes",
        type="integer",
        default="1048576",
        example="65536",
        minimum=1_024,
        maximum=2**31 - 1,
        description="How large, in bytes, the log of one callback may grow; what it prints beyond is dropped, and the log says so.",
        why_default="One megabyte holds any sensible log and keeps a callback that floods from filling the disk.",
    ),
    Option(
        name="callback_max_attempts",
        type="string",
        default="3",
        example='{"deadline": 5, "task_callback": 1}',
        minimum=1,
        maximum=1_000,
        description=(
            "How often a callback is tried in all, if attempts are lost: its scheduler or worker died, or nothing took it "
            "in time. A whole number, or a JSON object from callback class to one. 1 is at most once; with more, a callback "
            "whose worker died while it ran is run again, so it must bear that."
        ),
        why_default=(
            "A machine that dies should cost no alert, and nothing that kills every worker it meets gets a fourth. Airflow "
            "itself never tries again, and forgets what a dead scheduler or worker had."
        ),
    ),
    Option(
        name="callback_retry_on_failure",
        type="string",
        default="none",
        example="deadline, dag_callback",
        description=(
            "The callback classes, separated by commas, of which a callback is also tried again when its own code failed: it "
            "raised, or exceeded its time limit. `all` for all three, `none` for none. The attempts are those of "
            "`callback_max_attempts`."
        ),
        why_default=(
            "As in Airflow: whether a callback that raised half-way may be called again is known only to whoever wrote it."
        ),
    ),
    Option(
        name="callback_retry_delay_seconds",
        type="string",
        default="30",
        example='{"deadline": 5, "dag_callback": 60}',
        minimum=0,
        maximum=_DAY_SECONDS,
        description=(
            "How long, in seconds, a callback waits after its first failed or lost attempt; doubled with each further one, "
            "up to `callback_retry_max_delay_seconds`, of which between half and all is waited. A number, or a JSON object "
            "from callback class to one. A callback whose scheduler died does not wait."
        ),
        why_default="A service that is restarted is back within half a minute, and so is a worker.",
    ),
    Option(
        name="callback_retry_max_delay_seconds",
        type="float",
        default="600",
        example="120",
        minimum=0,
        maximum=_DAY_SECONDS,
        description="The longest delay, in seconds, before a callback is tried again.",
        why_default="An alert that is ten minutes late may still help; one that is an hour late seldom does.",
    ),
    Option(
        name="callback_time_to_live_seconds",
        type="string",
        default="{}",
        example='{"deadline": 900, "task_callback": 3600}',
        minimum=1,
        maximum=_YEAR_SECONDS,
        description=(
            "How long, in seconds since it began to wait, a callback may be started; one that has waited longer is failed, "
            "with the reason in its output. A number for all callbacks, or a JSON object from callback class to one; a class "
            "that is not named waits for ever."
        ),
        why_default="Nothing is lost unless you say that it has become worthless.",
    ),
    Option(
        name="callback_queued_timeout_seconds",
        type="float",
        default="0",
        example="300",
        minimum=0,
        maximum=_YEAR_SECONDS,
        description=(
            "How long, in seconds, a callback that was given a slot may wait for a worker before the attempt is taken for "
            "lost. 0 is `[scheduler] task_queued_timeout` and a minute."
        ),
        why_default="So long a task instance may wait for one. A worker's token is valid until the attempt is given up.",
    ),
    Option(
        name="callback_heartbeat_timeout_seconds",
        type="float",
        default="0",
        example="60",
        minimum=0,
        maximum=_YEAR_SECONDS,
        description=(
            "How long, in seconds, a worker that runs a callback may be silent before the attempt is taken for lost. Workers "
            "report every ten seconds. 0 is `[scheduler] task_instance_heartbeat_timeout`."
        ),
        why_default="What holds for a task's worker holds for a callback's.",
    ),
    Option(
        name="callback_running_timeout_seconds",
        type="float",
        default="21600",
        example="3600",
        minimum=1,
        maximum=_YEAR_SECONDS,
        description=(
            "How long, in seconds, a callback may run on a worker that does not report, since it lacks this library, before "
            "the attempt is taken for lost."
        ),
        why_default="Nothing is known of such a run but when it began; six hours is longer than any callback should take.",
    ),
    Option(
        name="initial_hold_seconds",
        type="float",
        default="1.0",
        example="5.0",
        minimum=0.001,
        maximum=_DAY_SECONDS,
        description=(
            "How long a class is first assumed to hold a slot, in seconds, until real holds have been seen. It is "
            "charged at a grant and corrected to the real hold at release."
        ),
        why_default=(
            "The error is settled when the slot comes back, so it only colours the first minutes. A low value "
            "lets every class start something at once, which is how its real holds get known."
        ),
    ),
    Option(
        name="priority_aging_seconds",
        type="float",
        default="600",
        example="60",
        minimum=0,
        maximum=_YEAR_SECONDS,
        description=(
            "How many seconds of waiting outweigh one doubling of `1 + priority` between callbacks of one class. "
            "The smaller, the sooner old callbacks overtake important ones; 0 makes priorities count for nothing."
        ),
        why_default=(
            "Ten minutes is longer than a burst usually lasts, so important callbacks do go first, and short "
            "enough that priority 7 (three doublings) never delays another by more than half an hour."
        ),
    ),
    Option(
        name="dag_turn_seconds",
        type="float",
        default="10",
        example="1",
        minimum=0,
        maximum=_DAY_SECONDS,
        description=(
            "How far apart, in seconds, the waiting callbacks of one Dag are placed in their class's queue, so "
            "that other Dags' go in between. 0 is plain first come, first served."
        ),
        why_default=(
            "A Dag that sends hundreds at once is spread over the coming minutes, and another Dag's alert passes "
            "it; a Dag that sends one every ten seconds or fewer is not delayed at all."
        ),
    ),
    Option(
        name="wide_bypass_limit",
        type="integer",
        default="16",
        example="4",
        minimum=0,
        maximum=1_000_000,
        description=(
            "How many slots may be granted past a task instance that is due but needs more pool slots than are "
            "open (`pool_slots` above 1), before slots are kept for it."
        ),
        why_default=(
            "Never waiting starves wide tasks, always waiting leaves slots empty; 16 is about one scheduler "
            "loop's worth of grants with Airflow's default `max_tis_per_query`."
        ),
    ),
    Option(
        name="sweep_interval_seconds",
        type="float",
        default="60",
        example="300",
        minimum=1,
        maximum=_DAY_SECONDS,
        description=(
            "How often, in seconds, a scheduler looks for callbacks that came in without the library noticing (a "
            "scheduler without it, a time before it was installed) and tidies its tables."
        ),
        why_default=(
            "Callbacks are normally seen as they come in, so this only bounds how late a stray one is found; a "
            "minute costs next to nothing."
        ),
    ),
    Option(
        name="reconcile_interval_seconds",
        type="float",
        default="30",
        example="10",
        minimum=1,
        maximum=_DAY_SECONDS,
        description=(
            "How often, in seconds, a scheduler compares the slots that it counts as held with the executors and "
            "the database."
        ),
        why_default=(
            "Releases are normally seen as events, so this only bounds how long a slot can look held after an "
            "event was lost; 30 seconds is well below what anybody would notice as lost capacity."
        ),
    ),
    Option(
        name="executor_retry_seconds",
        type="float",
        default="30",
        example="10",
        minimum=1,
        maximum=_DAY_SECONDS,
        description=(
            "How long, in seconds, a callback waits aside before it is tried again when its executor is missing "
            "or cannot take it for now."
        ),
        why_default="An executor that is missing during a rolling deployment is back within about a minute.",
    ),
    Option(
        name="executor_time_to_live_seconds",
        type="float",
        default="3600",
        example="86400",
        minimum=1,
        maximum=_YEAR_SECONDS,
        description=(
            "How long, in seconds, a callback may wait for a missing executor before it is failed, with the "
            "reason in its output. At least `executor_retry_seconds`."
        ),
        why_default=(
            "An hour outlives deployments and most outages; an alert that is older than that misleads more than "
            "it helps."
        ),
    ),
    Option(
        name="history_seconds",
        type="float",
        default="604800",
        example="86400",
        minimum=0,
        maximum=10 * _YEAR_SECONDS,
        description=(
            "How long, in seconds, finished callbacks stay in the library's tables, for `status`. Airflow's own "
            "rows are not touched."
        ),
        why_default="A week shows the weekly rhythm of most deployments and keeps the table small.",
    ),
    Option(
        name="journal",
        type="boolean",
        default="False",
        example="True",
        description=(
            "Whether every pass through the scheduler's critical section that changes the fair queue leaves a row that says "
            "how, for audits. Rows are kept for `history_seconds`."
        ),
        why_default="It is evidence for those who doubt the shares; the queue does not need it.",
    ),
    Option(
        name="failure_threshold",
        type="integer",
        default="3",
        example="1",
        minimum=1,
        maximum=1_000,
        description=(
            "After how many failures of the library in a row it steps aside and leaves scheduling to Airflow for "
            "`failure_back_off_seconds`."
        ),
        why_default=(
            "One failure can be a lost database connection, which Airflow's own loop meets too; three in a row "
            "will not pass by themselves."
        ),
    ),
    Option(
        name="failure_back_off_seconds",
        type="float",
        default="60",
        example="600",
        minimum=1,
        maximum=_DAY_SECONDS,
        description="How long, in seconds, the library stays aside after `failure_threshold` failures in a row.",
        why_default=(
            "Long enough that a persistent failure costs nothing and fills no log, short enough that a database "
            "failover does not leave callbacks unmanaged for long."
        ),
    ),
)
"""Every option, in the order in which they are listed."""

OPTIONS_BY_NAME: Final[Mapping[str, Option]] = MappingProxyType({option.name: option for option in OPTIONS})
