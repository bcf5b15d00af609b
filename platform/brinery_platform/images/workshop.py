"""Runs uv in containers: resolves and installs what users ask for, in the sandbox of a worker."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from brinery.errors import BrineryError, DeploymentError
from brinery_platform.images import install
from brinery_platform.runtimes.docker import labels, sandbox
from brinery_platform.runtimes.docker.engine import Engine
from brinery_platform.runtimes.docker.network import WorkerNetwork, merged
from brinery_platform.uv_tool import BUILD_TIMEOUT_SECONDS, Emit, explain, uv_environment

CPUS: Final = 2.0
STOPPED_EXIT_CODE: Final = 143
LOOK_SECONDS: Final = 5.0
"""Between two looks at what a build has written, which cost a walk through it."""
LINKS: Final = "/tmp/links"  # noqa: S108 - in the container
# The program comes as the first line of stdin, for a command line is written into the image's history.
_LOADER: Final = "import json, sys; exec(json.loads(sys.stdin.readline()))"


class Workshop:
    """Makes containers of a base image in which uv works.

    Args:
        engine: The engine.
        mark: See `labels.HOME`.
        network: What they are connected to: packages come over it.
        index_environment: See `settings.index_environment`.
        disk_mib: What a build may write.
        look_seconds: How often that is looked at.
    """

    def __init__(
        self,
        engine: Engine,
        mark: str,
        network: WorkerNetwork,
        index_environment: Mapping[str, str],
        *,
        disk_mib: int = sandbox.BUILD_DISK_MIB,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._disk_mib = disk_mib
        self._look_seconds = look_seconds
        self._engine = engine
        self._mark = mark
        self._network = network
        self._links, self._environment = _inside(uv_environment(index_environment))

    def resolve(self, name: str, base: str, requirements: Sequence[str], emit: Emit) -> str:
        """Return the lock of some requirements; see `UvTool.resolve`.

        Args:
            name: Of the container; whoever calls holds the lock on it.
            base: Id of the base image.
            requirements: Lines, one package each.
            emit: Takes each line of output.

        Raises:
            DeploymentError: They cannot be had together, or not at all.
        """
        command = [sandbox.UV, "pip", "compile", "-", "--python", "python3", "--no-header", "--no-annotate"]
        with self._container(name, base) as container:
            return self._run(container, [command], "\n".join(requirements), emit, doing="Resolving the requirements")

    def install(
        self, name: str, base: str, lock: str, emit: Emit, *, image: tuple[str, str], environment_id: str
    ) -> None:
        """Make an image with exactly a lock installed in it.

        Args:
            name: See `resolve`.
            base: Id of the base image.
            lock: Exact versions.
            emit: Takes each line of output.
            image: Repository and tag of what is made.
            environment_id: Goes onto its label.

        Raises:
            DeploymentError: Something of it cannot be downloaded, built or written; nothing is left of it.
        """
        python = f"{sandbox.ENVIRONMENT}/bin/python"
        commands = [
            [sandbox.UV, "venv", "--quiet", "--no-project", "--python", "python3", sandbox.ENVIRONMENT],
            # The cache is this build's own and gone in the end, so nobody else could write into what is linked.
            [sandbox.UV, "pip", "sync", "-", "--python", python, "--link-mode", "hardlink", "--compile-bytecode"],
        ]
        with self._container(name, base) as container:
            self._run(container, commands, lock, emit, doing="Installing the requirements")
            described = {labels.HOME: self._mark, labels.KIND: "environment", labels.ENVIRONMENT: environment_id}
            user = f"{sandbox.WORKER}:{sandbox.WORKER}"
            config = {"Cmd": [python], "Entrypoint": [], "User": user, "Labels": described}
            self._engine.commit(container, *image, config)

    def clear(self) -> None:
        """Remove what killed builds have left: containers that ended with whoever had ordered them."""
        for left in self._engine.containers({labels.HOME: self._mark, labels.KIND: "build"}, ended_too=True):
            if left["State"] == "exited":
                self._engine.remove(left["Id"])

    @contextlib.contextmanager
    def _container(self, name: str, base: str) -> Iterator[str]:
        """Have a container that is not started yet; gone in the end."""
        host = sandbox.limits(memory_mib=sandbox.BUILD_MEMORY_MIB, cpus=CPUS, read_only=False)
        host["LogConfig"] = {"Type": "none", "Config": {}}  # who ordered the build hears it, and keeps it
        host["Binds"] = [f"{folder}:{place}:ro" for folder, place in self._links.items()]
        config = {
            "Image": base,
            "Entrypoint": [""],
            "Cmd": ["python3", "-I", "-c", _LOADER],
            "User": f"{sandbox.BUILDER}:{sandbox.BUILDER}",
            "Labels": {labels.HOME: self._mark, labels.KIND: "build"},
            "OpenStdin": True,
            "StdinOnce": True,
            "AttachStdin": True,
            "HostConfig": host,
        }
        config = merged(config, self._network.joined())
        self._engine.remove(name)  # what a killed builder has left
        container = self._engine.create(name, config)
        try:
            yield container
        finally:
            self._engine.remove(container)

    def _run(self, container: str, commands: Sequence[Sequence[str]], given: str, emit: Emit, *, doing: str) -> str:
        """Run uv and return what it wrote to stdout; what it says on stderr goes to `emit`, line by line."""
        order = {"environment": self._environment, "given": given, "folder": sandbox.BUILD, "commands": commands}
        program = f"{Path(install.__file__).read_text()}\nmain({order!r})\n"
        late, full = threading.Event(), threading.Event()
        answer, said = bytearray(), list[str]()
        with self._engine.conversation(container) as conversation, self._limits(container, late, full):
            self._engine.start(container)
            conversation.say(json.dumps(program) + "\n")
            rest = b""
            for is_error, piece in conversation.listen():
                if not is_error:
                    answer += piece
                    continue
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    said.append(line.decode(errors="replace").rstrip())
                    emit(said[-1])
            self._engine.wait(container, timeout_seconds=BUILD_TIMEOUT_SECONDS)
        if full.is_set():
            raise DeploymentError(
                f"{doing} was stopped: it has written more than {self._disk_mib} MiB. Ask for less, or for packages "
                "that come as wheels."
            )
        self._check(container, said, late=late.is_set(), doing=doing)
        return answer.decode()

    def _check(self, container: str, said: Sequence[str], *, late: bool, doing: str) -> None:
        facts = self._engine.inspect(container)
        state: dict[str, Any] = facts["State"] if facts else {"ExitCode": STOPPED_EXIT_CODE, "OOMKilled": False}
        code = int(state["ExitCode"])
        if state["OOMKilled"] and code:
            raise DeploymentError(
                f"{doing} was killed: out of memory at {sandbox.BUILD_MEMORY_MIB} MiB. Ask for packages that come as "
                "wheels, which need no building."
            )
        if code or facts is None:
            raise DeploymentError(explain(doing, said, late=late), exit_code=code)

    @contextlib.contextmanager
    def _limits(self, container: str, late: threading.Event, full: threading.Event) -> Iterator[None]:
        """End the build when it takes too long or writes too much; the events say which."""
        over = threading.Event()
        deadline = time.monotonic() + BUILD_TIMEOUT_SECONDS

        def watch() -> None:
            while not over.wait(self._look_seconds):
                if time.monotonic() > deadline:
                    late.set()
                with contextlib.suppress(BrineryError):  # an engine that does not answer is asked again
                    if self._engine.written_bytes(container) > self._disk_mib * 2**20:
                        full.set()
                    if late.is_set() or full.is_set():
                        self._engine.kill(container, "SIGKILL")
                        return

        watcher = threading.Thread(target=watch, name="build-limits")
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()


def _inside(environment: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the local folders of packages with their places in a container, and uv's variables as they are there."""
    links: dict[str, str] = {}
    find = []
    for source in filter(None, environment.get("UV_FIND_LINKS", "").split(",")):
        folder = Path(source.removeprefix("file://"))
        if folder.is_dir():
            find.append(links.setdefault(str(folder.absolute()), f"{LINKS}/{len(links)}"))
        else:
            find.append(source)
    uvs = {
        name: value for name, value in environment.items() if name.startswith("UV_") or name.upper().endswith("_PROXY")
    }
    return links, {
        **uvs,
        **({"UV_FIND_LINKS": ",".join(find)} if find else {}),
        "UV_CACHE_DIR": f"{sandbox.BUILD}/cache",
        "NO_COLOR": "1",
        "HOME": "/tmp",  # noqa: S108 - the container's own
        "TMPDIR": f"{sandbox.BUILD}/tmp",  # noqa: S108 - as above
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "SSL_CERT_FILE": sandbox.CA_FILE,
        "PYTHONDONTWRITEBYTECODE": "1",
    }
