"""The workers' output as the gateway passes it on, from a runtime that the test holds."""

from __future__ import annotations

import asyncio
import queue
from contextlib import nullcontext

from brinery.errors import UnavailableError
from brinery_platform.gateway.worker_logs import NO_WORKERS, WorkerLogs
from brinery_platform.runtimes.base import Running
from idle_runtime import IdleRuntime


class LinesRuntime(IdleRuntime):
    """A runtime that runs nothing: its workers' lines are what the test says."""

    def __init__(self, **lines):
        self.lines = {worker_id: list(said) for worker_id, said in lines.items()}
        self.new = {worker_id: queue.Queue() for worker_id in lines}
        self.reading = 0
        self.away = 0

    def poll(self, running_id):
        return None if running_id in self.lines else 0

    def list(self):
        if self.away:
            self.away += 1
            raise UnavailableError("No controller leads.")
        return [
            Running(id=worker_id, kind="worker", endpoint_id="end_2" if worker_id == "wrk_other" else "end_1")
            for worker_id in self.lines
        ]

    def logs(self, running_id, *, tail=200, follow=False):
        yield from self.lines[running_id][-tail:] if tail else []
        self.reading += follow
        while follow:
            line = self.new[running_id].get()
            if line is None:
                break
            yield line
        self.reading -= follow

    def say(self, worker_id, line):
        self.lines[worker_id].append(line)
        self.new[worker_id].put(line)

    def end(self):
        for each in self.new.values():
            each.put(None)


def test_the_last_lines_of_an_endpoints_workers_name_their_worker():
    runtime = LinesRuntime(wrk_a=["one", "two", "three"], wrk_b=["größe"], wrk_other=["not mine"])

    async def read():
        return [line async for line in WorkerLogs(lambda: runtime, asyncio.Event()).last("end_1", 2)]

    assert asyncio.run(read()) == ["wrk_a | two\n", "wrk_a | three\n", "wrk_b | größe\n"]


def test_while_nobody_knows_the_workers_there_is_a_note_and_a_follower_waits():
    runtime = LinesRuntime(wrk_a=["one"])
    runtime.away = 1

    async def read():
        logs = WorkerLogs(lambda: runtime, asyncio.Event())
        async with asyncio.timeout(20):
            assert [line async for line in logs.last("end_1", 2)] == [NO_WORKERS]
            follower = logs.follow("end_1", 10, nullcontext())
            first = asyncio.ensure_future(anext(follower))
            while runtime.away < 3:  # it has looked, and will look again
                await asyncio.sleep(0.01)
            runtime.away = 0
            assert await first == "wrk_a | one\n"
            await follower.aclose()

    asyncio.run(read())
    runtime.end()


def test_followers_of_one_worker_share_one_reader_and_miss_nothing():
    runtime = LinesRuntime(wrk_a=["old"])

    async def follow():
        closing = asyncio.Event()
        logs = WorkerLogs(lambda: runtime, closing)
        followers = [logs.follow("end_1", 10, nullcontext()) for _ in range(2)]
        async with asyncio.timeout(20):
            assert [await anext(each) for each in followers] == ["wrk_a | old\n"] * 2
            runtime.say("wrk_a", "new")
            assert [await anext(each) for each in followers] == ["wrk_a | new\n"] * 2
            assert runtime.reading == 1
            await followers[0].aclose()
            runtime.say("wrk_a", "newer")
            assert await anext(followers[1]) == "wrk_a | newer\n"
            closing.set()
            assert [line async for line in followers[1]] == []

    asyncio.run(follow())
    runtime.end()


def test_a_worker_that_comes_later_is_followed_too():
    runtime = LinesRuntime(wrk_a=["first"])

    async def follow():
        logs = WorkerLogs(lambda: runtime, asyncio.Event())
        follower = logs.follow("end_1", 10, nullcontext())
        async with asyncio.timeout(20):
            assert await anext(follower) == "wrk_a | first\n"
            runtime.new["wrk_b"] = queue.Queue()
            runtime.lines["wrk_b"] = ["second"]
            assert await anext(follower) == "wrk_b | second\n"
        await follower.aclose()

    asyncio.run(follow())
    runtime.end()
