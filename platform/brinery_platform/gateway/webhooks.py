"""Webhooks: every gateway sends what is due, and the record says what became of it; also each owner's secret."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final
from urllib.parse import urlsplit

import structlog
from fastapi import APIRouter
from redis.asyncio import Redis
from starlette.responses import Response

from brinery.errors import UnavailableError
from brinery.spec import Task
from brinery_platform.async_tasks import AsyncTasks
from brinery_platform.gateway.parts import AnyCaller, Gateway, Parts
from brinery_platform.gateway.receivers import LANES, Receivers
from brinery_platform.gateway.replies import JsonResponse
from brinery_platform.gateway.signals import Listener
from brinery_platform.gateway.task_view import task_json
from brinery_platform.signing import webhook_secret
from brinery_platform.store import spec_of
from brinery_platform.transitions import WebhooksTaken
from brinery_platform.webhooks import Outcome, Sender, headers, message, message_id, secret_text

CHANNEL: Final = "webhooks"
"""Carries the id of each task whose webhook became due."""
PENDING: Final = "pending"
DELIVERED: Final = "delivered"
FAILED: Final = "failed"
_COUNTED: Final = {PENDING: "retried", DELIVERED: "delivered", FAILED: "failed"}
RETRY_SECONDS: Final = 0.5
PUT_OFF_SECONDS: Final = (15.0, 60.0)
STOP_SECONDS: Final = 5.0
"""How long tries that are under way may go on when the gateway ends; the others are made by the next one."""

View = Callable[[Task], Awaitable[dict[str, Any] | None]]

logger = structlog.get_logger(__name__)
router = APIRouter(tags=["webhooks"])


@router.get("/v1/webhooks/secret")
def get_webhook_secret(caller: AnyCaller, gateway: Parts) -> Response:
    """Return the secret that the owner's webhooks are signed with."""
    secret = webhook_secret(gateway.services.settings.home, caller.owner)
    return JsonResponse({"secret": secret_text(secret)}, headers={"cache-control": "no-store"})


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When tries are made.

    Args:
        first_seconds: From the first try to the second; doubled with each further one, with jitter (half of it to all).
        most_seconds: The longest that it gets.
        give_up_seconds: The last try is made so long after the task's end; at least one is made in any case.
        lease_seconds: How long a try is one gateway's alone; longer than a try may last.
    """

    first_seconds: float = 5.0
    most_seconds: float = 300.0
    give_up_seconds: float = 3600.0
    lease_seconds: float = 30.0

    def next_at(self, now: float, attempts: int, finished_at: float) -> float | None:
        """Return when the next try is made, None for never.

        Args:
            now: Seconds since the epoch.
            attempts: Tries that have failed; ≥ 1.
            finished_at: When the task ended, seconds since the epoch.
        """
        give_up_at = finished_at + self.give_up_seconds
        if now >= give_up_at:
            return None
        jitter = 0.5 + random.random() / 2  # noqa: S311 - spreads tries, protects nothing
        pause_seconds = min(self.most_seconds, math.ldexp(self.first_seconds, attempts - 1))
        return min(now + pause_seconds * jitter, give_up_at)


class Webhooks:
    """Sends webhooks for ever; sleeps until one is due, and asks Redis nothing meanwhile.

    Args:
        tasks: The task records.
        redis: A client whose replies are bytes.
        view: Gives a task as the API shows it, None if its endpoint is gone.
        secret: Gives an owner's secret.
        sender: Makes the requests.
        count: Called with ``delivered``, ``retried`` or ``failed`` after each try.
        schedule: When tries are made.
    """

    def __init__(
        self,
        *,
        tasks: AsyncTasks,
        redis: Redis,
        view: View,
        secret: Callable[[str], bytes],
        sender: Sender,
        count: Callable[[str], None],
        schedule: Schedule | None = None,
    ) -> None:
        self._tasks = tasks
        self._redis = redis
        self._view = view
        self._secret = secret
        self._sender = sender
        self._count = count
        self._schedule = schedule or Schedule()
        self._receivers = Receivers()
        self._tries: set[asyncio.Task[None]] = set()
        self._asked = False
        self._changed = asyncio.Event()
        self._due_at = math.inf
        self._learned_at = 0.0

    def close(self) -> None:
        """Let go of what sending needed, after `run` has ended."""
        self._sender.close()

    async def run(self) -> None:
        """Send for ever."""
        try:
            async with asyncio.TaskGroup() as both:
                listener = Listener(redis=self._redis, channel=CHANNEL, refresh=self._look, said=self._said)
                both.create_task(listener.run())
                both.create_task(self._send_what_is_due())
        finally:
            await self._let_go()

    async def _look(self) -> None:
        self._asked = True
        self._changed.set()

    async def _said(self, _task_id: str) -> None:
        await self._look()

    async def _send_what_is_due(self) -> None:
        while True:
            await self._until_due()
            if len(self._tries) >= LANES:
                await asyncio.wait(self._tries, return_when=asyncio.FIRST_COMPLETED)
            began = _now()
            try:
                taken = await self._tasks.webhooks_take(self._schedule.lease_seconds, LANES - len(self._tries))
            except UnavailableError:
                await asyncio.sleep(RETRY_SECONDS)
                await self._look()
                continue
            self._learn(began, taken.next_in_seconds)
            for task in taken.tasks:
                one = asyncio.create_task(self._handle(task, taken, _now()))
                self._tries.add(one)
                one.add_done_callback(self._tries.discard)

    async def _until_due(self) -> None:
        while not self._asked and (left := self._due_at - _now()) > 0:
            try:
                async with asyncio.timeout(None if left == math.inf else left):
                    await self._changed.wait()
            except TimeoutError:
                break
            self._changed.clear()
        self._asked = False

    def _learn(self, began: float, next_in_seconds: float | None) -> None:
        """Take over when Redis says that the next try is due.

        Args:
            began: When Redis was asked. An answer to a question that was under way together with another one may be
                the older of the two, so it can only bring the time forward.
            next_in_seconds: Its answer.
        """
        due_at = math.inf if next_in_seconds is None else _now() + next_in_seconds
        self._due_at = due_at if began >= self._learned_at else min(due_at, self._due_at)
        self._learned_at = _now()
        self._changed.set()

    async def _handle(self, task: Task, taken: WebhooksTaken, taken_at: float) -> None:
        """Make one try, or put it off, and report it."""

        def server_time() -> float:
            return taken.at + _now() - taken_at

        host = _host(task)
        if not self._receivers.admits(task.owner, host):
            later = random.uniform(*PUT_OFF_SECONDS)  # noqa: S311 - spreads tries, protects nothing
            await self._report(task.id, taken, None, server_time() + later)
            return
        try:
            with self._receivers.engaged(task.owner, host):
                outcome = await self._try(task)
        except UnavailableError as error:
            logger.warning("webhook_put_off", task_id=task.id, error=str(error))
            await self._report(task.id, taken, None, server_time() + self._schedule.first_seconds)
            return
        except Exception:  # this is the outer loop of a try: one that always breaks must end after its hour, too
            logger.exception("webhook_broke", task_id=task.id)
            outcome = Outcome(status=None, error="The gateway could not make this try; its log says why.")
        state = _state_after(task, outcome, server_time(), self._schedule)
        self._count(_COUNTED[state["status"]])
        if state["status"] == FAILED:
            logger.warning(
                "webhook_failed", task_id=task.id, host=host, attempts=state["attempts"], status=outcome.status
            )
        await self._report(task.id, taken, state, state["next_at"])

    async def _try(self, task: Task) -> Outcome:
        view = await self._view(task)
        if view is None or task.webhook is None:
            return Outcome(status=None, error="The endpoint was deleted before this was delivered.", hopeless=True)
        body = message(task, view)
        head = headers(message_id(task), body, self._secret(task.owner), time.time())
        return await self._sender.send(task.webhook, head, body)

    async def _report(
        self, task_id: str, taken: WebhooksTaken, state: dict[str, Any] | None, next_at: float | None
    ) -> None:
        """Report until it is answered, or until the lease is over and the try will be made once more anyway."""
        give_up_at = _now() + self._schedule.lease_seconds
        while _now() < give_up_at:
            began = _now()
            try:
                reported = await self._tasks.webhook_report(task_id, taken.lease, state, next_at)
            except UnavailableError:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self._learn(began, reported.next_in_seconds)
            return
        logger.warning("webhook_not_reported", task_id=task_id, cure="it is sent once more when Redis is back")

    async def _let_go(self) -> None:
        if self._tries:
            await asyncio.wait(self._tries, timeout=STOP_SECONDS)
        left = set(self._tries)
        for one in left:
            one.cancel()
        if left:
            await asyncio.wait(left)


def open_webhooks(gateway: Gateway, count: Callable[[str], None], schedule: Schedule | None = None) -> Webhooks:
    """Return what sends the webhooks of a gateway's tasks.

    Args:
        gateway: Its parts.
        count: See `Webhooks`.
        schedule: See `Webhooks`.
    """
    settings, store = gateway.services.settings, gateway.services.store

    async def view(task: Task) -> dict[str, Any] | None:
        lane = gateway.table.by_id(task.endpoint_id)
        if lane is not None:
            return task_json(task, lane.route.spec.name)
        versions = await asyncio.to_thread(store.versions, task.endpoint_id)  # the table may not have it yet
        return task_json(task, spec_of(versions[0]).name) if versions else None

    return Webhooks(
        tasks=gateway.tasks,
        redis=gateway.services.aredis,
        view=view,
        secret=lru_cache(maxsize=1024)(partial(webhook_secret, settings.home)),
        sender=Sender(settings.webhooks_allowed),
        count=count,
        schedule=schedule,
    )


def _state_after(task: Task, outcome: Outcome, now: float, schedule: Schedule) -> dict[str, Any]:
    """Return what a task's record says after a try."""
    attempts = (task.webhook_state or {}).get("attempts", 0) + 1
    delivered = outcome.error is None
    next_at = None
    if not delivered and not outcome.hopeless:
        next_at = schedule.next_at(now, attempts, task.finished_at or now)
    return {
        "status": DELIVERED if delivered else FAILED if next_at is None else PENDING,
        "attempts": attempts,
        "last_status": outcome.status,
        "last_error": outcome.error,
        "next_at": next_at,
        "delivered_at": now if delivered else None,
    }


def _host(task: Task) -> str:
    try:
        return urlsplit(str((task.webhook or {}).get("url"))).hostname or ""
    except ValueError:
        return ""  # the try will say what is wrong with it


def _now() -> float:
    return asyncio.get_running_loop().time()
