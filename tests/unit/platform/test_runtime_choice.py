"""What a home's runtime is for commands beside `brinery up`."""

import pytest

from brinery_platform.runtimes.choice import Choice, in_force
from brinery_platform.settings import platform_environment, read_settings


@pytest.fixture
def home(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path


@pytest.mark.parametrize("asked", ["auto", "process", "docker"])
@pytest.mark.parametrize("used", ["process", "docker"])
def test_commands_look_where_the_last_up_has_started_its_workers(home, asked, used):
    Choice(used, "for the test").write(home)
    assert in_force(read_settings(home=home, runtime=asked)).runtime == used
    assert Choice.read(home) == Choice(used, "for the test")


@pytest.mark.parametrize(("asked", "meant"), [("auto", "process"), ("process", "process"), ("docker", "docker")])
def test_where_no_up_ever_ran_auto_means_processes(tmp_path, asked, meant):
    assert in_force(read_settings(home=tmp_path / "new", runtime=asked)).runtime == meant


@pytest.mark.parametrize("text", ["", "{", "[]", '{"runtime": "docker", "more": 1}'])
def test_a_damaged_record_is_none(home, text):
    (home / "run" / "runtime.json").write_text(text)
    assert Choice.read(home) is None


def test_the_outcome_is_what_the_platforms_processes_are_told(home):
    Choice("docker", "for the test").write(home)
    assert (
        platform_environment(in_force(read_settings(home=home, redis_url="redis://h")))["BRINERY_RUNTIME"] == "docker"
    )
