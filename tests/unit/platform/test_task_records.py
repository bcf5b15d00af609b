"""A task's record: what goes in comes out again; the slots and errors of the forwarder, without a process."""

import threading

from brinery.errors import RemoteError
from brinery.spec import EndpointSpec, EndpointStatus, Task, TaskStatus
from brinery_platform.forwarder.outcomes import MAX_ERROR_TEXT, bounded
from brinery_platform.forwarder.slots import MAX_SLOTS, Slots
from brinery_platform.records import FIELDS, LISTED, from_listed, from_pairs, record_fields
from brinery_platform.routes import EndpointRoute, WorkerRoute

FULL = Task(
    id="tsk_1",
    endpoint_id="end_1",
    owner="ann",
    status=TaskStatus.FAILED,
    attempt=2,
    max_attempts=3,
    priority=9,
    timeout_seconds=1.5,
    result_ttl_seconds=60.0,
    created_at=1_800_000_000.123456,
    expires_at=1_800_000_600.654321,
    not_before=1_800_000_001.5,
    started_at=1_800_000_002.5,
    finished_at=1_800_000_003.5,
    incarnation="fwd_1:host",
    input_type="application/json",
    input=b"\x00\xff{}",
    input_object="inputs/tsk_1",
    result_type="x/y",
    result=b"",
    result_object="results/tsk_1.2",
    error={"error": {"type": "remote", "message": "ü", "context": {}}},
    idempotency_key="ключ",
)


def as_redis_returns(fields):
    return [field if isinstance(field, bytes) else str(field).encode() for field in fields]


def test_every_field_of_a_task_survives_its_record():
    assert all(getattr(FULL, name) is not None for name in FIELDS)
    assert from_pairs(as_redis_returns(record_fields(FULL))) == FULL


def test_fields_that_are_not_set_stay_so():
    bare = Task(**{name: getattr(FULL, name) for name in FIELDS[:11]})
    assert from_pairs(as_redis_returns(record_fields(bare))) == bare


def test_a_listing_leaves_the_payloads_out():
    pairs = as_redis_returns(record_fields(FULL))
    raw = dict(zip(pairs[::2], pairs[1::2], strict=True))
    listed = from_listed([raw.get(name.encode()) for name in LISTED])
    assert (listed.input, listed.result, listed.idempotency_key) == (None, None, FULL.idempotency_key)


def route(*ids, concurrency=2):
    return EndpointRoute(
        id="end_1",
        owner="ann",
        status=EndpointStatus.READY,
        reason="",
        version=1,
        spec=EndpointSpec(name="a", bundle_id="bun_1", concurrency=concurrency),
        workers=tuple(WorkerRoute(id=name, url=f"http://{name}", control_url="") for name in ids),
    )


def test_the_worker_with_the_fewest_in_flight_is_picked_until_all_slots_are_taken():
    slots = Slots()
    slots.update(route("a", "b"))
    picked = [slots.acquire(0).id for _ in range(4)]
    assert sorted(picked[:2]) == sorted(picked[2:]) == ["a", "b"]
    assert slots.acquire(0) is None
    assert (slots.in_flight, slots.size) == (4, 4)


def test_a_waiter_gets_the_slot_that_is_given_back_or_appears():
    slots = Slots()
    found = []
    waiter = threading.Thread(target=lambda: found.append(slots.acquire(10)))
    waiter.start()
    slots.update(route("a", concurrency=1))
    waiter.join()
    waiter = threading.Thread(target=lambda: found.append(slots.acquire(10)))
    waiter.start()
    slots.release(found[0])
    waiter.join()
    assert [worker.id for worker in found] == ["a", "a"]


def test_a_busy_worker_rests_and_is_tried_again():
    slots = Slots()
    slots.update(route("a", "b"))
    busy = slots.acquire(0)
    slots.release(busy, rest_seconds=0.2)
    other = {slots.acquire(0).id for _ in range(2)}
    assert other == {"a", "b"} - {busy.id}
    assert slots.acquire(0) is None
    assert slots.acquire(10) == busy


def test_slots_are_bounded_below_and_above():
    slots = Slots()
    assert slots.size == 1
    slots.update(route("a", "b", concurrency=200))
    assert slots.size == MAX_SLOTS
    slots.update(None)
    assert slots.acquire(0) is None


def test_what_a_worker_says_about_an_error_is_cut_to_what_a_record_should_hold():
    error = bounded(
        RemoteError("m" * 10**6, traceback="head" + "t" * 10**6 + "tail", exception_type="E", big=[0] * 10**6)
    )
    assert len(error.message) == MAX_ERROR_TEXT
    assert error.context["traceback"].endswith("tail")
    assert error.context["exception_type"] == "E"
    assert "big" not in error.context
