"""A task's record: what goes in comes out again, and is cut to what a record should hold."""

from brinery.errors import RemoteError
from brinery.spec import Task, TaskStatus
from brinery_platform.forwarder.outcomes import MAX_ERROR_TEXT, bounded
from brinery_platform.records import FIELDS, LISTED, from_listed, from_pairs, record_fields

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
    queued_at=1_800_000_002.25,
    sent_at=1_800_000_002.625,
    answered_at=1_800_000_003.125,
    stored_at=1_800_000_003.25,
    alone=True,
    retry_for=["ValueError", "HTTP 503"],
    priority_age_seconds=7.5,
    webhook={"url": "https://example.org/", "username": "", "password": "hush"},
    webhook_state={"status": "pending", "attempts": 1},
    incarnation="fwd_1:host",
    input_type="application/json",
    input=b"\x00\xff{}",
    input_object="inputs/tsk_1",
    result_type="x/y",
    result=b"",
    result_object="results/tsk_1.2",
    error={"type": "remote", "message": "ü", "context": {}},
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


def test_a_listing_leaves_payloads_and_secrets_out():
    pairs = as_redis_returns(record_fields(FULL))
    raw = dict(zip(pairs[::2], pairs[1::2], strict=True))
    listed = from_listed([raw.get(name.encode()) for name in LISTED])
    assert (listed.input, listed.result, listed.webhook) == (None, None, None)
    assert listed.idempotency_key == FULL.idempotency_key
    assert "hush" not in repr(FULL)


def test_what_a_worker_says_about_an_error_is_cut_to_what_a_record_should_hold():
    error = bounded(
        RemoteError("m" * 10**6, traceback="head" + "t" * 10**6 + "tail", exception_type="E", big=[0] * 10**6)
    )
    assert len(error.message) == MAX_ERROR_TEXT
    assert error.context["traceback"].endswith("tail")
    assert error.context["exception_type"] == "E"
    assert "big" not in error.context
