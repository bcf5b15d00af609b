"""The scaling policy: signals in, a number and its reason out."""

from __future__ import annotations

import pytest

from brinery.spec import EndpointSpec
from brinery_platform.controller.policy import Signals, decide, surplus


def spec(**changes: object) -> EndpointSpec:
    return EndpointSpec(name="a", bundle_id="bun_1", **{"max_workers": 4, "idle_seconds": 10.0, **changes})


def signals(**changes: object) -> Signals:
    base = {"ready": 0, "starting": 0, "in_flight": 0, "waiting": 0, "idle_seconds": 0.0}
    return Signals(**{**base, **changes})


@pytest.mark.parametrize(
    ("given", "seen", "wanted"),
    [
        pytest.param({}, {}, 0, id="nothing asked at zero stays at zero"),
        pytest.param({}, {"waiting": 50}, 1, id="whoever waits at zero starts one worker, not many"),
        pytest.param({}, {"waiting": 50, "starting": 1}, 1, id="while one starts, no other is started"),
        pytest.param({}, {"waiting": 5, "ready": 1, "in_flight": 1}, 2, id="all slots busy and waiting adds one"),
        pytest.param({}, {"waiting": 5, "ready": 1, "in_flight": 0}, 1, id="a free slot takes who waits"),
        pytest.param({"concurrency": 4}, {"waiting": 1, "ready": 1, "in_flight": 3}, 1, id="slots count, not workers"),
        pytest.param({}, {"waiting": 5, "ready": 4, "in_flight": 4}, 4, id="never above max_workers"),
        pytest.param({}, {"ready": 2, "idle_seconds": 9.9}, 2, id="not yet idle long enough"),
        pytest.param({}, {"ready": 2, "idle_seconds": 10.0}, 1, id="idle long enough drops one"),
        pytest.param({"min_workers": 2}, {"ready": 2, "idle_seconds": 99.0}, 2, id="never below min_workers"),
        pytest.param({"min_workers": 2}, {}, 2, id="min_workers run without any request"),
        pytest.param({}, {"ready": 6, "in_flight": 6}, 4, id="too many after an edit are reduced"),
        pytest.param(
            {}, {"ready": 1, "starting": 1, "idle_seconds": 99.0}, 2, id="nothing is dropped while one starts"
        ),
    ],
)
def test_the_wanted_number_of_workers(given: dict[str, object], seen: dict[str, object], wanted: int) -> None:
    assert decide(spec(**given), signals(**seen)).workers == wanted


def test_every_change_comes_with_its_reason() -> None:
    assert "2 waiting and no worker" in decide(spec(), signals(waiting=2)).reason
    assert "not needed for 12 s" in decide(spec(), signals(ready=1, idle_seconds=12.0)).reason


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ({"ready": 0}, False),
        ({"ready": 1}, True),
        ({"ready": 1, "in_flight": 1}, False),
        ({"ready": 2, "in_flight": 1}, True),
        ({"ready": 2, "in_flight": 1, "waiting": 1}, False),
    ],
)
def test_a_worker_is_surplus_when_one_less_would_do(seen: dict[str, object], expected: bool) -> None:
    assert surplus(spec(), signals(**seen)) is expected
