"""uv as this platform calls it: a scrubbed environment, output line by line, a time limit, and no life after ours."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import uv

from brinery.errors import DeploymentError

BUILD_TIMEOUT_SECONDS: Final = 1800.0
"""Limit of one call of uv; a large framework on a slow line takes minutes."""
QUERY_TIMEOUT_SECONDS: Final = 60.0
REASON_CHARACTERS: Final = 4000
REASON_LINES: Final = 30

# uv has no option to end with whoever called it. Linux has (PR_SET_PDEATHSIG = 1), but it must be asked for in the
# child, where a process with threads must not run Python code; hence this small step in between.
_WITH_PARENT: Final = (
    "import ctypes, os, signal, sys\n"
    "ctypes.CDLL(None).prctl(1, signal.SIGKILL)\n"
    "if os.getppid() != int(sys.argv[1]): os._exit(1)\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)

Emit = Callable[[str], None]


class UvTool:
    """Calls uv with the package indexes that this machine uses.

    Args:
        index_environment: See `settings.index_environment`.
        cache: uv's cache, unless ``UV_CACHE_DIR`` names another.
        folder: Where it runs.
    """

    def __init__(self, index_environment: Mapping[str, str], *, cache: Path, folder: Path) -> None:
        self._uv = uv.find_uv_bin()
        self._folder = folder
        (folder / "uv.toml").touch()  # or uv takes its settings from a project that the home happens to lie in
        self._environment = {"UV_CACHE_DIR": str(cache), **uv_environment(index_environment)}

    def resolve(self, requirements: Sequence[str], python: str, emit: Emit) -> str:
        """Return the lock of some requirements: exact versions, in the format of a requirements file.

        Raises:
            DeploymentError: They cannot be had together, or not at all.
        """
        options = ["--python", python, "--no-header", "--no-annotate"]
        return self._run(
            ["pip", "compile", "-", *options], "\n".join(requirements), emit, doing="Resolving the requirements"
        )

    def make_environment(self, path: Path, python: str, emit: Emit) -> None:
        """Make an empty virtual environment.

        Raises:
            DeploymentError: It cannot be made.
        """
        self._run(
            ["venv", "--quiet", "--no-project", "--python", python, str(path)], "", emit, doing="Making the environment"
        )

    def install(self, python: Path, lock: str, emit: Emit) -> None:
        """Install exactly a lock.

        Files are copied: with hard links a worker that writes into its environment would change every other one.
        Bytecode is compiled now: no worker could write it later, and importing Flask takes half the time.

        Raises:
            DeploymentError: Something of it cannot be downloaded, built or written.
        """
        options = ["--python", str(python), "--link-mode", "copy", "--compile-bytecode"]
        self._run(["pip", "sync", "-", *options], lock, emit, doing="Installing the requirements")

    def find_python(self, minor: str) -> tuple[str, str] | None:
        """Return path and full version of an installed Python, or None."""
        found = [(path, version) for path, version in self._installed() if _minor_of(version) == minor]
        return found[0] if found else None

    def python_versions(self) -> set[str]:
        """Return the minor versions of the installed CPythons that have a release."""
        return {_minor_of(version) for _, version in self._installed()}

    def _installed(self) -> list[tuple[str, str]]:
        command = [self._uv, "python", "list", "--only-installed", "--output-format", "json"]
        try:
            done = subprocess.run(
                command,
                env=self._environment,
                cwd=self._folder,
                capture_output=True,
                timeout=QUERY_TIMEOUT_SECONDS,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise DeploymentError(f"uv cannot say which Pythons are on this machine: {error}.") from error
        return [
            (entry["path"], entry["version"])
            for entry in json.loads(done.stdout)
            if entry["implementation"] == "cpython"
            and entry["variant"] == "default"
            and re.fullmatch(r"\d+\.\d+\.\d+", entry["version"])
        ]

    def _run(self, arguments: Sequence[str], given: str, emit: Emit, *, doing: str) -> str:
        """Run uv with `given` as its input and return its output; what it says goes to `emit`, line by line."""
        said: list[str] = []
        late = threading.Event()
        # Nameless files: nothing stays behind, whatever ends this process.
        with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout:
            stdin.write(given.encode())
            stdin.seek(0)
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _WITH_PARENT, str(os.getpid()), self._uv, *arguments],
                env=self._environment,
                cwd=self._folder,
                stdin=stdin,
                stdout=stdout,
                stderr=subprocess.PIPE,
                process_group=0,
            )
            with process, _time_limit(process, late):
                try:
                    for raw in process.stderr or ():
                        said.append(raw.decode(errors="replace").rstrip())
                        emit(said[-1])
                except BaseException:
                    _kill_group(process)  # nobody listens any more
                    raise
            if process.returncode:
                raise DeploymentError(explain(doing, said, late=late.is_set()), exit_code=process.returncode)
            stdout.seek(0)
            return stdout.read().decode()


def uv_environment(index_environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment that uv runs in: the machine's own choice of indexes, and nothing else of it.

    Addresses may hold passwords, so they travel here and not on a command line. What pip's variables say is said to
    uv, which does not read them; uv's own win.
    """
    given = dict(index_environment)
    find_links = given.get("PIP_FIND_LINKS", "").split()
    translated = {
        "UV_FIND_LINKS": ",".join(find_links),
        "UV_DEFAULT_INDEX": given.get("PIP_INDEX_URL", ""),
        "UV_INDEX": " ".join(given.get("PIP_EXTRA_INDEX_URL", "").split()),
        "UV_NO_INDEX": given.get("PIP_NO_INDEX", ""),
        "UV_HTTP_TIMEOUT": given.get("PIP_DEFAULT_TIMEOUT", ""),
        "SSL_CERT_FILE": given.get("PIP_CERT", ""),
    }
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        **{name: value for name, value in translated.items() if value},
        **{name: value for name, value in given.items() if not name.startswith("PIP_")},
        "NO_COLOR": "1",
        "UV_NO_PROGRESS": "1",
        "UV_PYTHON_DOWNLOADS": "never",
    }


@contextlib.contextmanager
def _time_limit(process: subprocess.Popen[bytes], late: threading.Event) -> Iterator[None]:
    def end() -> None:
        late.set()
        _kill_group(process)

    timer = threading.Timer(BUILD_TIMEOUT_SECONDS, end)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End uv and the build programs of packages that it runs."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def explain(doing: str, said: Sequence[str], *, late: bool) -> str:
    """Return why uv failed, in its own words: from its error on, else its last lines.

    Args:
        doing: What it was about, as the beginning of a sentence.
        said: Its output.
        late: Whether it was stopped for taking too long.
    """
    if late:
        return f"{doing} was not done within {BUILD_TIMEOUT_SECONDS:g} s and was stopped; deploy again to go on."
    first = next((index for index, line in enumerate(said) if re.match(r"\s*(error:|\u00d7)", line)), None)
    words = said[-REASON_LINES:] if first is None else said[first:]
    text = "\n".join(words).strip()[:REASON_CHARACTERS]
    return f"{doing} failed; change the requirements and deploy again. uv says:\n{text or '(nothing)'}"


def _minor_of(version: str) -> str:
    return ".".join(version.split(".")[:2])
