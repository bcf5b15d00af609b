"""The files of ``compose/`` say the same as the platform and as one another; what they do is tests/compose."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from brinery_platform.gateway.metrics import Metrics
from brinery_platform.gateway.task_gauges import tell
from brinery_platform.settings import Settings

COMPOSE = Path(__file__).parent.parent.parent.parent / "compose"
TEXT = (COMPOSE / "compose.yaml").read_text()
EXAMPLE = (COMPOSE / ".env.example").read_text()
SERVICES = yaml.safe_load(TEXT)["services"]
SECRET = re.compile(r"PASSWORD|SECRET|ACCESS_KEY|ADMIN_KEY")
PUBLIC_IMAGES = {name: service["image"] for name, service in SERVICES.items() if "build" not in service}


def variables(text):
    """Every variable that is asked for, with what follows its name up to the end: a default, a refusal, nothing."""
    return re.findall(r"(?<!\$)\$\{(\w+)((?::[-?])?[^}]*)\}", text)


def in_the_example():
    return dict(re.findall(r"^(\w+)=(.*)$", EXAMPLE, re.MULTILINE))


def test_what_has_no_default_is_in_the_example_and_everything_in_it_is_used():
    asked = variables(TEXT)
    with_default = {name for name, rest in asked if rest.startswith(":-")}
    without = {name for name, _ in asked} - with_default
    assert without <= in_the_example().keys()
    assert in_the_example().keys() <= {name for name, _ in asked} | {"BRINERY_PYTHON_IMAGE"}


def test_the_example_tells_the_defaults_that_hold():
    defaults = {name: rest.removeprefix(":-") for name, rest in variables(TEXT) if rest.startswith(":-")}
    assert {name: value for name, value in in_the_example().items() if name in defaults} == {
        name: value for name, value in defaults.items() if name in in_the_example()
    }


def test_no_secret_has_a_value_before_somebody_gives_it_one_and_an_empty_one_is_refused():
    secrets = {name for name in in_the_example() if SECRET.search(name)}
    assert len(secrets) >= 6
    for name in secrets:
        assert in_the_example()[name] == ""
        assert re.search(rf"\$\{{{name}:\?[^}}]*run compose/make-env", TEXT), name


def test_every_setting_of_the_platform_can_be_given_or_is_fixed_by_the_stack():
    given = {name for service in ("setup", "controller") for name in SERVICES[service]["environment"]}
    ours = {f"BRINERY_{name.upper()}" for name in Settings.model_fields}
    assert ours - given == {"BRINERY_TRUST_ALL_OWNERS"}, "which is for processes, that do not isolate"
    assert {name for name in given if name.startswith("BRINERY_")} - ours == {"BRINERY_URL"}, "which is the CLI's"


@pytest.mark.parametrize("name", sorted(PUBLIC_IMAGES))
def test_public_images_are_pinned(name):
    image = PUBLIC_IMAGES[name].partition(":-")[2].rstrip("}")
    assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+(\.\d+)?(-\w+)?|postgres:\d+-\w+", image), image


def test_make_env_fills_in_what_is_empty_once_and_for_its_owner_only(tmp_path):
    target = tmp_path / "env"
    run = [COMPOSE / "make-env", target]
    done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=30)
    if "no Docker socket" in done.stderr:
        pytest.skip("there is no Docker engine on this machine; start one with scripts/docker-engine")
    assert done.returncode == 0, done.stderr
    made = dict(re.findall(r"^(\w+)=(.*)$", target.read_text(), re.MULTILINE))
    for name, value in in_the_example().items():
        if SECRET.search(name):
            assert re.fullmatch(r"[a-z0-9_]{20,}", made[name]), name
        elif value:
            assert made[name] == value
    assert len({made[name] for name in made if SECRET.search(name)}) >= 6
    assert target.stat().st_mode & 0o077 == 0
    assert Settings(admin_key=made["BRINERY_ADMIN_KEY"]).admin_key
    again = subprocess.run(run, capture_output=True, text=True, check=False, timeout=30)
    assert (again.returncode, len(again.stderr.splitlines())) == (1, 1)


def test_the_board_asks_only_for_what_the_gateway_tells():
    board = json.loads((COMPOSE / "grafana" / "boards" / "brinery.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"\bbrinery_\w+", query)}
    text = (Metrics([]).render() + tell([])).decode()
    told = {family.name for family in text_string_to_metric_families(text)}
    assert {re.sub(r"_(total|bucket|count|sum)$", "", name) for name in asked} == told
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert len(places) == len(set(places)), "no panel lies upon another one"
