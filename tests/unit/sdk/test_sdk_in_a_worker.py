"""In a worker, where of the SDK's libraries only cloudpickle and annotated-types are: code opens, and runs."""

import importlib.util
import json
import sys
from pathlib import Path

import brinery


def worker_python(desk, bundle, code):
    """Run code with nothing on the path but the SDK, those two libraries, and what travelled in the bundle."""
    libraries = desk.elsewhere / "libraries"
    libraries.mkdir()
    # typing_extensions is what annotated-types itself asks for.
    for name in ("cloudpickle", "annotated_types", "typing_extensions"):
        origin = Path(importlib.util.find_spec(name).origin)
        found = origin.parent if origin.name == "__init__.py" else origin
        (libraries / found.name).symlink_to(found)
    sdk = Path(brinery.__file__).parent.parent
    (libraries / "brinery").symlink_to(sdk / "brinery")
    opening = f"""
import json, pickle, sys, zipfile
sys.path.append({str(libraries)!r})
archive = zipfile.ZipFile({str(bundle)!r})
archive.extractall("opened")
sys.path.insert(0, "opened/sources")
value = pickle.loads(archive.read("function.pkl"))
"""
    done = desk.run(sys.executable, "-I", "-S", "-c", opening + code, cwd=desk.elsewhere)
    return json.loads(done.stdout.splitlines()[-1])


def test_a_bundle_opens_and_runs_there(desk):
    imports = "from brinery import Bundle, Endpoint, Future, RemoteError, TaskStatus, current_request, endpoint\n"
    desk.write("app.py", imports + "@endpoint\ndef f(x): return x + 1\n")
    bundle = desk.pack(
        """
        import app
        from brinery import endpoint

        @endpoint
        class Model:
            def predict(self, x: int) -> int:
                return app.f(x) + app.f.local(x)
        """,
        "Model",
    )
    code = "heavy = [m for m in ('httpx', 'pydantic', 'typer') if m in sys.modules]\n"
    assert worker_python(desk, bundle, code + "print(json.dumps([value().predict(1), heavy]))") == [4, []]


def test_calling_another_endpoint_there_says_what_is_missing(desk):
    bundle = desk.pack(
        """
        from brinery import Endpoint, endpoint

        @endpoint
        def outer(x: int) -> int:
            return Endpoint.from_name("inner").remote(x=x)
        """,
        "outer",
    )
    code = "try: value(1)\nexcept Exception as error: print(json.dumps(str(error)))"
    text = worker_python(desk, bundle, code)
    assert "'inner' needs the platform" in text
    assert "add 'httpx' and 'tenacity' to its requirements" in text
