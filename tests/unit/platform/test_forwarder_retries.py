"""Which of the user's errors are tried again, and whose fault a broken connection was; the decisions alone."""

import pytest

from brinery.checks import check_retry_for
from brinery.errors import InvalidRequestError, RemoteError, WorkerError
from brinery_platform.fates import Fate
from brinery_platform.forwarder.blame import NEIGHBOUR_DELAY_SECONDS, judge
from brinery_platform.forwarder.retries import matching_entry

TIMEOUT = RemoteError(
    "too slow",
    exception_type="ReadTimeout",
    exception_classes=[
        "requests.exceptions.ReadTimeout",
        "requests.exceptions.Timeout",
        "requests.exceptions.RequestException",
        "builtins.OSError",
        "builtins.Exception",
        "builtins.BaseException",
    ],
    http_status=503,
)


@pytest.mark.parametrize(
    ("entry", "matches"),
    [
        ("ReadTimeout", True),
        ("OSError", True),
        ("Exception", True),
        ("ValueError", False),
        ("Timeout", True),
        ("ReadTime", False),
        ("readtimeout", False),
        ("exceptions.Timeout", False),
        ("requests.exceptions.Timeout", True),
        ("requests.Timeout", False),
        ("builtins.OSError", True),
        ("HTTP 500", True),
        ("HTTP 503", True),
        ("HTTP 502", False),
    ],
)
def test_an_entry_matches_a_class_a_base_a_whole_name_or_a_status(entry, matches):
    check_retry_for([entry])
    assert matching_entry(["NothingError", entry], TIMEOUT, 500) == (entry if matches else None)


def test_without_entries_nothing_is_tried_again():
    assert matching_entry([], TIMEOUT, 500) is None


@pytest.mark.parametrize(
    "context", [{}, {"exception_classes": "ValueError"}, {"exception_classes": [["ValueError"], 3]}]
)
def test_what_a_worker_says_may_be_of_any_shape(context):
    assert matching_entry(["ValueError"], RemoteError("x", **context), 500) is None


def test_the_status_of_any_refusal_counts():
    assert matching_entry(["HTTP 422"], InvalidRequestError("no"), 422) == "HTTP 422"


BROKEN = WorkerError("The worker ended its connection.", worker_id="wrk_1")


@pytest.mark.parametrize(
    ("fate", "alone", "company", "charge", "next_alone"),
    [
        (Fate(fate="crashed", reason="signal 9 (SIGKILL)"), False, 3, "full", False),
        (Fate(fate="crashed", reason="signal 9 (SIGKILL)", others=1), False, 0, "spared", True),
        (Fate(fate="crashed", reason="signal 9 (SIGKILL)", others=1), True, 0, "full", False),
        (Fate(fate="gone"), False, 0, "full", False),
        (Fate(fate="gone"), False, 2, "spared", True),
        (Fate(fate="gone"), True, 0, "full", False),
        (Fate(fate="unknown"), False, 0, "full", False),
        (Fate(fate="unknown"), False, 1, "spared", True),
        (Fate(fate="neighbour", reason="ended by us", others=1), False, 1, "spared", False),
        (Fate(fate="neighbour", reason="ended by us"), True, 0, "spared", False),
        (Fate(fate="stopped", reason="ran out of time"), False, 1, "full", False),
        (Fate(fate="running"), False, 0, "full", False),
    ],
)
def test_an_attempt_is_charged_when_its_fault_is_sure_or_it_had_the_worker_for_itself(
    fate, alone, company, charge, next_alone
):
    again = judge(fate, BROKEN, alone=alone, company=company)
    assert (again.charge, again.alone) == (charge, next_alone)
    assert again.delay_seconds == (NEIGHBOUR_DELAY_SECONDS if charge == "spared" else None)
    assert fate.reason in again.error.message
    assert again.error.context["worker_id"] == "wrk_1"


def test_a_request_that_had_to_be_stopped_by_force_ran_out_of_time():
    again = judge(Fate(fate="stopped", reason="req_1 ran out of time"), BROKEN, alone=False, company=0)
    assert (again.reason, again.error.wire_type()) == ("upstream_timeout", "upstream_timeout")
