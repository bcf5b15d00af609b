"""What spares system calls: a reply's head travels with its body, a socket's limit is set when it is wrong."""

import asyncio
import socket
from types import SimpleNamespace

import pytest

from brinery_platform.forwarder.attempt import SLACK_SECONDS, Attempt
from brinery_platform.gateway.__main__ import _protocol
from brinery_platform.gateway.one_piece import COPIED_BYTES, OnePieceProtocol, _HeadFirst
from brinery_platform.settings import read_settings

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"


def written(act):
    """What reaches the transport: what `act` leaves at once, and all of it a turn of the loop later."""

    async def run():
        pieces = []
        transport = SimpleNamespace(
            write=pieces.append, close=lambda: pieces.append("closed"), is_closing=lambda: False
        )
        head_first = _HeadFirst(transport, asyncio.get_running_loop())
        act(head_first)
        at_once = list(pieces)
        await asyncio.sleep(0)
        return at_once, pieces, head_first.is_closing()

    return asyncio.run(run())


def test_a_reply_is_written_once():
    def reply(transport):
        transport.write(HEAD)
        transport.write(b"body")

    assert written(reply) == ([HEAD + b"body"], [HEAD + b"body"], False)


def test_a_head_alone_waits_for_no_more_than_the_loop_s_next_turn():
    assert written(lambda transport: transport.write(HEAD)) == ([], [HEAD], False)


def test_two_answers_in_a_row_both_leave_in_their_order():
    def replies(transport):
        for _ in range(2):
            transport.write(HEAD)
            transport.write(b"body")
        transport.write(HEAD)
        transport.close()

    assert written(replies)[0] == [HEAD + b"body"] * 2 + [HEAD, "closed"]


def test_a_large_body_is_not_copied_for_it():
    large = bytes(COPIED_BYTES + 1)

    def reply(transport):
        transport.write(HEAD)
        transport.write(large)

    pieces, _, _ = written(reply)
    assert pieces == [HEAD, large]
    assert pieces[1] is large


@pytest.mark.parametrize("runtime", ["process", "docker"])
def test_the_gateway_speaks_so(runtime):
    assert issubclass(_protocol(read_settings(runtime=runtime)), OnePieceProtocol)


def test_a_socket_waits_until_the_deadline_and_is_told_only_when_that_has_changed():
    here, there = socket.socketpair()
    with here, there:
        attempt = Attempt("tsk_1.1", 30.0)
        attempt.bound(here)
        told = here.gettimeout()
        assert 29 < told <= 30
        attempt.bound(here)
        assert here.gettimeout() - attempt.left_seconds <= SLACK_SECONDS
        attempt.deadline += 100  # another attempt, on the same connection
        attempt.bound(here)
        assert here.gettimeout() > 100
        here.settimeout(None)
        attempt.bound(here)
        assert here.gettimeout() is not None
