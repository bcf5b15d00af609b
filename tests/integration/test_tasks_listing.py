"""Lists of tasks and of dead letters, their filters and cursors, and what failed attempts leave; a real Valkey."""

import time

import pytest
from task_records import ENDPOINT, ME, OTHER, claimed, let_die, new_task, on_asyncio, submitted, trusts_the_leases

from brinery.errors import InvalidRequestError, RemoteError
from brinery.spec import TaskStatus
from brinery_platform.records import input_object, result_object
from brinery_platform.transitions import new_token

WRONG = RemoteError("no")
REPORT = {"attempt": 1, "charge": "full", "reason": "remote", "worker_id": "wrk_1", "error": {}, "log_tail": "oh\n"}
pytestmark = pytest.mark.usefixtures("incarnations")


async def whole_listing(pages, limit):
    """Ids of every page, and how many pages there were."""
    ids, cursor, count = [], None, 0
    while True:
        page = await pages(cursor, limit)
        ids += [task.id for task in page.tasks]
        cursor, count = page.cursor, count + 1
        if cursor is None:
            return ids, count


def test_a_listing_shows_an_owner_s_tasks_newest_first_in_pages(tasks, redis_url):
    mine = [submitted(tasks).id for _ in range(5)]
    other = submitted(tasks, endpoint_id="end_2").id
    submitted(tasks, owner="bob")
    tasks.cancel(mine[0])
    tasks.claim(mine[3], ME, new_token())

    async def work(gateway):
        ids, pages = await whole_listing(lambda cursor, limit: gateway.list("ann", cursor=cursor, limit=limit), 4)
        assert (ids, pages) == ([other, *reversed(mine)], 2)
        found = await gateway.list("ann", endpoint_id=ENDPOINT, statuses=[TaskStatus.CANCELLED])
        assert [task.id for task in found.tasks] == [mine[0]]
        assert all(task.input is None for task in found.tasks)
        with pytest.raises(InvalidRequestError):
            await gateway.list("ann", cursor="nonsense")

    on_asyncio(redis_url, work)


def test_each_status_has_its_own_index_through_a_task_s_whole_life(tasks, redis_url, redis_client):
    seen: list[list[str]] = []

    def look():
        async def work(gateway):
            for status in TaskStatus:
                page = await gateway.list("ann", statuses=[status])
                seen[-1] += [f"{status}:{task.status}" for task in page.tasks]

        seen.append([])
        on_asyncio(redis_url, work)

    claim = claimed(tasks, max_attempts=2)
    look()
    tasks.requeue(claim, reason="", charge="full", error=WRONG, delay_seconds=0)
    look()
    again = tasks.claim(claim.task.id, ME, new_token()).claim
    let_die(redis_client, ME)
    taken_over = tasks.claim(claim.task.id, OTHER, new_token())  # no attempt is left
    assert (again is not None, taken_over.reason) == (True, "final")
    look()
    tasks.requeue_dead(claim.task.id)
    look()
    assert seen == [[f"{each}:{each}"] for each in ("running", "queued", "failed", "queued")]


def test_a_listing_of_one_endpoint_among_many_tasks_of_another_finds_them_in_bounded_steps(tasks, redis_url):
    few = [submitted(tasks).id for _ in range(3)]
    for _ in range(2_500):
        submitted(tasks, endpoint_id="end_2")

    async def work(gateway):
        def page(cursor, limit):
            return gateway.list("ann", endpoint_id=ENDPOINT, cursor=cursor, limit=limit)

        assert not (await page(None, 10)).tasks, "a page that would read too much is short, with a cursor"
        ids, pages = await whole_listing(page, 10)
        assert (ids, pages) == ([few[2], few[1], few[0]], 2)

    on_asyncio(redis_url, work)


# ------------------------------------------------------------------------------------------------------ dead letters
def test_dead_letters_of_several_endpoints_are_one_list(tasks, redis_url):
    dead = []
    for endpoint_id in (ENDPOINT, "end_2", ENDPOINT):
        claim = claimed(tasks, endpoint_id=endpoint_id, max_attempts=1)
        tasks.requeue(claim, reason="", charge="full", error=WRONG)
        dead.append(claim.task.id)
    tasks.finish(
        claimed(tasks), TaskStatus.FAILED, reason="remote", error=WRONG.to_json()["error"]
    )  # an answer, no dead letter

    async def work(gateway):
        both = [ENDPOINT, "end_2"]
        ids, pages = await whole_listing(lambda cursor, limit: gateway.list_dead(both, cursor, limit), 2)
        assert (ids, pages) == (dead[::-1], 2)
        assert [task.id for task in (await gateway.list_dead(["end_2"])).tasks] == [dead[1]]

    on_asyncio(redis_url, work)


def test_what_is_known_of_each_failed_attempt_is_kept_with_those_of_dead_forwarders(tasks, redis_url, redis_client):
    claim = claimed(tasks)
    tasks.requeue(claim, reason="remote", charge="full", error=WRONG, delay_seconds=0, report=REPORT)
    tasks.claim(claim.task.id, ME, new_token())
    tasks.incarnation_died("fwd_a")
    redis_client.zrem("due", claim.task.id)
    redis_client.hdel(f"task:{claim.task.id}", "not_before")
    last = tasks.claim(claim.task.id, OTHER, new_token()).claim
    tasks.finish(
        last, TaskStatus.FAILED, reason="remote", report=REPORT | {"attempt": 3}, error=WRONG.to_json()["error"]
    )

    async def work(gateway):
        first, second, third = await gateway.attempts(claim.task.id)
        assert (first, third) == (REPORT, REPORT | {"attempt": 3})
        assert (second["attempt"], second["reason"], second["worker_id"]) == (2, "forwarder died", None)
        assert second["started_at"] <= second["ended_at"]
        assert second["error"]["type"] == "worker"

    on_asyncio(redis_url, work)


def test_a_spared_attempt_stays_counted_and_the_task_may_have_one_more(tasks):
    claim = claimed(tasks, max_attempts=1)
    assert tasks.requeue(claim, reason="", charge="spared", error=WRONG, delay_seconds=0, alone=True) == "queued"
    task = tasks.get(claim.task.id)
    assert (task.attempt, task.max_attempts, task.alone) == (1, 2, True)
    again = tasks.claim(task.id, ME, new_token()).claim
    assert tasks.requeue(again, reason="", charge="full", error=WRONG) == "failed"


def test_a_dropped_dead_letter_is_deleted_by_the_next_sweep(tasks, redis_url, redis_client, objects):
    task = new_task(input=None, max_attempts=1)
    claim = tasks.claim(tasks.submit(task).task.id, ME, new_token()).claim
    large, given_up = input_object(task.id, "0"), result_object(task.id, 1)
    redis_client.hset(f"task:{task.id}", "input_object", large)
    for key in (large, given_up):  # the attempt had stored its result before it was given up
        objects.put(key, b"large")

    async def drop(gateway):
        return [await gateway.drop(task.id), await gateway.drop("tsk_unknown")]

    assert on_asyncio(redis_url, drop) == ["not_final", "gone"]
    tasks.requeue(claim, reason="", charge="full", error=WRONG, report=REPORT)
    assert on_asyncio(redis_url, drop) == ["dropped", "gone"]
    assert tasks.requeue_dead(task.id) == "gone", "its input may be deleted already"
    trusts_the_leases(redis_client)
    tasks.sweep(objects)
    assert tasks.get(task.id) is None
    assert not objects.exists(large)
    assert not objects.exists(given_up)
    assert not [key for key in redis_client.keys("*") if task.id.encode() in key]


def test_the_end_of_a_task_with_a_webhook_makes_a_delivery_due(tasks, redis_client):
    plain, hooked = claimed(tasks), claimed(tasks, webhook={"url": "https://example.org/", "password": "p"})
    before = time.time()
    for claim in (plain, hooked):
        tasks.finish(claim, TaskStatus.SUCCEEDED, reason="")
    assert [member for member, _ in redis_client.zrange("webhooks", 0, -1, withscores=True)] == [
        hooked.task.id.encode()
    ]
    assert abs(redis_client.zscore("webhooks", hooked.task.id) - before) < 60
