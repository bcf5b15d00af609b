"""Base images: a Python, uv and the certificates that this machine trusts, from this machine or from a registry."""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uv

from brinery.errors import DeploymentError, InvalidRequestError
from brinery_platform.images import rootfs
from brinery_platform.runtimes.docker import labels, sandbox
from brinery_platform.runtimes.docker.engine import Engine, Facts
from brinery_platform.uv_tool import Emit

BASES: Final = "brinery/base"
MACHINE: Final = "machine"
"""The source of a base that was made of this machine's own Python."""
PROBE_SECONDS: Final = 60.0
_VARIABLES: Final = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "SSL_CERT_FILE": sandbox.CA_FILE,
    "REQUESTS_CA_BUNDLE": sandbox.CA_FILE,
}
_PROBE: Final = (
    "import platform, subprocess\n"
    f"subprocess.run([{sandbox.UV!r}, '--version'], check=True, capture_output=True)\n"
    "print('python', platform.python_version())"
)


@dataclass(frozen=True)
class Base:
    """A base image.

    Args:
        id: The image's id.
        name: Its name and tag.
        python_version: Its Python, in full.
    """

    id: str
    name: str
    python_version: str


class Bases:
    """The base images of an engine, which all its platforms share.

    Args:
        engine: The engine.
        mark: Goes onto the label of what is made; see `labels.HOME`.
        source: Name of the image that bases are made of; empty: this machine's own Python.
    """

    def __init__(self, engine: Engine, mark: str, source: str) -> None:
        self._engine = engine
        self._mark = mark
        self._source = source or MACHINE

    @property
    def of_machine(self) -> bool:
        """Whether bases are made of this machine's own Python."""
        return self._source == MACHINE

    def find(self, minor: str) -> Base | None:
        """Return the newest base of the wanted source with this minor version of Python."""
        for facts in self._of_source():
            version = facts["Labels"][labels.PYTHON]
            if version.startswith(f"{minor}.") and facts.get("RepoTags"):
                return Base(facts["Id"], facts["RepoTags"][0], version)
        return None

    def bootstrap(self, python: str, emit: Emit) -> Base:
        """Make a base, unless the same one is there already.

        Args:
            python: Interpreter of this machine whose Python goes into it; not used with a source of its own.
            emit: Takes each line of output.

        Raises:
            DeploymentError: It cannot be made; the text says why.
            InvalidRequestError: The source has no Python 3.11 or newer that uv works with.
        """
        if self.of_machine:
            return self._from_machine(python, emit)
        return self._from_image(emit)

    def _from_machine(self, python: str, emit: Emit) -> Base:
        emit(f"Collecting the Python at {python}, its libraries and a few tools")
        root = rootfs.Rootfs(python)
        tag = f"{_minor(root.python_version)}-{root.digest}"
        if (known := self._known(tag)) is not None:
            emit(f"Base image {known.name} is there already")
            return known
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder, "root.tar")
            root.write(archive)
            emit(f"Loading {archive.stat().st_size // 2**20} MiB into the Docker engine")
            described = self._labels(root.python_version)
            changes = [f"ENV {name}={value}" for name, value in _VARIABLES.items()]
            changes += [f'LABEL "{name}"="{value}"' for name, value in described.items()]
            self._engine.load_root(archive, BASES, tag, [*changes, f"WORKDIR {sandbox.HOME}"])
        return self._made(tag, emit)

    def _from_image(self, emit: Emit) -> Base:
        if self._engine.image(self._source) is None:
            emit(f"Fetching {self._source}")
            self._engine.pull(self._source, emit)
        source = self._engine.image(self._source)
        if source is None:
            raise DeploymentError(f"The image {self._source} was removed while a base was made of it; try again.")
        own = rootfs.certificates()
        program = Path(uv.find_uv_bin()).read_bytes()
        parts = (labels.BASE_FORMAT.encode(), source["Id"].encode(), program, *own.values())
        digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:12]
        for known in self._of_source():
            if any(name.endswith(f"-{digest}") for name in known.get("RepoTags") or ()):
                emit(f"Base image {known['RepoTags'][0]} is there already")
                return Base(known["Id"], known["RepoTags"][0], known["Labels"][labels.PYTHON])
        emit(f"Adding uv and this machine's certificates to {self._source}")
        host = sandbox.limits(memory_mib=1024, cpus=1.0, read_only=False) | {"NetworkMode": "none"}
        config = {
            "Image": self._source,
            "Entrypoint": [""],
            "Cmd": ["python3", "-I", "-c", _PROBE],
            "User": f"{sandbox.WORKER}:{sandbox.WORKER}",
            "Labels": {labels.HOME: self._mark, labels.KIND: "layer"},
            "HostConfig": host,
        }
        container = self._engine.create(f"brinery-{self._mark}-base-{digest}", config)
        try:
            with tempfile.TemporaryFile() as layer:
                with tarfile.open(fileobj=layer, mode="w") as archive:
                    rootfs.add_places(archive)
                    rootfs.add_own(
                        archive, own | {sandbox.UV.lstrip("/"): program}, executable={sandbox.UV.lstrip("/")}
                    )
                layer.seek(0)
                self._engine.put(container, "/", layer)
            version = self._probe(container)
            tag = f"{_minor(version)}-{digest}"
            variables = [f"{name}={value}" for name, value in _VARIABLES.items() if name != "PATH"]
            config = {"Labels": self._labels(version), "Env": variables, "Cmd": ["python3"], "Entrypoint": []}
            self._engine.commit(container, BASES, tag, config)
        finally:
            self._engine.remove(container)
        return self._made(tag, emit)

    def _probe(self, container: str) -> str:
        """Return the version of the Python in a container, having tried both it and uv."""
        self._engine.start(container)
        self._engine.wait(container, timeout_seconds=PROBE_SECONDS)
        said = b"".join(self._engine.logs(container, tail=20, follow=False)).decode(errors="replace")
        word, _, version = said.strip().splitlines()[-1].partition(" ") if said.strip() else ("", "", "")
        if word != "python":
            raise InvalidRequestError(
                f"BRINERY_BASE_IMAGE: {self._source} is no base for workers: it needs `python3` on the path and glibc "
                f"(Debian's images have both, Alpine's lack the latter). It said: {said.strip()[-500:] or 'nothing'}"
            )
        return version

    def _of_source(self) -> list[Facts]:
        wanted = {labels.KIND: "base", labels.SOURCE: self._source, labels.FORMAT: labels.BASE_FORMAT}
        return self._engine.images(wanted)

    def _known(self, tag: str) -> Base | None:
        facts = self._engine.image(f"{BASES}:{tag}")
        if facts is None:
            return None
        return Base(facts["Id"], f"{BASES}:{tag}", facts["Config"]["Labels"][labels.PYTHON])

    def _made(self, tag: str, emit: Emit) -> Base:
        made = self._known(tag)
        if made is None:
            raise DeploymentError(f"The image {BASES}:{tag} was removed right after it was made; try again.")
        emit(f"Base image {made.name} is ready")
        return made

    def _labels(self, python_version: str) -> dict[str, str]:
        described = {labels.HOME: self._mark, labels.KIND: "base", labels.FORMAT: labels.BASE_FORMAT}
        return described | {labels.PYTHON: python_version, labels.SOURCE: self._source}


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
