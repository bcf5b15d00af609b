"""Maps over real HTTP: in order, lazily, side by side, in bounded memory, and tidy when they are left."""

import asyncio
import itertools
import json
import threading
import time
import tracemalloc

import pytest
from little_gateway import KEY

from brinery import InvalidRequestError, NotFoundError, OverloadedError, RemoteError, endpoint
from brinery.calls import Calls
from brinery.mapping import MAP_AHEAD

DEADLINE_SECONDS = 30.0


@pytest.fixture(params=["map", "amap"])
def mapped(request):
    """A map as an ordinary generator; ``amap`` is driven by a loop of its own."""

    def mapped(calls, items):
        if request.param == "map":
            return calls.map(items)
        return _driven(calls, items)

    return mapped


def _driven(calls, items):
    with asyncio.Runner() as runner:
        results = calls.amap(items)
        try:
            while True:
                try:
                    result = runner.run(anext(results))
                except StopAsyncIteration:
                    return
                yield result
        finally:
            runner.run(results.aclose())


def until(true):
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def opened(gateway):
    return [task for task in gateway.tasks.values() if task["status"] == "queued"]


def test_a_map_keeps_the_order_and_takes_items_as_results_are_consumed(double, mapped):
    taken = []

    def items():
        for i in itertools.count():
            taken.append(i)
            yield i

    results = mapped(double, items())
    assert not taken
    assert list(itertools.islice(results, 10)) == [2 * i for i in range(10)]
    assert len(taken) <= MAP_AHEAD + 10
    results.close()
    assert list(mapped(double, [])) == []


def test_a_map_has_as_many_tasks_open_as_it_may_and_no_more(gateway, held, mapped):
    results = mapped(held, itertools.count())
    counts = []

    def feed():
        for i in range(10):
            until(lambda: len(opened(gateway)) == MAP_AHEAD)
            time.sleep(0.02)  # for one too many to come
            counts.append(len(opened(gateway)))
            gateway.succeed(_first(gateway), i)

    thread = threading.Thread(target=feed)
    thread.start()
    assert list(itertools.islice(results, 10)) == list(range(10))
    thread.join()
    results.close()
    assert counts == [MAP_AHEAD] * 10


def test_a_result_is_there_before_the_window_is_full(gateway, held):
    """Items that come slowly do not keep back what is done."""

    def items():
        yield 1
        until(lambda: gateway.tasks)
        gateway.succeed(next(iter(gateway.tasks)), "early")
        for i in itertools.count():
            time.sleep(0.01)
            yield i

    results = held.map(items())
    assert next(results) == "early"
    assert len(gateway.tasks) < MAP_AHEAD
    results.close()


def test_ten_thousand_items_are_mapped_in_bounded_memory(double):
    """With a transport that answers at once, so that only what the map itself keeps is measured."""
    calls, size = double.options(), 20_000
    calls._chosen_client = _Answering(size)
    peaks = []
    for count in (1_000, 10_000):
        tracemalloc.start()
        assert sum(len(result) for result in calls.map(range(count))) == count * size
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 2, peaks
    assert peaks[1] < 100 * MAP_AHEAD * size, peaks


class _Answering:
    """A client whose tasks have all succeeded with a text of this size."""

    def __init__(self, size):
        self._size = size

    async def asend_patiently(self, request, _patience_seconds):
        await asyncio.sleep(0)
        return _Answer(self._record(request().path.rpartition("/")[2]))

    async def task_events(self, task_ids):
        for task_id in task_ids:
            await asyncio.sleep(0)
            yield "message", json.loads(json.dumps(self._record(task_id)))

    def _record(self, task_id):
        return {"id": task_id, "status": "succeeded", "result": "x" * self._size, "result_inline": True}


class _Answer:
    def __init__(self, data):
        self._text = json.dumps(data)

    def json(self):
        return json.loads(self._text)


def test_a_starmap_takes_arguments_or_keywords(gateway, client):
    gateway.functions["add"] = lambda a, b=0: a + b
    signature = endpoint(lambda a, b=0: a + b, name="add").parameters()
    add = Calls("add", signature=signature, client=client)
    items = [(1, 2), [3], {"a": 4, "b": 5}]
    assert list(add.starmap(items)) == [3, 3, 9]

    async def run():
        return [result async for result in add.astarmap(items)]

    assert asyncio.run(run()) == [3, 3, 9]


def test_an_async_map_takes_an_async_iterable(double):
    async def items():
        for i in range(5):
            await asyncio.sleep(0)
            yield i

    async def run():
        return [result async for result in double.amap(items())]

    assert asyncio.run(run()) == [0, 2, 4, 6, 8]


def test_a_map_that_is_left_cancels_what_is_open(gateway, held, mapped):
    results = mapped(held, range(5))
    thread = threading.Thread(
        target=lambda: (until(lambda: len(gateway.tasks) == 5), gateway.succeed(_first(gateway), "first"))
    )
    thread.start()
    assert next(results) == "first"
    thread.join()
    results.close()
    assert sorted(task["status"] for task in gateway.tasks.values()) == ["cancelled"] * 4 + ["succeeded"]


def _first(gateway):
    """Return the open task of the first item; they are submitted side by side."""
    ids = [task["id"] for task in opened(gateway)]
    return min(ids, key=lambda task_id: json.loads(gateway.inputs[task_id][1])["x"])


def test_a_call_of_a_map_that_fails_raises_and_cancels_what_is_open(gateway, held, mapped):
    error = RemoteError("lost", exception_type="LookupError").to_json()["error"]

    def fail():
        until(lambda: len(gateway.tasks) == 3)
        gateway.finish(_first(gateway), status="failed", error=error)

    thread = threading.Thread(target=fail)
    thread.start()
    with pytest.raises(RemoteError, match="lost"):
        list(mapped(held, range(3)))
    thread.join()
    assert sorted(task["status"] for task in gateway.tasks.values()) == ["cancelled", "cancelled", "failed"]


def test_a_map_to_an_endpoint_that_is_not_there_says_so(client, mapped):
    with pytest.raises(NotFoundError, match="nothing"):
        list(mapped(Calls("nothing", signature=endpoint(lambda x: x, name="x").parameters(), client=client), [1]))


def test_a_map_fits_into_a_queue_that_takes_fewer_than_it_would_keep_open(gateway, held, mapped):
    """And it is the end of one of its own tasks that lets it go on: to come again only when it was told is too late."""
    gateway.most_open, gateway.retry_after_seconds = 5, 10 * DEADLINE_SECONDS
    most = []

    def feed():
        for i in range(30):
            until(lambda: len(opened(gateway)) == min(5, 30 - i))  # noqa: B023 - called before the next one
            most.append(len(opened(gateway)))
            task_id = opened(gateway)[0]["id"]
            gateway.succeed(task_id, json.loads(gateway.inputs[task_id][1])["x"])

    thread = threading.Thread(target=feed)
    thread.start()
    assert list(mapped(held, range(30))) == list(range(30))
    thread.join()
    assert gateway.refusals
    assert max(most) == 5


def test_a_map_waits_for_room_that_others_take(gateway, double, mapped):
    gateway.most_open = 0

    def make_room():
        until(lambda: gateway.refusals >= 10)
        gateway.most_open = None

    thread = threading.Thread(target=make_room)
    thread.start()
    assert list(mapped(double, range(3))) == [0, 2, 4]
    thread.join()


def test_a_map_that_is_never_let_in_says_that_the_queue_is_full(gateway, double, mapped):
    gateway.most_open, gateway.retry_after_seconds = 0, 60
    with pytest.raises(OverloadedError, match="full"):
        list(mapped(double, range(3)))
    assert not gateway.tasks


def test_a_map_that_is_left_while_it_waits_for_room_submits_nothing_more(gateway, held, mapped):
    gateway.most_open = 1

    def finish():
        item = None
        while item != 0:
            until(lambda: opened(gateway))
            task_id = opened(gateway)[0]["id"]
            item = json.loads(gateway.inputs[task_id][1])["x"]
            gateway.succeed(task_id, item)

    thread = threading.Thread(target=finish)
    thread.start()
    results = mapped(held, itertools.count())
    assert next(results) == 0
    thread.join()
    results.close()
    assert not opened(gateway)
    asked = len(gateway.requests)
    time.sleep(5 * gateway.retry_after_seconds)  # for one that still comes
    assert len(gateway.requests) == asked


@pytest.mark.parametrize("verb", ["map", "starmap", "amap", "astarmap"])
def test_a_map_refuses_one_idempotency_key_for_all(double, verb):
    with pytest.raises(InvalidRequestError, match="idempotency_key"):
        getattr(double.options(idempotency_key="k"), verb)([1])


@pytest.mark.parametrize("ending", ["pass", "raise SystemExit", "os.fork() or sys.exit()"])
def test_a_map_that_is_left_lying_about_ends_with_the_interpreter(desk, gateway, ending):
    gateway.functions["double"] = lambda x: 2 * x
    script = desk.write(
        "left.py",
        f"""
        import itertools, os, sys
        from brinery import Endpoint
        results = Endpoint.from_name("double").starmap({{"x": i}} for i in itertools.count())
        print(next(results), flush=True)
        {ending}
        """,
    )
    assert desk.python(str(script), BRINERY_URL=gateway.url, BRINERY_API_KEY=KEY).stdout == "0\n"
