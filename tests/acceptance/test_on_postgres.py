"""The platform on a PostgreSQL that the settings name: it outlives that server's restart and its own death."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from servers import PostgresProcess, free_port, running_postgres
from stack import KIT, Stack, wait_until


@pytest.fixture
def postgres() -> Iterator[PostgresProcess]:
    with running_postgres() as server:
        yield server


def add(stack: Stack, a: int) -> int:
    with stack.http() as http:
        return int(http.post("/v1/endpoints/add/predict", json={"a": a}).raise_for_status().json())


def test_endpoints_outlive_a_restart_of_postgres_and_the_death_of_everything(
    other: Stack, postgres: PostgresProcess
) -> None:
    other.environment["BRINERY_DATABASE_URL"] = postgres.url()
    (other.desk / "kit.py").write_text(KIT)
    other.brinery("up", "--detach")
    other.brinery("deploy", "kit.py:add")
    assert add(other, 1) == 2

    postgres.kill()
    assert add(other, 2) == 3, "a call needs no database"
    with other.http() as http:
        away = http.get("/v1/endpoints")
    assert (away.status_code, away.json()["error"]["type"]) == (503, "unavailable")
    postgres.start()
    assert other.endpoint("add")["status"] == "ready", "the next call works"
    other.brinery("deploy", "kit.py:triple")
    assert other.json("call", "triple", "x=2") == 6

    other.kill_everything()
    postgres.kill()
    postgres.start()
    other.brinery("up", "--detach")
    assert {row["name"] for row in other.json("list")} == {"add", "triple"}
    assert wait_until(lambda: add(other, 41), what="an answer") == 42
    other.brinery("down")
    assert not list(other.home.glob("*.db*")), "nothing may lie in an embedded database"
    password = postgres.PASSWORD
    assert not [path for path in other.home.rglob("*.log") if password in path.read_text(errors="replace")]


def test_a_database_that_is_not_there_is_one_line_and_exit_1(other: Stack) -> None:
    url = f"postgresql://ada:sesame-0815@127.0.0.1:{free_port()}/brinery"
    for arguments in ([], ["--detach"]):
        done = other.brinery("up", *arguments, check=False, BRINERY_DATABASE_URL=url)
        assert done.returncode == 1
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        assert len(lines) == 1, done.stderr
        assert "BRINERY_DATABASE_URL" in lines[0]
        assert "refused" in lines[0]
        assert "sesame" not in done.stdout + done.stderr
        assert not other.processes()
