# ruff: noqa: T201 - user code prints
"""How a worker starts: which bundles it refuses, how it loads the others, and how a failure to load can be read."""

import os
import sys
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


# ------------------------------------------------------------------------------------------------------------- refused
def refusal(worker):
    code = worker.wait()
    lines = [line for line in worker.err if "refused" in line]
    assert len(lines) == 1
    assert "Traceback" not in "".join(worker.err)
    return code, lines[0]


def test_other_bytes_than_promised_are_refused(workers, tmp_path):
    bundle = tmp_path / "b.zip"
    digest = pack(bundle, add)
    bundle.write_bytes(bundle.read_bytes() + b"x")
    code, line = refusal(workers.start_file(bundle, digest))
    assert code == 3
    assert digest in line


def test_the_digest_is_checked_before_the_bundle_is_opened(workers, tmp_path):
    bundle = tmp_path / "b.zip"
    bundle.write_bytes(b"no zip at all")
    code, line = refusal(workers.start_file(bundle, "0" * 64))
    assert code == 3
    assert "SHA-256" in line


@pytest.mark.parametrize(
    ("manifest", "named"),
    [
        ({"python": "3.8"}, "Python 3.8"),
        ({"cloudpickle": "99.0"}, "cloudpickle 99.0"),
        ({"format": 2}, "format"),
        ({"kind": "spell"}, "spell"),
        ({"name": "Not A Name"}, "Not A Name"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_bundle_that_this_worker_cannot_run_is_refused(workers, tmp_path, manifest, named):
    bundle = tmp_path / "b.zip"
    code, line = refusal(workers.start_file(bundle, pack(bundle, add, manifest=manifest)))
    assert code == 3
    assert named in line


@pytest.mark.parametrize("name", ["../escaped.py", "/absolute.py", "a/../../escaped.py", "back\\slash.py"])
def test_sources_that_would_leave_their_folder_are_refused(workers, tmp_path, name):
    bundle = tmp_path / "b.zip"
    code, line = refusal(workers.start_file(bundle, pack(bundle, add, sources={name: "x = 1"})))
    assert code == 3
    assert "no plain file" in line
    assert not list(tmp_path.rglob("escaped.py"))


def test_a_missing_file_is_refused(workers, tmp_path):
    code, line = refusal(workers.start_file(tmp_path / "none.zip", "0" * 64))
    assert code == 3
    assert "none.zip" in line


@pytest.mark.parametrize(
    "arguments",
    [["--concurrency", "0"], ["--drain-seconds", "-1"], ["--listen-fd", "77"], ["--unknown"]],
)
def test_a_wrong_command_line_exits_with_2(tmp_path, arguments):
    bundle = tmp_path / "b.zip"
    worker = WorkerProcess(bundle, pack(bundle, add), arguments=arguments, pass_fds=(0,))
    assert worker.wait() == 2
    assert "error:" in worker.err[-1]


def test_a_digest_that_is_none_exits_with_2(tmp_path):
    worker = WorkerProcess(tmp_path / "b.zip", "abc")
    assert worker.wait() == 2


# ------------------------------------------------------------------------------------------------------------- loading
class Model:
    def load(self):
        import threading

        self.lines = [f"loaded in {threading.current_thread().name}"]

    def predict(self):
        return self.lines

    def unload(self):
        print("unloaded")


class AsyncModel:
    async def load(self):
        self.ready = True

    async def predict(self):
        return self.ready

    async def unload(self):
        print("unloaded asynchronously")


def load_model():
    return {"weight": 3}


def load_predict(model):
    return lambda x: x * model["weight"]


def test_a_class_is_loaded_once_in_the_main_thread_and_unloaded(workers):
    worker = workers.start(Model, "class")
    assert worker.predict().json == worker.predict().json == ["loaded in MainThread"]
    assert worker.stop() == 0
    assert worker.out == ["unloaded"]


def test_load_predict_and_unload_may_be_coroutines(workers):
    worker = workers.start(AsyncModel, "class")
    assert worker.predict().json is True
    worker.stop()
    assert worker.out == ["unloaded asynchronously"]


def test_the_two_function_form_is_the_same_thing(workers):
    worker = workers.start({"load_model": load_model, "load_predict": load_predict}, "load_predict")
    assert worker.predict(x=2).json == 6


def test_local_modules_travel_as_source_and_go_when_the_worker_goes(workers, tmp_path):
    sources = {"shop/__init__.py": "", "shop/prices.py": "PRICE = 7\n", "lazily.py": "from shop.prices import PRICE\n"}

    def price():
        import lazily

        return [lazily.PRICE, lazily.__file__]

    worker = workers.start(price, sources=sources)
    value, file = worker.predict().json
    assert value == 7
    assert Path(file).is_file()
    assert Path(file).parent.stat().st_mode & 0o777 == 0o700
    assert worker.stop() == 0
    assert not list(tmp_path.glob("brinery-sources-*"))


def test_sources_of_a_killed_worker_are_removed_by_the_next(workers, tmp_path):
    first = workers.start(pid, sources={"a.py": ""})
    child = first.child_pid
    first.process.kill()
    first.wait()
    first.wait_until(lambda: gone(child), "gone")
    left = list(tmp_path.glob("brinery-sources-*"))
    assert left
    second = workers.start(pid, sources={"a.py": ""})
    assert not left[0].exists()
    assert list(tmp_path.glob("brinery-sources-*"))
    second.stop()


def test_variables_of_the_bundle_are_set_unless_the_endpoint_says_otherwise(workers):
    def variables():
        return [os.environ["OF_BUNDLE"], os.environ["OF_BOTH"]]

    of_bundle = {"OF_BUNDLE": "1", "OF_BOTH": "bundle"}
    worker = workers.start(variables, env={"OF_BOTH": "endpoint"}, manifest={"env": of_bundle})
    assert worker.predict().json == ["1", "endpoint"]


class SlowModel:
    def load(self):
        import re

        # Holds the GIL for good: nothing in this process can answer meanwhile.
        re.match(r"(a+)+b", "a" * 40)

    def predict(self):
        return 1


def test_while_user_code_loads_and_holds_the_gil_everything_is_answered(workers):
    worker = workers.start(SlowModel, "class", until=("loading",))
    worker.wait_until(lambda: worker.child_pid is not None, "started")
    ready = worker.request("GET", "/readyz")
    assert (ready.status, ready.json) == (503, {"status": "loading"})
    reply = worker.predict()
    assert (reply.status, reply.error["type"]) == (503, "unavailable")
    assert worker.status["state"] == "loading"
    assert worker.stop() == 0


def test_a_large_body_sent_to_a_loading_worker_still_gets_its_answer(workers):
    worker = workers.start(SlowModel, "class", until=("loading",))
    reply = worker.request("POST", "/predict", b"x" * 1_000_000)
    assert reply.status == 503


class BrokenModel:
    def load(self):
        raise FileNotFoundError("no weights here")

    def predict(self):
        return 1


def test_a_load_that_raises_can_be_read_and_is_not_tried_again(workers):
    worker = workers.start(BrokenModel, "class", until=("failed",))
    status = worker.status
    assert status["restarts"] == 0
    error = status["error"]["error"]
    assert (error["type"], error["message"]) == ("remote", "no weights here")
    assert error["context"]["exception_type"] == "FileNotFoundError"
    assert "in load" in error["context"]["traceback"]
    ready = worker.request("GET", "/readyz")
    assert (ready.status, ready.json) == (503, status["error"])
    predicted = worker.predict()
    assert (predicted.status, predicted.error["type"]) == (503, "unavailable")
    assert "no weights here" in predicted.error["message"]
    assert worker.stop() == 0
    assert "FileNotFoundError: no weights here" in worker.err


def test_a_pickle_that_needs_a_missing_module_says_which(workers, tmp_path):
    module = tmp_path / "only_here.py"
    module.write_text("def f(): return 1\n")
    sys.path.insert(0, str(tmp_path))
    try:
        import only_here

        worker = workers.start(only_here.f, until=("failed",))
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("only_here", None)
    assert worker.status["error"]["error"]["context"]["exception_type"] == "ModuleNotFoundError"


class NoPredict:
    pass


def test_a_class_without_predict_is_told_so(workers):
    worker = workers.start(NoPredict, "class", until=("failed",))
    assert worker.status["error"]["error"]["type"] == "invalid_request"
    assert "predict" in worker.status["error"]["error"]["message"]


def test_a_schema_that_is_none_is_told_so(workers):
    worker = workers.start(add, manifest={"request_schema": {"type": "nothing"}}, until=("failed",))
    assert "request_schema" in worker.status["error"]["error"]["message"]


class DyingModel:
    def load(self):
        os._exit(9)

    def predict(self):
        return 1


def test_a_process_that_dies_while_it_loads_is_given_up_after_a_few_times(workers):
    worker = workers.start(DyingModel, "class", until=("failed",))
    status = worker.status
    assert status["restarts"] == 2
    assert status["exit"]["code"] == 9
    assert "exit code 9" in status["error"]["error"]["message"]
    assert worker.request("GET", "/readyz").status == 503
    assert worker.child_pid is None
