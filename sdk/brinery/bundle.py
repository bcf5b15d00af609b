"""How code becomes a bundle: a zip of ``manifest.json``, ``function.pkl`` and the user's own modules as source.

What Python can import there travels by name, and its module as source; ``__main__``, notebooks and closures travel
by value. Equal code gives equal bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import operator
import sys
import zipfile
from dataclasses import dataclass
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, Final

import cloudpickle

from brinery.definition import Definition, find, resolve
from brinery.errors import PackingError
from brinery.spec import BUNDLE_MANIFEST, BUNDLE_PICKLE, BUNDLE_SOURCES, BundleManifest, to_json

PICKLE_PROTOCOL: Final = 5
PYTHON_MINOR: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
_ZIP_TIME: Final = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class PackedBundle:
    """A bundle, ready to be uploaded.

    Args:
        manifest: What is in it.
        data: The zip.
        sha256: Digest of `data`, hex.
    """

    manifest: BundleManifest
    data: bytes
    sha256: str


def pack(endpoint: Definition) -> PackedBundle:
    """Pack an endpoint's code.

    Raises:
        PackingError: Something in it cannot travel; the text names it, and the way out.
    """
    from brinery.schema import describe
    from brinery.sources import collect

    pickled, modules = dump(endpoint.target)
    sources = collect(modules)
    manifest = BundleManifest(
        name=endpoint.name,
        kind=endpoint.kind,
        python=PYTHON_MINOR,
        cloudpickle=cloudpickle.__version__,
        requirements=list(endpoint.requirements),
        **describe(endpoint),
    )
    files = {
        BUNDLE_MANIFEST: json.dumps(to_json(manifest), indent=1).encode(),
        BUNDLE_PICKLE: pickled,
        **{BUNDLE_SOURCES + path: content for path, content in sources.items()},
    }
    data = _zip(files)
    return PackedBundle(manifest=manifest, data=data, sha256=hashlib.sha256(data).hexdigest())


def pack_manifest(manifest: BundleManifest) -> PackedBundle:
    """Pack a manifest that has no code beside it, as an image's has none."""
    data = _zip({BUNDLE_MANIFEST: json.dumps(to_json(manifest), indent=1).encode()})
    return PackedBundle(manifest=manifest, data=data, sha256=hashlib.sha256(data).hexdigest())


def dump(value: Any) -> tuple[bytes, set[str]]:
    """Pickle code so that a worker can open it.

    Returns:
        The pickle, and the names of all modules that opening and running it may import.

    Raises:
        PackingError: Naming what in it cannot be pickled, and the way out.
    """
    file = io.BytesIO()
    pickler = CodePickler(file)
    try:
        pickler.dump(value)
    except Exception as error:
        from brinery.culprit import explain

        raise PackingError(explain(value, error, _pickles)) from error
    return _stable(file.getvalue()), pickler.modules


def _pickles(value: Any) -> bool:
    try:
        CodePickler(io.BytesIO()).dump(value)
    except Exception:  # noqa: BLE001 - that it fails, in whatever way, is the answer
        return False
    return True


class CodePickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle ships no types
    """cloudpickle, noting the modules that it leaves to be imported, and looking behind endpoints.

    A decorated function's name leads to its `Endpoint`, so that cloudpickle would think that it cannot be imported.
    """

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=PICKLE_PROTOCOL)
        self.modules = set[str]()

    def reducer_override(self, obj: Any) -> Any:
        """Pickle one object; see ``pickle.Pickler.reducer_override``."""
        if isinstance(obj, _Ordered):
            return frozenset, (sorted(obj.items, key=repr),)
        if isinstance(obj, CodeType):
            make, parts = self.dispatch_table[CodeType](obj)
            return make, tuple(_ordered(part) for part in parts)
        if isinstance(obj, ModuleType):
            self.modules.add(obj.__name__)
        elif isinstance(obj, Definition) and (reduced := obj.__reduce__())[0] is find:
            self.modules.add(reduced[1][0])
        elif isinstance(obj, type | FunctionType | BuiltinFunctionType):
            if behind := _behind_endpoint(obj):
                self.modules.add(behind[0])
                return resolve, behind
            self._note(obj)
        return super().reducer_override(obj)

    def _note(self, obj: Any) -> None:
        module = getattr(obj, "__module__", None)
        if _at(obj) is obj:
            self.modules.add(str(module))
        elif isinstance(obj, FunctionType):
            from brinery.sources import imports_of_code

            self.modules |= imports_of_code(obj.__code__, obj.__globals__.get("__package__") or "")


@dataclass(frozen=True, eq=False)
class _Ordered:
    """A constant set on its way into a pickle: in itself it has another order in each process."""

    items: frozenset[Any]


def _ordered(value: Any) -> Any:
    """Make the order of the sets among a code object's constants a fixed one; ``x in {"a", "b"}`` makes such a set."""
    if isinstance(value, frozenset):
        return _Ordered(value)
    if isinstance(value, tuple) and any(isinstance(item, frozenset) for item in value):
        return tuple(_ordered(item) for item in value)
    return value


def _behind_endpoint(obj: Any) -> tuple[str, str] | None:
    """Return module and path of what its own name leads to only through an endpoint; None for everything else."""
    module, path = getattr(obj, "__module__", None), getattr(obj, "__qualname__", None)
    if module not in sys.modules or not isinstance(path, str) or _at(obj) is obj:
        return None
    return (module, path) if resolve(module, path) is obj else None


def _at(obj: Any) -> Any:
    """Return what is found where `obj` says that it is, or None; ``__main__`` is another one in each process."""
    module, path = getattr(obj, "__module__", None), getattr(obj, "__qualname__", None)
    if module in {None, "__main__", "__mp_main__"} or not isinstance(path, str):
        return None
    try:
        return operator.attrgetter(path)(sys.modules.get(module))
    except AttributeError:
        return None


def _stable(pickled: bytes) -> bytes:
    """Replace the random ids of classes that travel by value, so that the same code is the same bytes again.

    Source: cloudpickle 3, ``_get_or_create_tracker_id``: 32 hex digits, which tell equal classes from one another.
    """
    tracked = getattr(cloudpickle.cloudpickle, "_DYNAMIC_CLASS_TRACKER_BY_CLASS", {})
    ids = [random_id.encode() for random_id in list(tracked.values())]
    ids = sorted((random_id for random_id in ids if random_id in pickled), key=pickled.index)
    nameless = pickled
    for random_id in ids:
        nameless = nameless.replace(random_id, b"." * len(random_id))
    for number, random_id in enumerate(ids):
        stable_id = hashlib.sha256(b"%d %b" % (number, nameless)).hexdigest()[: len(random_id)]
        pickled = pickled.replace(random_id, stable_id.encode())
    return pickled


def _zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for path in sorted(files):
            entry = zipfile.ZipInfo(path, date_time=_ZIP_TIME)
            entry.create_system = 3  # unix, so that the permissions count
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, files[path])
    return buffer.getvalue()
