"""What is killed comes back: endpoints and queued tasks after `kill -9` of anything, workers from zero on demand."""

import contextlib

import psutil
import pytest

from stack import wait_until

NAPPER = """
    import json
    from brinery import endpoint

    @endpoint(idle_seconds=0.5)
    def napper() -> str:
        return "awake"

    napper.deploy()
    print(json.dumps(napper.remote()))
"""


@pytest.fixture(autouse=True)
def platform_is_up_again(stack):
    """Whatever a test here did to the platform, the next one finds it up."""
    yield
    stack.brinery("up", "--detach")


def pid_of(stack, kind):
    """The process id of the platform's own process of a kind, found by its module."""
    for process in stack.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            if f"brinery_platform.{kind}" in process.cmdline():
                return process
    return None


def submit_naps(stack, count, seconds):
    with stack.http() as http:
        replies = [http.post("/v1/endpoints/doze/tasks", json={"seconds": seconds}) for _ in range(count)]
    assert {reply.status_code for reply in replies} == {202}
    return [reply.json()["id"] for reply in replies]


def statuses(stack, ids):
    with stack.http() as http:
        return [http.get(f"/v1/tasks/{task_id}", params={"wait_seconds": 60}).json()["status"] for task_id in ids]


def test_an_idle_endpoint_goes_to_zero_and_comes_back_on_a_call(stack):
    assert stack.run(NAPPER) == "awake"
    wait_until(lambda: not stack.endpoint("napper")["workers"], what="napper at zero workers")
    assert stack.endpoint("napper")["status"] == "ready"
    with stack.http() as http:
        assert http.post("/v1/endpoints/napper/predict", json={}).json() == "awake"


def test_an_endpoint_at_zero_wakes_for_a_task(stack):
    stack.run(NAPPER)
    wait_until(lambda: not stack.endpoint("napper")["workers"], what="napper at zero workers")
    with stack.http() as http:
        task_id = http.post("/v1/endpoints/napper/tasks", json={}).json()["id"]
    assert statuses(stack, [task_id]) == ["succeeded"]


def test_after_kill_9_of_everything_endpoints_and_queued_tasks_come_back(stack):
    ids = submit_naps(stack, 6, 0.3)
    killed = stack.processes()
    stack.kill_everything()
    stack.brinery("up", "--detach")
    assert set(statuses(stack, ids)) == {"succeeded"}
    with stack.http() as http:
        assert http.post("/v1/endpoints/add/predict", json={"a": 1, "b": 1}).json() == 2
    assert not [process for process in killed if process.is_running()]


def test_after_kill_9_of_up_alone_the_next_up_adopts_the_worker(stack):
    with stack.http() as http:
        worker = http.post("/v1/endpoints/doze/predict", json={"seconds": 0.0}).json()
        psutil.Process(stack.json("status")["pid"]).kill()
        wait_until(lambda: stack.brinery("status", check=False).returncode == 1, what="the killed `up` to be seen")
        stack.brinery("up", "--detach")
        assert http.post("/v1/endpoints/doze/predict", json={"seconds": 0.0}).json() == worker


@pytest.mark.parametrize("kind", ["gateway", "controller"])
def test_a_killed_process_of_the_platforms_own_is_started_again(stack, kind):
    killed = pid_of(stack, kind)
    killed.kill()
    wait_until(lambda: (new := pid_of(stack, kind)) and new.pid != killed.pid, what=f"a new {kind}")
    wait_until(lambda: stack.brinery("call", "add", "a=1", check=False).returncode == 0, what="calls to go on")


@pytest.mark.parametrize("kind", ["forwarder", "embedded Redis"])
def test_tasks_survive_the_death_of_what_carries_them(stack, kind):
    ids = submit_naps(stack, 6, 0.3)
    wait_until(lambda: "running" in {task["status"] for task in tasks(stack)}, what="a running task")
    victims = [process for process in stack.processes() if carries(process, kind)]
    assert victims
    for victim in victims:
        victim.kill()
    wait_until(lambda: stack.brinery("call", "add", "a=1", check=False).returncode == 0, what="calls to go on")
    assert set(statuses(stack, ids)) == {"succeeded"}


def tasks(stack):
    with stack.http() as http:
        return http.get("/v1/tasks", params={"endpoint": "doze"}).json()["tasks"]


def carries(process, kind):
    try:
        command = process.cmdline()
    except psutil.NoSuchProcess:
        return False
    return "brinery_platform.forwarder" in command if kind == "forwarder" else "valkey" in command[0]


def test_a_worker_killed_at_work_costs_an_attempt_and_not_the_task(stack):
    with stack.http() as http:
        worker = http.post("/v1/endpoints/doze/predict", json={"seconds": 0.0}).json()
    ids = submit_naps(stack, 2, 1.0)
    wait_until(lambda: "running" in {task["status"] for task in tasks(stack)}, what="a running task")
    psutil.Process(worker).kill()
    assert set(statuses(stack, ids)) == {"succeeded"}


def test_down_stops_what_a_killed_up_has_left(stack):
    psutil.Process(stack.json("status")["pid"]).kill()
    wait_until(lambda: stack.brinery("status", check=False).returncode == 1, what="the killed `up` to be seen")
    assert stack.processes()
    stack.brinery("down")
    wait_until(lambda: not stack.processes(), seconds=5, what="everything to be gone")


def test_scaling_down_leaves_the_worker_alone_that_works(stack):
    (stack.desk / "long.py").write_text(
        "import time\n"
        "from brinery import endpoint\n\n"
        "@endpoint(max_workers=2, idle_seconds=1, drain_seconds=0.5)\n"
        "def long(seconds: float) -> float:\n"
        "    time.sleep(seconds)\n"
        "    return seconds\n"
    )
    answers = stack.run(
        """
        import json, threading
        from long import long
        long.deploy()
        answers = []
        first = threading.Thread(target=lambda: answers.append(long.remote(8)))
        first.start()
        answers.append(long.remote(0.5))  # needs a second worker, which is not needed for long
        first.join()
        print(json.dumps(answers))
        """
    )
    assert answers == [0.5, 8]
    assert wait_until(lambda: not stack.endpoint("long")["workers"], what="the endpoint to be at zero")
