"""What is packed opens again in a clean interpreter, with nothing but what travelled."""

import json
import zipfile

import pytest

from brinery.bundle import PYTHON_MINOR


def names(bundle):
    return zipfile.ZipFile(bundle).namelist()


def test_a_function_of_the_script_travels_by_value(desk):
    bundle = desk.pack(
        """
        from brinery import endpoint
        GREETING = "hello"

        @endpoint
        def greet(name: str) -> str:
            return f"{GREETING} {name}"
        """,
        "greet",
    )
    assert names(bundle) == ["function.pkl", "manifest.json"]
    assert desk.open(bundle, "print(json.dumps(value('you')))") == "hello you"
    manifest = json.loads(zipfile.ZipFile(bundle).read("manifest.json"))
    assert (manifest["name"], manifest["kind"], manifest["python"]) == ("greet", "function", PYTHON_MINOR)


def test_a_local_module_travels_as_source_with_all_that_it_imports(desk):
    desk.write("first.py", "import second\nfrom kitchen.oven import bake\ndef f(x): return bake(second.g(x))\n")
    desk.write("second.py", "def g(x):\n    import lazy\n    return lazy.h(x)\n")
    desk.write("lazy.py", "import importlib\ndef h(x): return importlib.import_module('named').k(x)\n")
    desk.write("named.py", "def k(x): return x + 1\n")
    desk.write("unused.py", "")
    desk.write("kitchen/__init__.py", "")
    desk.write("kitchen/oven.py", "from . import heat\ndef bake(x): return heat.HOT * x\n")
    desk.write(
        "kitchen/heat.py", "from pathlib import Path\nHOT = int((Path(__file__).parent / 'hot.txt').read_text())"
    )
    desk.write("kitchen/hot.txt", "10")
    desk.write("kitchen/.secret", "no")
    desk.write("kitchen/__pycache__/old.txt", "no")
    desk.write("kitchen/venv/pyvenv.cfg", "")
    desk.write("kitchen/venv/no.py", "")
    script = """
        import first
        from brinery import endpoint

        @endpoint
        def cook(x: int) -> int:
            return first.f(x)
        """
    bundle = desk.pack(script, "cook")
    assert desk.open(bundle, "print(value(1))") == 20
    assert [name.removeprefix("sources/") for name in names(bundle) if name.startswith("sources/")] == [
        "first.py",
        "kitchen/__init__.py",
        "kitchen/heat.py",
        "kitchen/hot.txt",
        "kitchen/oven.py",
        "lazy.py",
        "named.py",
        "second.py",
    ]


def test_an_import_inside_of_a_function_of_the_script_travels(desk):
    desk.write("ns/inner/tool.py", "VALUE = 7\n")
    desk.write("ns/other.py", "")
    script = """
        from brinery import endpoint

        @endpoint
        def late() -> int:
            def nested():
                from ns.inner import tool
                return tool.VALUE
            return nested()
        """
    bundle = desk.pack(script, "late")
    assert "sources/ns/inner/tool.py" in names(bundle)
    assert "sources/ns/other.py" not in names(bundle)
    assert desk.open(bundle, "print(value())") == 7


@pytest.mark.parametrize(("kind", "call"), [("shout", "value('a')"), ("Shout", "value().predict('a')")])
def test_an_endpoint_of_a_module_travels_by_name_and_opens_as_the_code_itself(desk, kind, call):
    desk.write(
        "app.py",
        """
        from brinery import endpoint

        @endpoint(max_workers=2)
        def shout(text: str) -> str:
            return loud(text)

        @endpoint
        class Shout:
            class Style:
                mark = "?"

            def predict(self, text: str) -> str:
                return shout(text) + self.Style.mark

        def loud(text):
            return text.upper()
        """,
    )
    bundle = desk.pack("import app", f"app.{kind}")
    assert "sources/app.py" in names(bundle)
    assert len(zipfile.ZipFile(bundle).read("function.pkl")) < 200
    assert desk.open(bundle, f"print(json.dumps({call}))") == {"shout": "A", "Shout": "A?"}[kind]
    assert desk.open(bundle, "print(json.dumps(type(value).__name__))") == {"shout": "function", "Shout": "type"}[kind]


def test_endpoints_call_one_another_and_themselves_where_they_travel(desk):
    desk.write("other.py", "from brinery import endpoint\n@endpoint\ndef double(x: int) -> int: return 2 * x\n")
    bundle = desk.pack(
        """
        from brinery import endpoint
        from other import double

        @endpoint
        class Base:
            def load(self): self.base = 100
            def predict(self, x: int = 1) -> int: return self.base + x

        @endpoint(timeout_seconds=3)
        def chain(x: int, depth: int = 2) -> int:
            return chain(double(x), depth - 1) if depth else Base.local(x)
        """,
        "chain",
    )
    assert desk.open(bundle, "print(value(1))") == 104
    mine = "chain = value.__globals__['chain']; print(json.dumps([chain.name, chain.settings['timeout_seconds']]))"
    assert desk.open(bundle, mine) == ["chain", 3]
    bound = "chain = value.__globals__['chain']; print(json.dumps(str(chain.parameters())))"
    assert desk.open(bundle, bound) == "(x: int, depth: int = 2) -> int"


def test_a_pair_and_a_closure_travel(desk):
    desk.write("models.py", "def load_model():\n    return 3\n")
    bundle = desk.pack(
        """
        import models
        from brinery import Bundle

        def make(offset):
            def load_predict(model):
                return lambda x: model * x + offset
            return load_predict

        triple = Bundle(name="triple", load_model=models.load_model, load_predict=make(1), max_workers=2)
        """,
        "triple",
    )
    assert desk.open(bundle, "print(value['load_predict'](value['load_model']())(5))") == 16
    assert desk.open(bundle, "print(json.dumps(manifest['kind']))") == "load_predict"


@pytest.mark.parametrize("module", ["", "app"])
def test_the_same_code_is_the_same_bytes_in_every_process(desk, module):
    code = """
        from dataclasses import dataclass
        from enum import Enum
        from brinery import endpoint

        class Colour(Enum):
            RED = "red"

        @dataclass
        class Point:
            x: int

        @endpoint
        class Model:
            names = ["a", "b", "c"]

            def predict(self, x: int = 1, *, y: str = "") -> dict:
                assert y in {"", "a", "b", "c"} and x not in {1.5, None, "d"}
                return {"x": Point(x), "names": self.names, "colour": Colour.RED}
        """
    desk.write("app.py", code)
    packed = [
        desk.pack(
            f"import {module}" if module else code, f"{module}.Model" if module else "Model", PYTHONHASHSEED=seed
        ).read_bytes()
        for seed in ("1", "2")
    ]
    assert packed[0] == packed[1]
    assert desk.open(desk.folder / "bundle.zip", "print(value().predict(2)['x'].x)") == 2


def test_other_code_is_other_bytes(desk):
    code = "from brinery import endpoint\n@endpoint\nclass M:\n    def predict(self): return {}\n"
    assert len({desk.pack(code.format(number), "M").read_bytes() for number in (1, 2)}) == 2


def test_installed_packages_stay_where_they_are(desk):
    bundle = desk.pack(
        """
        import pydantic
        from brinery import endpoint

        @endpoint(requirements=["pydantic"])
        def check(x: int) -> bool:
            import httpx, json
            return bool(pydantic.TypeAdapter(int).validate_python(x))
        """,
        "check",
    )
    assert not [name for name in names(bundle) if name.startswith("sources/")]


def test_a_module_named_like_one_of_pythons_own_is_refused(desk):
    desk.write("colorsys.py", "X = 1\n")
    script = "from brinery import endpoint\n@endpoint\ndef f():\n    import colorsys\n    return colorsys.X\n"
    with pytest.raises(AssertionError, match=r"PackingError: .*colorsys\.py is named like Python's own"):
        desk.pack(script, "f")


def test_too_much_source_is_refused_by_the_names_of_the_largest_files(desk):
    desk.write("big/__init__.py", "")
    with (desk.folder / "big" / "weights.bin").open("wb") as weights:
        weights.truncate(33 * 2**20)
    script = "import big\nfrom brinery import endpoint\n@endpoint\ndef f():\n    return big.__name__\n"
    with pytest.raises(AssertionError, match=r"big/weights\.bin \(33\.0 MiB\)"):
        desk.pack(script, "f")
