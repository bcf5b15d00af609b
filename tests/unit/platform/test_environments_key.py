"""What an environment is named after, and which requirements are refused."""

import pytest

from brinery.errors import InvalidRequestError
from brinery.spec import BundleManifest
from brinery_platform.environments import environment_key, user_requirements, worker_requirements
from brinery_platform.uv_tool import uv_environment


def manifest(*requirements: str, python: str = "3.11", cloudpickle: str = "3.1.2") -> BundleManifest:
    return BundleManifest(
        name="one", kind="function", python=python, cloudpickle=cloudpickle, requirements=list(requirements)
    )


def test_the_key_ignores_order_spacing_repetition_and_comments():
    tidy = manifest("numpy>=2", "six")
    untidy = manifest("six  # for old times", "", "# nothing", "  numpy>=2 ", "six")
    assert environment_key(tidy) == environment_key(untidy)


@pytest.mark.parametrize(
    "other",
    [
        manifest("six==1.16.0"),
        manifest("six", "numpy"),
        manifest("six", python="3.12"),
        manifest("six", cloudpickle="3.0.0"),
    ],
)
def test_the_key_changes_with_whatever_changes_the_environment(other):
    assert environment_key(other) != environment_key(manifest("six"))


def test_the_key_tells_architectures_apart():
    assert environment_key(manifest(), architecture="x86_64") != environment_key(manifest(), architecture="aarch64")


def test_the_key_ignores_what_the_environment_does_not_hold():
    named = BundleManifest(name="two", kind="class", python="3.11", cloudpickle="3.1.2", env={"A": "b"})
    assert environment_key(named) == environment_key(manifest())


def test_the_workers_cloudpickle_is_of_the_same_major_and_not_older():
    assert "cloudpickle>=3.1.2,<4" in worker_requirements(manifest(cloudpickle="3.1.2"))


@pytest.mark.parametrize("version", ["", "three", "3.1.2; python_version<'3'", "3.1.2\nsix"])
def test_a_version_of_cloudpickle_that_is_none_is_refused(version):
    with pytest.raises(InvalidRequestError, match="cloudpickle"):
        worker_requirements(manifest(cloudpickle=version))


@pytest.mark.parametrize("python", ["", "three", "3"])
def test_a_version_of_python_that_is_none_is_refused(python):
    with pytest.raises(InvalidRequestError, match="Python"):
        environment_key(manifest(python=python))


@pytest.mark.parametrize(
    "line",
    [
        "-r other.txt",
        "--index-url https://example.org",
        "six\n--index-url https://example.org",
        "-e .",
    ],
)
def test_options_are_refused_because_indexes_are_the_operators_choice(line):
    with pytest.raises(InvalidRequestError, match="no options"):
        user_requirements(manifest(line))


@pytest.mark.parametrize(
    "line",
    [
        "./package",
        "/etc/package",
        "~/package",
        "package @ file:///etc/package",
        "package @ FILE:///etc/package",
        "package @ https://example.org/${UV_DEFAULT_INDEX}/package.zip",
        "six \\",
    ],
)
def test_a_requirement_cannot_name_something_of_the_platforms_machine(line):
    with pytest.raises(InvalidRequestError, match="own machine"):
        user_requirements(manifest(line))


def test_what_pip_is_told_about_indexes_is_told_to_uv():
    environment = uv_environment(
        {
            "PIP_FIND_LINKS": "/one /two",
            "PIP_INDEX_URL": "https://index.example/simple",
            "PIP_EXTRA_INDEX_URL": "https://more.example/simple  https://most.example/simple",
        }
    )
    assert environment["UV_FIND_LINKS"] == "/one,/two"
    assert environment["UV_DEFAULT_INDEX"] == "https://index.example/simple"
    assert environment["UV_INDEX"] == "https://more.example/simple https://most.example/simple"
    assert not [name for name in environment if name.startswith("PIP_")]


def test_uvs_own_variables_win_over_pips():
    environment = uv_environment({"PIP_FIND_LINKS": "/pip", "UV_FIND_LINKS": "/uv", "UV_PYTHON_DOWNLOADS": "automatic"})
    assert environment["UV_FIND_LINKS"] == "/uv"
    assert environment["UV_PYTHON_DOWNLOADS"] == "never"
