"""What a forwarder's work does while something it needs is away: the object store, room on the disk, a sane Redis."""

import contextlib
import errno
import io
import tempfile
import threading
import time
from types import SimpleNamespace

import orjson
import pytest
import redis
from task_records import ENDPOINT, new_task, until_final
from worker_stub import worker_stub

from brinery.errors import UnavailableError
from brinery.spec import TaskStatus
from brinery_platform.forwarder import work as work_module
from brinery_platform.forwarder.incarnation import Incarnation
from brinery_platform.forwarder.payloads import SPOOL_BYTES
from brinery_platform.forwarder.reports import WorkerLogs
from brinery_platform.forwarder.slots import Slots
from brinery_platform.forwarder.work import ForwarderWork
from brinery_platform.objects import FolderObjects
from brinery_platform.records import input_object
from brinery_platform.routes import WorkerRoute
from brinery_platform.tasks import Tasks
from servers import wait_for


class MoodyObjects(FolderObjects):
    """A store that is away, or slow to give what it has begun to give, while a test wants it to be."""

    def __init__(self, root):
        super().__init__(root)
        self.away = threading.Event()
        self.asked = threading.Event()
        self.read_seconds = 0.0
        self.read_error = None

    def _size(self, key):
        self.asked.set()
        if self.away.is_set():
            raise UnavailableError("The store is away.")
        return super()._size(key)

    def _read(self, key, start, length):
        with super()._read(key, start, length) as stream:
            data = stream.read()
        moody = self

        class Slow(io.BytesIO):
            def read(self, size=-1):
                time.sleep(moody.read_seconds)
                if moody.read_error is not None:
                    raise moody.read_error
                return super().read(size)

        return Slow(data)


class BrokenTasks(Tasks):
    """Records whose changes fail with what is no lack of an answer, so many times."""

    failures = 0

    def finish(self, *arguments, **values):
        self._fail()
        return super().finish(*arguments, **values)

    def requeue(self, *arguments, **values):
        self._fail()
        return super().requeue(*arguments, **values)

    def _fail(self):
        if self.failures:
            self.failures -= 1
            raise redis.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value")


class Scene:
    """A forwarder's work in this process, before a worker of the standard library with one slot."""

    def __init__(self, client, folder, stub):
        self.client = client
        self.stub = stub
        self.tasks = BrokenTasks(client)
        self.objects = MoodyObjects(folder / "objects")
        self.stopping = threading.Event()
        self.incarnation = Incarnation(self.tasks, "fwd_a")
        self.incarnation.register()
        self.slots = Slots()
        route = WorkerRoute(id="wrk_a", url=stub.url, control_url=stub.url)
        self.slots.update(SimpleNamespace(workers=(route,), spec=SimpleNamespace(concurrency=1)))
        self.work = ForwarderWork(
            ENDPOINT,
            tasks=self.tasks,
            objects=self.objects,
            client=client,
            incarnation=self.incarnation,
            slots=self.slots,
            logs=WorkerLogs(lambda: None, folder),
            stopping=self.stopping,
        )
        self._threads = []

    def submit(self, wanted, *, stored=False, **changes):
        task = new_task(wanted, **changes)
        if stored:
            key = input_object(task.id, "0")
            self.objects.put(key, orjson.dumps(wanted))
            task = new_task(id=task.id, input=None, input_object=key, **changes)
        return self.tasks.submit(task).task.id

    def take(self, task_id):
        """Work on a task in a thread, as Celery does; returns the thread."""

        def run():
            settled = self.work.take(task_id)
            if settled is not None:
                self.work.settle(settled)

        thread = threading.Thread(target=run)
        thread.start()
        self._threads.append(thread)
        return thread

    def stop(self):
        self.stopping.set()
        self.slots.wake()

    def attempts(self, task_id):
        return [orjson.loads(raw) for raw in self.client.lrange(f"attempts:{task_id}", 0, -1)]

    def close(self):
        self.objects.away.clear()
        self.stop()
        for thread in self._threads:
            thread.join(30)
        self.work.close()
        assert not any(thread.is_alive() for thread in self._threads)


@pytest.fixture
def scene(redis_client, tmp_path):
    with worker_stub() as stub, contextlib.closing(Scene(redis_client, tmp_path, stub)) as scene:
        yield scene


# ----------------------------------------------------------------------------------------------------------- stopping
def test_a_task_that_waits_for_its_input_is_given_back_uncharged_when_the_forwarder_stops(scene):
    task_id = scene.submit({"echo": 1}, stored=True, max_attempts=1)
    scene.objects.away.set()
    thread = scene.take(task_id)
    wait_for(scene.objects.asked.is_set)
    assert scene.tasks.get(task_id).status is TaskStatus.RUNNING
    scene.stop()
    thread.join(30)
    given_back = scene.tasks.get(task_id)
    assert (given_back.status, given_back.attempt) == (TaskStatus.QUEUED, 0)
    scene.incarnation.retire()
    assert scene.tasks.get(task_id).status is TaskStatus.QUEUED
    assert scene.attempts(task_id) == []
    assert scene.stub.calls == []


def test_a_claim_whose_answer_was_lost_is_given_back_when_the_forwarder_stops(scene, monkeypatch):
    task_id = scene.submit({"echo": 1}, max_attempts=1)
    claim = scene.tasks.claim

    def lost(*arguments):
        claimed = claim(*arguments)
        if not scene.stopping.is_set():
            scene.stop()
            raise UnavailableError("Redis went away in the middle of it.")
        return claimed

    monkeypatch.setattr(scene.tasks, "claim", lost)
    scene.take(task_id).join(30)
    scene.incarnation.retire()
    given_back = scene.tasks.get(task_id)
    assert (given_back.status, given_back.attempt) == (TaskStatus.QUEUED, 0)
    assert scene.stub.calls == []


def test_a_task_that_waits_for_its_input_can_be_cancelled(scene):
    task_id = scene.submit({"echo": 1}, stored=True)
    scene.objects.away.set()
    thread = scene.take(task_id)
    wait_for(scene.objects.asked.is_set)
    assert scene.tasks.cancel(task_id) == "requested"
    scene.work.recheck()
    thread.join(30)
    assert scene.tasks.get(task_id).status is TaskStatus.CANCELLED


def test_a_task_that_waits_for_a_busy_worker_keeps_its_slot_and_can_be_cancelled(scene, monkeypatch):
    monkeypatch.setattr(work_module, "BUSY_SECONDS", 600.0)
    first = scene.submit({"busy": 1_000_000})
    thread = scene.take(first)
    wait_for(lambda: len(scene.stub.calls) >= 2)
    second = scene.submit({"echo": 1})
    scene.take(second)
    wait_for(lambda: scene.client.hget(f"task:{second}", "holder"))
    assert scene.tasks.get(second).status is TaskStatus.QUEUED, "the only slot is the first one's"
    assert scene.tasks.cancel(first) == "requested"
    scene.work.recheck()
    thread.join(30)
    assert scene.tasks.get(first).status is TaskStatus.CANCELLED
    assert until_final(scene.tasks, second).attempt == 1


def test_a_cancelled_task_does_not_wait_for_its_worker_to_have_rested(scene, monkeypatch):
    monkeypatch.setattr(work_module, "BUSY_SECONDS", 600.0)
    monkeypatch.setattr(work_module, "BUSY_REST_SECONDS", 600.0)
    task_id = scene.submit({"busy": 1})
    thread = scene.take(task_id)
    wait_for(lambda: scene.stub.calls)
    time.sleep(0.2)  # most likely it rests by now
    assert scene.tasks.cancel(task_id) == "requested"
    scene.work.recheck()
    thread.join(30)
    assert scene.tasks.get(task_id).status is TaskStatus.CANCELLED


# -------------------------------------------------------------------------------------------------- whose time it is
def test_waiting_for_the_store_is_no_time_of_the_function_s(scene):
    task_id = scene.submit({"echo": 1, "sleep": 0.2}, stored=True, timeout_seconds=1.0, max_attempts=1)
    scene.objects.away.set()
    scene.take(task_id)
    wait_for(scene.objects.asked.is_set)
    time.sleep(1.2)  # longer than the function may run
    scene.work.cut_late()
    scene.objects.away.clear()
    task = until_final(scene.tasks, task_id)
    assert (task.status, task.attempt) == (TaskStatus.SUCCEEDED, 1)
    assert task.sent_at - task.started_at > 1


def test_a_store_that_stalls_in_the_middle_of_an_input_takes_no_time_from_the_function(scene):
    scene.objects.read_seconds = 1.5  # twice: the input, and its end
    task_id = scene.submit({"echo": 1, "sleep": 1.0}, stored=True, timeout_seconds=2.0, max_attempts=1)
    thread = scene.take(task_id)
    while thread.is_alive():
        scene.work.cut_late()
        thread.join(0.05)
    task = scene.tasks.get(task_id)
    assert (task.status, task.attempt) == (TaskStatus.SUCCEEDED, 1)


def test_an_input_that_breaks_off_is_not_charged(scene):
    scene.objects.read_error = OSError(errno.EIO, "Input/output error")
    task_id = scene.submit({"echo": 1}, stored=True, max_attempts=1)
    scene.take(task_id).join(30)
    task = scene.tasks.get(task_id)
    assert (task.status, task.attempt) == (TaskStatus.QUEUED, 0)


# --------------------------------------------------------------------------------------------------------- outcomes
def test_a_full_temporary_folder_costs_an_attempt_and_not_the_task(scene, monkeypatch, tmp_path):
    task_id = scene.submit({"size": SPOOL_BYTES + 1}, max_attempts=2)
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))  # fails as a full disk does: by an OSError
        scene.take(task_id).join(30)
    task = scene.tasks.get(task_id)
    assert (task.status, task.attempt) == (TaskStatus.QUEUED, 1)
    (report,) = scene.attempts(task_id)
    assert (report["charge"], report["reason"]) == ("full", "worker")
    assert "Make room in the temporary folder" in report["error"]["message"]
    wait_for(lambda: scene.tasks.sweep(scene.objects).due)
    scene.take(task_id).join(30)
    assert scene.tasks.get(task_id).status is TaskStatus.SUCCEEDED


@pytest.mark.parametrize(("wanted", "status"), [({"echo": 1}, "succeeded"), ({"crash": 1}, "queued")])
def test_an_outcome_that_cannot_be_written_is_tried_again(scene, wanted, status):
    scene.tasks.failures = 2
    task_id = scene.submit(wanted)
    scene.take(task_id).join(30)
    assert scene.tasks.get(task_id).status == status
    assert scene.tasks.failures == 0
