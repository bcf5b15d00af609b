"""Base images: a Python, uv and the certificates that this machine trusts, from a registry or from this machine."""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uv

from brinery.errors import BrineryError, DeploymentError, InvalidRequestError
from brinery_platform.images import rootfs
from brinery_platform.runtimes.docker import labels, sandbox
from brinery_platform.runtimes.docker.engine import PATIENT_SECONDS, Engine
from brinery_platform.uv_tool import Emit

BASES: Final = "brinery/base"
MACHINE: Final = "machine"
"""The source of a base that was made of this machine's own Python."""
PROBE_SECONDS: Final = 60.0
REGISTRY_SECONDS: Final = 15.0
"""For how long nothing may be heard of the public image before this machine's own Python is taken."""
FETCH_SECONDS: Final = 300.0
"""How long fetching the public image may take in all."""
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
        source: Name of the image that bases are made of; `MACHINE`: this machine's own Python; empty: the public image
            of the wanted Python (`public_image`) where it can be had, else this machine's own.
    """

    def __init__(self, engine: Engine, mark: str, source: str) -> None:
        self._engine = engine
        self._mark = mark
        self._source = source

    def find(self, minor: str) -> Base | None:
        """Return the newest base of a wanted source with this minor version of Python; no registry is asked."""
        wanted = {self._source} if self._source else {MACHINE, public_image(minor)}
        for source, base in self._all():
            if source in wanted and base.python_version.startswith(f"{minor}."):
                return base
        return None

    def make(self, minor: str, python: Callable[[], str], emit: Emit) -> Base:
        """Make a base of the wanted source, unless the same one is there already.

        Args:
            minor: Wanted minor version of Python; an image that is named as source has its own.
            python: Returns this machine's interpreter of that version.
            emit: Takes each line of output.

        Raises:
            DeploymentError: It cannot be made; the text says why.
            InvalidRequestError: The source has no Python 3.11 or newer that uv works with, or this machine none at all.
        """
        if self._source == MACHINE:
            return self.bootstrap(python(), emit)
        if self._source:
            return self._from_image(self._source, emit)
        public = public_image(minor)
        try:
            return self._from_image(public, emit, silent_seconds=REGISTRY_SECONDS, limit_seconds=FETCH_SECONDS)
        except BrineryError as error:
            emit(f"No base of {public}, but of this machine's own Python: {error.message}")
        return self.bootstrap(python(), emit)

    def bootstrap(self, python: str, emit: Emit) -> Base:
        """Make a base of this machine's own Python, unless the same one is there already.

        Args:
            python: Interpreter of this machine whose Python goes into it.
            emit: Takes each line of output.

        Raises:
            DeploymentError: It cannot be made; the text says why.
            InvalidRequestError: That is no Python 3.11 or newer.
        """
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
            described = self._labels(root.python_version, MACHINE)
            changes = [f"ENV {name}={value}" for name, value in _VARIABLES.items()]
            changes += [f'LABEL "{name}"="{value}"' for name, value in described.items()]
            self._engine.load_root(archive, BASES, tag, [*changes, f"WORKDIR {sandbox.HOME}"])
        return self._made(tag, emit)

    def _from_image(
        self,
        reference: str,
        emit: Emit,
        *,
        silent_seconds: float = PATIENT_SECONDS,
        limit_seconds: float = PATIENT_SECONDS,
    ) -> Base:
        if self._engine.image(reference) is None:
            emit(f"Fetching {reference}")
            self._engine.pull(reference, emit, silent_seconds=silent_seconds, limit_seconds=limit_seconds)
        source = self._engine.image(reference)
        if source is None:
            raise DeploymentError(f"The image {reference} was removed while a base was made of it; try again.")
        own = rootfs.certificates()
        program = Path(uv.find_uv_bin()).read_bytes()
        parts = (labels.BASE_FORMAT.encode(), source["Id"].encode(), program, *own.values())
        digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:12]
        for _source, known in self._all():
            if known.name.endswith(f"-{digest}"):
                emit(f"Base image {known.name} is there already")
                return known
        emit(f"Adding uv and this machine's certificates to {reference}")
        tag = self._commit(reference, digest, own | {sandbox.UV.lstrip("/"): program})
        return self._made(tag, emit)

    def _commit(self, reference: str, digest: str, files: dict[str, bytes]) -> str:
        """Make a base of an image with some files on top, and return its tag."""
        host = sandbox.limits(memory_mib=1024, cpus=1.0, read_only=False) | {"NetworkMode": "none"}
        config = {
            "Image": reference,
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
                    rootfs.add_own(archive, files, executable={sandbox.UV.lstrip("/")})
                layer.seek(0)
                self._engine.put(container, "/", layer)
            version = self._probe(container, reference)
            tag = f"{_minor(version)}-{digest}"
            variables = [f"{name}={value}" for name, value in _VARIABLES.items() if name != "PATH"]
            described = self._labels(version, reference)
            config = {"Labels": described, "Env": variables, "Cmd": ["python3"], "Entrypoint": []}
            self._engine.commit(container, BASES, tag, config)
        finally:
            self._engine.remove(container)
        return tag

    def _probe(self, container: str, reference: str) -> str:
        """Return the version of the Python in a container, having tried both it and uv."""
        self._engine.start(container)
        self._engine.wait(container, timeout_seconds=PROBE_SECONDS)
        said = b"".join(self._engine.logs(container, tail=20, follow=False)).decode(errors="replace")
        word, _, version = said.strip().splitlines()[-1].partition(" ") if said.strip() else ("", "", "")
        if word != "python":
            asked = "BRINERY_BASE_IMAGE: " if self._source else ""
            raise InvalidRequestError(
                f"{asked}{reference} is no base for workers: it needs `python3` on the path and glibc "
                f"(Debian's images have both, Alpine's lack the latter). It said: {said.strip()[-500:] or 'nothing'}"
            )
        return version

    def _all(self) -> Iterator[tuple[str, Base]]:
        """Yield every base and what it was made from, newest first."""
        for facts in self._engine.images({labels.KIND: "base", labels.SOURCE: "", labels.FORMAT: labels.BASE_FORMAT}):
            # What somebody has built upon a base carries its labels, too.
            name = next((name for name in facts.get("RepoTags") or () if name.startswith(f"{BASES}:")), None)
            if name is not None:
                yield facts["Labels"][labels.SOURCE], Base(facts["Id"], name, facts["Labels"][labels.PYTHON])

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

    def _labels(self, python_version: str, source: str) -> dict[str, str]:
        described = {labels.HOME: self._mark, labels.KIND: "base", labels.FORMAT: labels.BASE_FORMAT}
        return described | {labels.PYTHON: python_version, labels.SOURCE: source}


def public_image(minor: str) -> str:
    """Return the public image that a Python of this minor version is taken from."""
    return f"python:{minor}-slim"


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
