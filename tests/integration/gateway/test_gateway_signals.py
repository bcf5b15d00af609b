"""A channel of a real Redis followed over a connection that breaks, openly or without a word."""

from __future__ import annotations

import asyncio
import contextlib

import redis.asyncio

from brinery_platform.gateway.signals import Feed, Listener


class Wire:
    """A TCP connection's middle, which can go silent as a network does whose other side is gone."""

    def __init__(self, port):
        self._port = port
        self._silent = set()
        self._pumps = set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    def go_silent(self):
        """Let nothing through any more on the connections that are open now."""
        self._silent |= self._pumps

    async def _accept(self, reader, writer):
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        for source, target in ((reader, back), (there, writer)):
            self._pumps.add(asyncio.create_task(self._pump(source, target)))

    async def _pump(self, source, target):
        with contextlib.suppress(ConnectionError), contextlib.closing(target):
            while data := await source.read(65536):
                if asyncio.current_task() not in self._silent:
                    target.write(data)


class Heard:
    def __init__(self):
        self.refreshed = 0
        self.messages = []

    async def refresh(self):
        self.refreshed += 1

    async def said(self, text):
        self.messages.append(text)


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def running(coroutine):
    task = asyncio.create_task(coroutine)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def client_of(valkey, port=None):
    url = valkey.connection_url
    if port is not None:
        url = url.replace(f":{valkey.port}", f":{port}")
    async with redis.asyncio.Redis.from_url(url, health_check_interval=30, socket_timeout=5) as client:
        yield client


def test_a_connection_over_which_nothing_comes_any_more_is_replaced(valkey):
    async def main():
        heard = Heard()
        async with Wire(valkey.port) as wire, client_of(valkey, wire.port) as mine, client_of(valkey) as speaker:
            listener = Listener(
                redis=mine,
                channel="quiet",
                refresh=heard.refresh,
                said=heard.said,
                quiet_seconds=0.2,
                pong_seconds=0.5,
            )
            async with running(listener.run()):
                await until(lambda: heard.refreshed == 1)
                wire.go_silent()
                await speaker.publish("quiet", "lost")
                await until(lambda: heard.refreshed >= 2)
                await speaker.publish("quiet", "heard")
                await until(lambda: "heard" in heard.messages)
                assert "lost" not in heard.messages

    asyncio.run(main())


def test_a_quiet_connection_that_answers_is_kept(valkey):
    async def main():
        heard = Heard()
        async with client_of(valkey) as mine, client_of(valkey) as other:

            async def pings():
                return (await other.info("commandstats")).get("cmdstat_ping", {}).get("calls", 0)

            before = await pings()
            listener = Listener(
                redis=mine, channel="kept", refresh=heard.refresh, said=heard.said, quiet_seconds=0.05, pong_seconds=20
            )
            async with running(listener.run()), asyncio.timeout(30):
                while await pings() < before + 5:
                    await asyncio.sleep(0.02)
            assert heard.refreshed == 1

    asyncio.run(main())


def test_everything_is_looked_at_again_each_time_the_subscription_is_cut(valkey):
    async def main():
        heard = Heard()
        async with client_of(valkey) as mine, client_of(valkey) as other:
            listener = Listener(redis=mine, channel="cut", refresh=heard.refresh, said=heard.said)
            async with running(listener.run()):
                for times in (1, 2, 3):
                    await until(lambda times=times: heard.refreshed == times)
                    await other.execute_command("CLIENT", "KILL", "TYPE", "pubsub")

    asyncio.run(main())


def test_a_feed_is_subscribed_only_while_somebody_waits(valkey):
    async def main():
        async with client_of(valkey) as mine, client_of(valkey) as other:

            async def subscribers(number):
                async with asyncio.timeout(30):
                    while (await other.pubsub_numsub("fed"))[0][1] != number:
                        await asyncio.sleep(0.01)

            feed = Feed(mine, "fed", linger_seconds=0.05)
            async with running(feed.run()):
                for _ in range(2):
                    await subscribers(0)
                    with feed.watch(["a"]) as first, feed.watch(["b"]) as second:
                        assert (first.take(), second.take()) == ({"a"}, {"b"})
                        await subscribers(1)
                        await first.wait(30)  # the subscription stands: what came before it has to be looked for
                        assert (first.take(), second.take()) == ({"a"}, {"b"})
                        await other.publish("fed", "b")
                        await second.wait(30)
                        assert (first.take(), second.take()) == (set(), {"b"})
                    await subscribers(0)

    asyncio.run(main())
