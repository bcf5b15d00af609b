"""The command line: data on stdout, and what is wrong as one line on stderr with exit 1."""

import json
import sys
from pathlib import Path

import pytest
from little_gateway import KEY

from brinery import RemoteError
from brinery.cli.code import endpoints_in
from brinery.errors import InvalidRequestError
from brinery.spec import TASK_HEADERS

BRINERY = str(Path(sys.executable).with_name("brinery"))
APP = """
from helper import loud
from brinery import Bundle, endpoint

@endpoint
def shout(text: str) -> str:
    return loud(text)

@endpoint(name="other")
def whisper(text: str) -> str:
    return text.lower()

pair = Bundle(name="pair", load_model=dict, load_predict=lambda model: str)
assert __name__ != "__main__"
"""


@pytest.fixture
def run(desk, gateway):
    def run(*command, check=True, **environment):
        settings = {"BRINERY_URL": gateway.url, "BRINERY_API_KEY": KEY, **environment}
        return desk.run(BRINERY, *command, check=check, **settings)

    return run


@pytest.fixture
def error_of(run):
    def error_of(*command, **environment):
        done = run(*command, check=False, **environment)
        assert done.returncode == 1
        assert not done.stdout
        assert len(done.stderr.splitlines()) == 1, done.stderr
        return done.stderr

    return error_of


def test_deploy_deploys_what_a_file_defines(desk, gateway, run):
    desk.write("helper.py", "def loud(text): return text.upper()\n")
    desk.write("app.py", APP)
    gateway.events = [{"at": 1, "version": 1, "kind": "build", "text": "installing [numpy]"}]
    done = run("deploy", "app.py")
    assert [line.split(" is ready: ")[0] for line in done.stdout.splitlines()] == [
        "shout version 1",
        "other version 1",
        "pair version 1",
    ]
    assert "shout: installing [numpy]" in done.stderr.splitlines()
    assert list(gateway.endpoints) == ["shout", "other", "pair"]
    bundle = desk.folder / "uploaded.zip"
    bundle.write_bytes(gateway.bundles["bun_0"])
    assert desk.open(bundle, "print(json.dumps([value('a'), value.__module__]))") == ["A", "app"]


@pytest.mark.parametrize("name", ["other", "whisper"])
def test_deploy_takes_one_by_its_name_or_its_variable(desk, gateway, run, name):
    desk.write("helper.py", "loud = str.upper\n")
    desk.write("app.py", APP)
    assert [one["name"] for one in json.loads(run("deploy", f"app.py:{name}", "--json").stdout)] == ["other"]
    assert list(gateway.endpoints) == ["other"]


def test_deploy_imports_a_file_of_a_package_under_its_full_name(desk, gateway, run):
    desk.write("shop/__init__.py", "")
    desk.write("shop/parts.py", "X = 5\n")
    app = "from brinery import endpoint\nfrom .parts import X\n@endpoint\ndef five() -> int: return X\n"
    run("deploy", str(desk.write("shop/app.py", app)), "--no-wait")
    bundle = desk.folder / "uploaded.zip"
    bundle.write_bytes(gateway.bundles["bun_0"])
    assert desk.open(bundle, "print(json.dumps([value(), value.__module__]))") == [5, "shop.app"]


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("app.py", "x = 1\nprint(y)\n", "app.py, line 2: NameError: name 'y' is not defined"),
        ("app.py", "def f(:\n", "app.py, line 1: SyntaxError"),
        ("app.py", "raise SystemExit(3)\n", "app.py, line 1: SystemExit: 3"),
        ("app.py", "import nothing_there\n", "No module named 'nothing_there'"),
        ("app.py", "x = 1\n", "defines no endpoint"),
        ("json.py", "x = 1\n", "rename it"),
        ("a.b.py", "x = 1\n", "call it something like app.py"),
        ("app.txt", "x = 1\n", "call it something like app.py"),
        (
            "app.py",
            "from brinery import endpoint\n@endpoint(max_worker=1)\ndef f(): ...\n",
            "did you mean 'max_workers'",
        ),
    ],
)
def test_a_file_that_cannot_be_deployed_is_one_line(desk, error_of, file, text, expected):
    desk.write(file, text)
    assert expected in error_of("deploy", file)


def test_a_name_or_a_file_that_is_not_there_is_one_line(desk, error_of):
    desk.write("helper.py", "loud = str.upper\n")
    desk.write("app.py", APP)
    assert "has no endpoint 'nothing'; it has shout, other, pair" in error_of("deploy", "app.py:nothing")
    assert "There is no file nothing.py" in error_of("deploy", "nothing.py")


def test_call_takes_values_as_json_or_text_and_prints_json(desk, gateway, run):
    gateway.functions["echo"] = lambda **arguments: arguments
    assert json.loads(run("call", "echo", "a=1", "b=[1, 2]", "c=plain text", "d=x=y", "e=").stdout) == {
        "a": 1,
        "b": [1, 2],
        "c": "plain text",
        "d": "x=y",
        "e": "",
    }
    assert json.loads(run("call", "echo", "--data", '{"a": 1, "b": 2}', "b=3").stdout) == {"a": 1, "b": 3}
    desk.write("input.json", '{"a": "é"}')
    assert run("call", "echo", "-d", "@input.json", "--json").stdout == '{"a": "é"}\n'
    gateway.functions["echo"] = lambda **_: iter([1, "two"])
    assert run("call", "echo", "--stream").stdout == '1\n"two"\n'


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["text"], "'text' is no argument"),
        (["--data", "nonsense"], "--data is not JSON"),
        (["--data", "[1]"], "give an object"),
        (["--data", "@missing.json"], "missing.json"),
    ],
)
def test_arguments_that_cannot_be_read_are_one_line(error_of, arguments, text):
    assert text in error_of("call", "echo", *arguments)


def test_errors_of_the_platform_are_one_line(gateway, error_of, desk):
    assert "nothing" in error_of("call", "nothing")
    assert "API key" in error_of("list", BRINERY_API_KEY="brn_wrong")
    gateway.stop()
    assert "brinery up" in error_of("list")
    done = desk.run(BRINERY, "list", check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "BRINERY_API_KEY" in done.stderr


def test_the_users_exception_comes_with_its_traceback_and_ours_without_one(gateway, run):
    def fail():
        raise RemoteError("lost", exception_type="LookupError", traceback='File "app.py", line 3')

    gateway.functions["fail"] = fail
    done = run("call", "fail", check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["Error: LookupError: lost", "", "Remote traceback:", 'File "app.py", line 3']
    assert "Traceback (most recent call last)" in run("call", "fail", check=False, BRINERY_DEBUG="1").stderr


def test_submit_prints_the_id_or_the_record_or_the_result(gateway, run):
    gateway.functions["double"] = lambda x: 2 * x
    task_id = run("submit", "double", "x=2").stdout.strip()
    assert gateway.tasks[task_id]["result"] == 4
    record = json.loads(run("submit", "double", "x=3", "--json", "--priority", "7").stdout)
    assert (record["status"], record["result"]) == ("succeeded", 6)
    assert json.loads(run("submit", "double", "x=4", "--wait").stdout) == 8


def test_submit_takes_every_option_of_a_task(gateway, run):
    gateway.functions["double"] = lambda x: 2 * x
    given = {
        "--priority": "9",
        "--max-attempts": "5",
        "--timeout-seconds": "2.5",
        "--expires-in-seconds": "60",
        "--result-ttl-seconds": "120",
        "--webhook": "https://example.org/hook",
        "--idempotency-key": "once",
    }
    options = [part for option in given.items() for part in option]
    run("submit", "double", "x=2", *options, "--retry-for", "ValueError", "--retry-for", "HTTP 503")
    sent = gateway.requests[-1][2]
    headers = {TASK_HEADERS[name]: sent.get(TASK_HEADERS[name]) for name in TASK_HEADERS}
    assert headers == {
        **{TASK_HEADERS[option[2:].replace("-", "_")]: value for option, value in given.items()},
        "X-Brinery-Timeout-Seconds": "2.5",
        "X-Brinery-Expires-In-Seconds": "60.0",
        "X-Brinery-Result-Ttl-Seconds": "120.0",
        "X-Brinery-Retry-For": "ValueError, HTTP 503",
    }
    run("submit", "double", "x=2")
    assert not set(TASK_HEADERS.values()) & set(gateway.requests[-1][2])
    for option in (*given, "--retry-for"):
        assert option in run("submit", "--help").stdout


def test_a_webhook_with_a_password_comes_from_a_file_and_what_is_wrong_is_one_line(gateway, desk, run):
    gateway.functions["double"] = lambda x: 2 * x
    hook = {"url": "https://example.org/hook", "username": "ann", "password": "hidden"}
    run("submit", "double", "x=2", "--webhook", f"@{desk.write('hook.json', json.dumps(hook))}")
    assert json.loads(gateway.requests[-1][2][TASK_HEADERS["webhook"]]) == hook
    asked = len(gateway.requests)
    for option, value, text in (
        ("--priority", "10", "priority is 10, and must be at most 9"),
        ("--webhook", "{", "--webhook is not JSON"),
        ("--webhook", "@nowhere", "--webhook @nowhere"),
        ("--webhook", "https://example.org/a b", "without blanks"),
        ("--retry-for", "HTTP", "'HTTP 503'"),
        ("--expires-in-seconds", "inf", "expires_in_seconds is a number, not inf"),
    ):
        done = run("submit", "double", "x=2", option, value, check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
        assert text in done.stderr
    assert len(gateway.requests) == asked


def test_tasks_are_shown_listed_and_cancelled(gateway, run):
    gateway.functions["double"] = lambda x: 2 * x
    gateway.held.add("double")
    task_id = run("submit", "double", "x=2").stdout.strip()
    assert json.loads(run("tasks", "show", task_id, "--json").stdout)["status"] == "queued"
    assert task_id in run("tasks", "list").stdout
    assert run("tasks", "cancel", task_id).stdout == f"{task_id} is cancelled.\n"
    error = RemoteError("lost", exception_type="LookupError", traceback="File x").to_json()["error"]
    gateway.finish(task_id, status="failed", error=error)
    shown = run("tasks", "show", task_id).stdout
    assert "LookupError: lost" in shown
    assert "File x" in shown


@pytest.mark.parametrize(("status", "ending"), [("succeeded", "succeeded"), ("cancelled", "been cancelled")])
def test_a_final_task_is_not_cancelled(gateway, run, status, ending):
    gateway.tasks["tsk_1"] = {"id": "tsk_1", "status": status}
    assert run("tasks", "cancel", "tsk_1").stdout == f"tsk_1 had already {ending}; there is nothing to cancel.\n"


def test_endpoints_are_listed_as_a_table_and_as_json(gateway, run):
    assert "brinery deploy" in run("list").stdout
    endpoint = {"name": "shout", "status": "failed", "reason": "first line\nsecond [line]", "workers": [], "spec": {}}
    gateway.endpoints["shout"] = endpoint | {"wanted_version": 2, "serving_version": 1, "updated_at": 1.0}
    header, row = run("list").stdout.splitlines()
    assert header.split() == ["NAME", "STATUS", "VERSION", "WORKERS", "UPDATED", "REASON"]
    assert row.split()[:5] == ["shout", "failed", "1", "→", "2"]
    assert row.rstrip().endswith("first line")
    assert json.loads(run("list", "--json").stdout)[0]["name"] == "shout"


def test_a_task_and_an_endpoint_are_shown_without_an_empty_line_and_as_json(gateway, run):
    for result, expected in (({"a": True}, '{"a": true}'), (None, "null")):
        gateway.functions["f"] = lambda result=result: result
        lines = run("tasks", "show", run("submit", "f").stdout.strip()).stdout.splitlines()
        assert lines[0].startswith("id ")
        assert [line.split(maxsplit=1)[1].strip() for line in lines if line.startswith("result ")] == [expected]
    endpoint = {"name": "shout", "status": "ready", "reason": "", "workers": [], "spec": {"name": "shout"}}
    gateway.endpoints["shout"] = endpoint
    lines = run("describe", "shout").stdout.splitlines()
    assert lines[0].split() == ["name", "shout"]
    assert lines[1].split() == ["url", f"{gateway.url}/v1/endpoints/shout/predict"]


def test_delete_asks_and_without_anybody_to_ask_wants_yes(error_of):
    assert "--yes" in error_of("delete", "shout")


def test_platform_commands_without_the_extra_say_how_to_get_it(desk):
    blocked = """
        import sys

        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {"brinery_platform", "pydantic_settings"}:
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, Blocker())
        sys.argv = ["brinery", *sys.argv[1:]]
        import brinery.cli
        brinery.cli.main()
        """
    script = str(desk.write("without.py", blocked))
    for command in (["up", "--detach"], ["status"], ["doctor"]):
        done = desk.python(script, *command, check=False)
        assert done.returncode == 1
        assert "pip install 'brinery[platform]'" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert "up" in desk.python(script, "--help").stdout


def test_a_full_disk_is_one_line(desk):
    full = """
        import errno, sys
        import brinery.cli
        import brinery.cli.tree

        def build(_command):
            raise OSError(errno.ENOSPC, "No space left on device")

        brinery.cli.tree.build = build
        brinery.cli.main()
        """
    done = desk.python(str(desk.write("full.py", full)), check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "Make room" in done.stderr


@pytest.mark.parametrize(
    ("option", "said"), [("--port=0", "port"), ("--shm-mib=0", "shm_mib"), ("--command=a 'b", "No closing quotation")]
)
def test_what_an_image_cannot_have_is_refused_and_not_left_out(error_of, option, said):
    assert said in error_of("deploy", "--image", "shout:1", option)


def test_a_wrong_option_is_a_usage_error(run):
    done = run("list", "--nonsense", check=False)
    assert done.returncode == 2
    assert "--nonsense" in done.stderr


def test_two_endpoints_of_one_name_in_a_file_are_refused(tmp_path):
    file = tmp_path / "twice.py"
    file.write_text(
        "from brinery import endpoint\n\n"
        "@endpoint(name='same')\ndef a() -> str:\n    return 'a'\n\n"
        "@endpoint(name='same')\ndef b() -> str:\n    return 'b'\n"
    )
    with pytest.raises(InvalidRequestError, match=r"defines 'same' twice \(a, b\)"):
        endpoints_in(str(file))
    sys.modules.pop("twice", None)
