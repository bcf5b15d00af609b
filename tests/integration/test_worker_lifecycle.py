# ruff: noqa: T201 - user code prints
"""How a worker crashes, comes back and stops: real processes, real signals."""

import contextlib
import http.client
import os
import signal
import socket
import sys
import time
from pathlib import Path

import cloudpickle
import pytest
from worker_process import WorkerProcess, Workers, gone, pack

cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def workers(tmp_path):
    found = Workers(tmp_path)
    yield found
    found.stop()


def add(x: int, y: int = 1):
    return x + y


def pid():
    return os.getpid()


def die(how: str):
    if how == "exit":
        os._exit(41)
    os.kill(os.getpid(), signal.SIGKILL)


def fork_and_return(tag: str):
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    return f"{tag} {'parent' if child else 'child'}"


def wait_for(path: str):
    print("waiting", flush=True)
    while not Path(path).exists():
        time.sleep(0.01)
    return "finished"


# ------------------------------------------------------------------------------------------------------------- crashes
def test_a_process_that_exits_in_a_request_is_started_again_and_the_code_is_kept(workers):
    worker = workers.start(die)
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        worker.predict(how="exit")
    worker.wait_until(lambda: worker.status["restarts"] == 1, "restarted")
    status = worker.wait_state("ready").status
    assert (status["exit"]["code"], status["exit"]["signal"]) == (41, None)
    assert "41" in status["exit"]["reason"]


def test_a_fork_that_comes_back_from_user_code_answers_nobody(workers):
    worker = workers.start(fork_and_return)
    answers = [worker.predict(tag=str(number)) for number in range(5)]
    assert [reply.json for reply in answers] == [f"{number} parent" for number in range(5)]


def test_a_process_killed_by_a_signal_is_not_called_out_of_memory(workers):
    worker = workers.start(die)
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        worker.predict(how="kill")
    worker.wait_until(lambda: worker.status["restarts"] == 1, "restarted")
    exited = worker.wait_state("ready").status["exit"]
    assert (exited["code"], exited["signal"]) == (None, signal.SIGKILL)
    assert "SIGKILL" in exited["reason"]
    assert "memory" not in exited["reason"]


def test_a_crashed_process_takes_what_it_started_with_it(workers):
    def start_another():
        import subprocess

        return subprocess.Popen(["sleep", "600"], start_new_session=True).pid

    worker = workers.start(start_another)
    grandchild = worker.predict().json
    os.kill(worker.child_pid, signal.SIGKILL)
    worker.wait_until(lambda: gone(grandchild), "ended with its parent")


def test_what_user_code_left_behind_ends_with_the_worker(workers):
    def start_another():
        import subprocess

        return subprocess.Popen(["sleep", "600"], start_new_session=True).pid

    worker = workers.start(start_another)
    grandchild = worker.predict().json
    assert worker.stop() == 0
    assert gone(grandchild)


def test_user_code_can_still_terminate_what_it_forks(workers):
    def fork_and_terminate():
        import multiprocessing

        forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        forked.start()
        forked.terminate()
        forked.join()
        return forked.exitcode

    assert workers.start(fork_and_terminate).predict().json == -signal.SIGTERM


class Lingering:
    def predict(self):
        return 1

    def unload(self):
        time.sleep(600)


def test_an_unload_that_never_ends_does_not_keep_the_worker_from_stopping(workers):
    worker = workers.start(Lingering, "class")
    assert worker.stop() == 0
    worker.wait_log("did not end within")


def test_a_killed_supervisor_takes_the_serving_process_with_it(workers):
    worker = workers.start(pid)
    child = worker.predict().json
    worker.process.kill()
    assert worker.wait() == -signal.SIGKILL
    worker.wait_until(lambda: gone(child), "gone")
    with pytest.raises(ConnectionRefusedError):
        worker.request("GET", "/readyz")


# ------------------------------------------------------------------------------------------------------------ stopping
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_of_them_drains_before_it_stops(workers, tmp_path, number):
    class Patient:
        def predict(self, file: str):
            return wait_for(file)

        def unload(self):
            print("unloaded")

    worker = workers.start(Patient, "class", arguments=["--concurrency", "2"])
    reply = worker.predict_later(file=str(tmp_path / "go"))
    worker.wait_busy(1)
    os.killpg(worker.process.pid, number)
    worker.wait_state("stopping")
    refused = worker.predict(file="unused")
    assert (refused.status, refused.error["type"]) == (429, "worker_busy")
    (tmp_path / "go").touch()
    answer = reply.get(timeout=30)
    assert (answer.status, answer.json) == (200, "finished")
    assert worker.wait() == 0
    assert worker.out == ["waiting", "unloaded"]


def test_a_request_over_the_drain_is_cut_and_unload_still_runs(workers, tmp_path):
    class Patient:
        def predict(self, file: str):
            return wait_for(file)

        def unload(self):
            print("unloaded")

    worker = workers.start(Patient, "class", arguments=["--drain-seconds", "0.2"])
    connection = http.client.HTTPConnection("127.0.0.1", worker.port, timeout=30)
    with contextlib.closing(connection):
        connection.request("POST", "/predict", f'{{"file": "{tmp_path / "never"}"}}')
        worker.wait_busy(1)
        assert worker.stop() == 0
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            connection.getresponse()
    assert worker.out == ["waiting", "unloaded"]


def test_draining_turns_requests_away_and_keeps_running(workers):
    worker = workers.start(add)
    reply = worker.request("POST", "/drain", port=worker.control_port)
    assert reply.status == 202
    refused = worker.predict(x=1)
    assert (refused.status, refused.error["type"]) == (429, "worker_busy")
    assert worker.status["state"] == "stopping"
    assert worker.request("GET", "/healthz").status == 200


def test_listening_sockets_can_be_handed_over(tmp_path):
    bundle = tmp_path / "b.zip"
    digest = pack(bundle, add)
    with socket.create_server(("127.0.0.1", 0)) as serving, socket.create_server(("127.0.0.1", 0)) as control:
        fds = (serving.fileno(), control.fileno())
        arguments = ["--listen-fd", str(fds[0]), "--control-fd", str(fds[1])]
        worker = WorkerProcess(bundle, digest, arguments=arguments, pass_fds=fds)
        ports = (serving.getsockname()[1], control.getsockname()[1])
    try:
        assert (worker.port, worker.control_port) == ports
        worker.wait_state("ready")
        assert worker.predict(x=1).json == 2
    finally:
        assert worker.stop() == 0


def test_what_user_code_prints_is_kept_line_by_line(workers):
    def talk():
        import logging

        print("to stdout")
        print("to stderr", file=sys.stderr)
        logging.getLogger("mine").warning("a warning")
        print("half a line", end="")
        print(" and the rest")
        os._exit(0)

    worker = workers.start(talk)
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        worker.predict()
    worker.wait_log("ended by itself with exit code 0")
    worker.stop()
    assert worker.out == ["to stdout", "half a line and the rest"]
    assert [line for line in worker.err if not line.startswith("brinery-worker: ")] == ["to stderr", "a warning"]


def test_the_control_port_says_what_it_has(workers):
    worker = workers.start(add)
    reply = worker.request("GET", "/nothing", port=worker.control_port)
    assert (reply.status, reply.error["type"]) == (404, "not_found")
    assert "/status" in reply.error["message"]
    assert worker.request("POST", "/cancel", port=worker.control_port).status == 422
    with socket.create_connection(("127.0.0.1", worker.control_port)) as raw:
        raw.sendall(b"nonsense\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 400 ")
