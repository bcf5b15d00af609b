"""The decorator: one object per function, class or pair, which runs here when it is called."""

import asyncio
import json
import pickle
import sys
import typing
from dataclasses import fields

import cloudpickle
import pytest

import brinery
from brinery import Bundle, Endpoint, InvalidRequestError, endpoint
from brinery.calls import CallChoices
from brinery.definition import EndpointChoices
from brinery.spec import EndpointSpec, TaskOptions


@endpoint
def shout(text: str, times: int = 1) -> str:
    """Shout it."""
    return text.upper() * times


def test_a_function_stays_what_it_was():
    assert shout("a", times=2) == shout.local("a", 2) == "AA"
    assert (shout.__name__, shout.__doc__, shout.name) == ("shout", "Shout it.", "shout")


def test_a_class_is_made_and_loaded_once_on_its_first_call():
    loads = []

    @endpoint(requirements=["scikit-learn"], min_workers=0, max_workers=4)
    class IrisModel:
        def load(self):
            loads.append(self)

        def predict(self, x):
            return x, len(loads)

    assert not loads
    assert IrisModel(x=1) == (1, 1)
    assert IrisModel.local(2) == (2, 1)
    assert IrisModel.name == "iris-model"
    assert IrisModel.requirements == ("scikit-learn",)


def test_a_pair_is_an_endpoint_too():
    loads = []
    pair = Bundle(
        name="pair",
        load_model=lambda: loads.append(1) or 3,
        load_predict=lambda model: lambda x: model * x,
        requirements=["numpy>=2"],
        max_workers=2,
    )
    assert isinstance(pair, Endpoint)
    assert (pair(5), pair.local(6), loads) == (15, 18, [1])
    assert pair.spec("bun_1").max_workers == 2


def test_async_functions_and_generators_run_here_as_they_are():
    @endpoint
    async def later(x):
        return x

    @endpoint
    def count(n):
        yield from range(n)

    assert asyncio.run(later(1)) == 1
    assert list(count(3)) == [0, 1, 2]


def test_the_typed_names_are_those_of_the_spec_and_no_others():
    ours = {field.name for field in fields(EndpointSpec)} - {"bundle_id"}
    assert set(EndpointChoices.__annotations__) == ours | {"requirements"}
    assert set(CallChoices.__annotations__) == {field.name for field in fields(TaskOptions)} | {"pickled"}


def test_the_typed_names_have_the_specs_types():
    given, of_spec = typing.get_type_hints(EndpointChoices), typing.get_type_hints(EndpointSpec)
    translated = {"retry_for", "webhook"}  # given in more ways than the spec keeps
    assert {name: hint for name, hint in given.items() if name not in translated | {"requirements"}} == {
        name: hint for name, hint in of_spec.items() if name not in translated | {"bundle_id"}
    }


def test_settings_reach_the_spec_and_the_others_take_its_defaults():
    spec = endpoint(lambda: 1, name="one", max_workers=4, cpus=2, env={"A": "b"}, metadata={"c": [1]}).spec("bun_1")
    assert spec == EndpointSpec(
        name="one", bundle_id="bun_1", max_workers=4, cpus=2.0, env={"A": "b"}, metadata={"c": [1]}
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [("HTTPServer", "http-server"), ("Iris2Model", "iris2-model"), ("__my_fn", "my-fn"), ("a", "a")],
)
def test_the_name_is_made_from_the_functions_own(name, expected):
    def f(): ...

    f.__name__ = name
    assert endpoint(f).name == expected


class NoPredict: ...


class Needy:
    def __init__(self, path): ...

    def predict(self): ...


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: endpoint(max_worker=1), "no setting 'max_worker'; did you mean 'max_workers'?"),
        (lambda: endpoint(zzz=1), "no setting 'zzz'; there are concurrency, cpus"),
        (lambda: endpoint(shout), "is an endpoint already"),
        (lambda: endpoint(3), "was given a int"),
        (lambda: endpoint(lambda: 1), "give name="),
        (lambda: endpoint(shout.target, name="Not Good"), "'Not Good' is no valid endpoint name"),
        (lambda: endpoint(NoPredict), "NoPredict has no predict method"),
        (lambda: endpoint(Needy), "missing a required argument: 'path'"),
        (lambda: Bundle(load_model=int, load_predict=int), "give it a name"),
        (lambda: Bundle(name="x", load_model=1, load_predict=int), "load_model is a int"),
        (lambda: endpoint(shout.target, requirements="numpy"), "is a list"),
        (lambda: endpoint(shout.target, requirements=[1]), "1 is no text"),
        (lambda: endpoint(shout.target, requirements=["numpy\n--pre"]), "no text of one line"),
        (lambda: endpoint(shout.target, requirements=["-r more.txt"]), "pip option"),
        (lambda: endpoint(shout.target, requirements=["--index-url http://evil"]), "pip option"),
        (lambda: endpoint(shout.target, requirements=["a==1 --hash=sha256:0"]), "pip option"),
        (lambda: endpoint(shout.target, requirements=["./local"]), "no pip requirement"),
        (lambda: endpoint(shout.target, requirements=[""]), "no pip requirement"),
        (lambda: shout.options(piority=1), "did you mean 'priority'?"),
    ],
)
def test_what_is_wrong_is_told_at_once(make, text):
    with pytest.raises(InvalidRequestError) as caught:
        make()
    assert text in caught.value.message


@pytest.mark.parametrize(
    "line",
    [
        "numpy",
        "scikit-learn>=1.4,<2",
        "uvicorn[standard] >=0.30",
        "a==1; python_version<'3.13'",
        "p @ https://x.y/p.whl",
    ],
)
def test_good_requirements_are_taken(line):
    assert endpoint(shout.target, requirements=[line]).requirements == (line,)


@pytest.mark.parametrize(
    ("settings", "text"),
    [({"max_workers": 0}, "max_workers"), ({"cpus": "many"}, "cpus"), ({"min_workers": 3}, "min_workers")],
)
def test_a_setting_of_a_wrong_value_is_named(settings, text):
    with pytest.raises(InvalidRequestError, match=text):
        endpoint(shout.target, **settings).spec("bun_1")


def test_an_endpoint_pickles_by_name_where_it_can_be_imported():
    assert pickle.loads(pickle.dumps(shout)) is shout
    assert len(pickle.dumps(shout)) < 100
    local = cloudpickle.loads(cloudpickle.dumps(endpoint(lambda x: x + 1, name="local", max_workers=3)))
    assert (local(1), local.name, local.settings["max_workers"]) == (2, "local", 3)


def test_the_decorator_keeps_its_name_whatever_is_imported_first():
    code = "import brinery.endpoint, brinery.cli; from brinery import endpoint; print(callable(endpoint))"
    import subprocess

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"


def test_every_public_name_is_there_and_no_other():
    assert all(getattr(brinery, name) for name in brinery.__all__)
    assert set(brinery.__all__) <= set(dir(brinery))
    assert brinery.__version__
    with pytest.raises(AttributeError, match="nothing"):
        brinery.nothing  # noqa: B018 - the access is the test


def test_importing_brinery_imports_light_modules_only():
    heavy = ["httpx", "pydantic", "typer", "rich", "tenacity", "asyncio", "ssl", "cloudpickle", "http.client"]
    code = f"import sys, json, brinery; print(json.dumps([name for name in {heavy} if name in sys.modules]))"
    import subprocess

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
