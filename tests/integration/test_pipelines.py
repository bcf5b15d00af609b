"""Commands of many callers as few pipelines, on a real Valkey that may be frozen."""

import asyncio
import os
import signal

import pytest
import redis.asyncio
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from brinery_platform.pipelines import AT_ONCE, Pipelines
from brinery_platform.services import connect
from brinery_platform.settings import Settings


def run(url, work, **options):
    async def main():
        async with redis.asyncio.Redis.from_url(url, **options) as client:
            await work(Pipelines(client), client)

    asyncio.run(main())


def test_each_caller_gets_its_own_reply_or_its_own_error(redis_url):
    async def work(pipelines, _client):
        replies = await asyncio.gather(
            pipelines.command("SET", "a", "1"),
            pipelines.command("LPUSH", "a", "wrong kind"),
            pipelines.command("INCRBY", "a", 41),
            return_exceptions=True,
        )
        assert (replies[0], replies[2]) == (True, 42)
        assert isinstance(replies[1], ResponseError)

    run(redis_url, work)


def test_a_thousand_commands_at_once_take_a_handful_of_connections(redis_url, redis_client):
    async def work(pipelines, _client):
        before = redis_client.info("stats")["total_connections_received"]
        replies = await asyncio.gather(*(pipelines.command("INCR", "n") for _ in range(1_000)))
        assert sorted(replies) == list(range(1, 1_001))
        assert redis_client.info("stats")["total_connections_received"] - before <= AT_ONCE

    run(redis_url, work)


def test_whoever_comes_in_the_moment_in_which_the_senders_end_is_sent_too(redis_url):
    async def work(pipelines, _client):
        async def twice():
            await pipelines.command("PING")
            return await pipelines.command("PING")

        async with asyncio.timeout(30):
            for _ in range(50):
                await asyncio.gather(*(twice() for _ in range(AT_ONCE)))

    run(redis_url, work)


def test_a_caller_that_leaves_takes_nobody_with_it(redis_url):
    async def work(pipelines, _client):
        leaves = asyncio.ensure_future(pipelines.command("INCR", "n"))
        stays = [asyncio.ensure_future(pipelines.command("INCR", "n")) for _ in range(10)]
        await asyncio.sleep(0)
        leaves.cancel()
        assert sorted(await asyncio.gather(*stays)) == list(range(2, 12)), "the cancelled one was sent all the same"
        with pytest.raises(asyncio.CancelledError):
            await leaves

    run(redis_url, work)


def test_a_frozen_redis_fails_everybody_who_waits_and_serves_those_who_come_later(own_valkey):
    async def work(pipelines, _client):
        await pipelines.command("PING")
        os.kill(own_valkey.process.pid, signal.SIGSTOP)
        try:
            waiting = [pipelines.command("PING") for _ in range(50)]
            failed = await asyncio.gather(*waiting, return_exceptions=True)
        finally:
            os.kill(own_valkey.process.pid, signal.SIGCONT)
        assert all(isinstance(error, RedisTimeoutError) for error in failed)
        assert await pipelines.command("PING") in {b"PONG", True}

    run(own_valkey.url, work, socket_timeout=0.3)


def test_the_platform_s_clients_do_not_notice_that_redis_was_restarted(own_valkey, tmp_path):
    services = connect(Settings(home=tmp_path, redis_url=own_valkey.url))

    async def work():
        pipelines = Pipelines(services.aredis)
        await asyncio.gather(*(pipelines.command("INCR", "n") for _ in range(10)))
        services.redis.incr("n")
        own_valkey.kill()
        own_valkey.start()
        assert await pipelines.command("INCR", "n") == 12
        assert services.redis.incr("n") == 13
        await services.aredis.aclose()

    asyncio.run(work())
    services.redis.close()
