"""Every request of a callback's process is decoded to something that is answered."""

from __future__ import annotations

import typing

import pytest

from callback_priority.worker.messages import Refused, RequestDecoder, ToRunner
from callback_priority.worker.supervisor import _READINGS

decode = RequestDecoder().validate_python


@pytest.mark.parametrize(
    "body", [None, 1, [], {}, {"type": 3}, {"type": "Unheard"}, {"type": "GetVariable"}, {"type": "SetXCom"}]
)
def test_whatever_is_not_known_is_refused(body):
    assert isinstance(decode(body), Refused)


def test_a_refusal_names_the_request():
    assert decode({"type": "TriggerDagRun", "dag_id": "d"}).name == "TriggerDagRun"


def test_what_may_be_read_is_decoded():
    assert decode({"type": "GetVariable", "key": "k"}).key == "k"


def test_each_request_that_is_decoded_is_acted_on():
    known = set(typing.get_args(typing.get_args(ToRunner)[0]))
    by_hand = {"UnitStarting", "UnitEnded", "MaskSecret", "GetPrevSuccessfulDagRun"}
    assert {each.__name__ for each in known} == {each.__name__ for each in _READINGS} | by_hand


def test_what_the_dag_processor_answers_is_answered():
    from airflow.dag_processing.processor import ToManager

    theirs = {each.__name__ for each in typing.get_args(typing.get_args(ToManager)[0])}
    ours = {each.__name__ for each in typing.get_args(typing.get_args(ToRunner)[0])}
    assert theirs - ours == {"DagFileParsingResult"}


def test_nothing_that_changes_more_than_variables_is_answered():
    ours = {each.__name__ for each in typing.get_args(typing.get_args(ToRunner)[0])}
    changing = {name for name in ours if not name.startswith("Get")}
    assert changing == {"UnitStarting", "UnitEnded", "MaskSecret", "PutVariable", "DeleteVariable"}
