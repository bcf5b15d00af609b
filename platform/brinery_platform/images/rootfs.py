"""A file system for the base image out of this machine's own Python, the libraries it needs, and a few tools.

For machines that reach no registry. Files keep their places, so that what was compiled in stays true. The same
machine gives the same files; `Rootfs.digest` tells whether anything changed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import ssl
import stat
import subprocess
import tarfile
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import uv

from brinery.errors import DeploymentError, InvalidRequestError
from brinery_platform.runtimes.docker import labels
from brinery_platform.runtimes.docker.sandbox import BUILDER, CA_FILE, HOME, PLACES, UV, WORKER

TOOLS: Final = (
    "sh",
    "bash",
    "env",
    "cat",
    "ls",
    "cp",
    "mv",
    "rm",
    "mkdir",
    "rmdir",
    "ln",
    "chmod",
    "touch",
    "head",
    "tail",
    "grep",
    "sed",
    "sleep",
    "true",
    "false",
    "echo",
    "id",
    "uname",
    "date",
    "mktemp",
    "tr",
    "sort",
    "wc",
    "cut",
    "find",
    "tar",
    "gzip",
)
LIBRARIES: Final = ("libstdc++.so.6", "libgcc_s.so.1", "libz.so.1", "libresolv.so.2", "libnss_dns.so.2")
"""What wheels may rely on beside what Python itself needs, and glibc's resolver where it is a file of its own."""
LEFT_OUT: Final = re.compile(
    r"^(site-packages|dist-packages|test|tests|idlelib|tkinter|turtledemo|ensurepip|lib2to3|config-.*|posix|right|localtime)$"
    r"|\.(a|opt-1\.pyc|opt-2\.pyc)$"
)
TIME_ZONES: Final = Path("/usr/share/zoneinfo")
MOUNT_POINTS: Final = ("dev", "proc", "run", "sys")
QUERY_SECONDS: Final = 30.0

_ASK: Final = (
    "import json, os, sys, sysconfig, platform; print(json.dumps({"
    "'executable': os.path.realpath(getattr(sys, '_base_executable', sys.executable)),"
    "'folders': sorted({sysconfig.get_path(name, vars={'base': sys.base_prefix, 'platbase': sys.base_exec_prefix,"
    " 'installed_base': sys.base_prefix, 'installed_platbase': sys.base_exec_prefix})"
    " for name in ('stdlib', 'platstdlib')}),"
    "'version': platform.python_version()}))"
)


class Rootfs:
    """What goes into an image's only layer: files of this machine, and a few of our own.

    Args:
        python: The interpreter, of any virtual environment or none.

    Raises:
        DeploymentError: It cannot be asked, or a file cannot be read.
    """

    def __init__(self, python: str) -> None:
        facts = _ask(python)
        self.python_version = str(facts["version"])
        self._files: dict[str, Path] = {}
        self._links: dict[str, str] = {}
        self._own: dict[str, bytes] = {}
        for folder in ("bin", "sbin", "lib", "lib64"):
            if Path("/", folder).is_symlink():
                self._links[folder] = str(Path("/", folder).readlink()).lstrip("/")
        executable = Path(facts["executable"])
        self._add(executable)
        for folder in facts["folders"]:
            self._add_tree(Path(folder))
        for tool in TOOLS:
            if found := shutil.which(tool, path="/usr/bin:/bin"):
                self._add(Path(found))
        self._add(Path(uv.find_uv_bin()), at=UV)
        self._add_libraries()
        for name in ("python3", "python"):
            self._links[f"usr/local/bin/{name}"] = str(executable)
        self._add_tree(TIME_ZONES)
        self._own |= platform_files()

    @property
    def digest(self) -> str:
        """Twelve hex digits that change with what the image holds; compiled files and times left out."""
        digest = hashlib.sha256(labels.BASE_FORMAT.encode())
        for name, path in sorted(self._files.items()):
            if not name.endswith(".pyc"):
                digest.update(f"{name}\0{path.stat().st_mode}\0".encode())
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        digest.update(json.dumps(self._links, sort_keys=True).encode())
        digest.update(b"".join(name.encode() + content for name, content in sorted(self._own.items())))
        return digest.hexdigest()[:12]

    def write(self, target: Path) -> None:
        """Write it as a tar archive."""
        with tarfile.open(target, "w") as archive:
            names = {*self._files, *self._links, *self._own, *PLACES, *(f"{name}/x" for name in MOUNT_POINTS)}
            folders = {str(parent) for name in names for parent in Path(name).parents} - {".", *PLACES}
            for folder in sorted(folders):
                archive.addfile(_entry(folder, tarfile.DIRTYPE, 0o755))
            archive.addfile(_entry("tmp", tarfile.DIRTYPE, 0o1777))
            add_places(archive)
            for name, target_name in self._links.items():
                entry = _entry(name, tarfile.SYMTYPE, 0o777)
                entry.linkname = target_name
                archive.addfile(entry)
            for name, path in sorted(self._files.items()):
                information = path.stat()
                entry = _entry(name, tarfile.REGTYPE, 0o755 if information.st_mode & stat.S_IXUSR else 0o644)
                entry.size = information.st_size
                entry.mtime = int(information.st_mtime)  # what is compiled belongs to a source of exactly this time
                with path.open("rb") as file:
                    archive.addfile(entry, file)
            add_own(archive, self._own)

    # -------------------------------------------------------------------------------------------------- collecting
    def _add(self, path: Path, *, at: str = "") -> None:
        self._files[at.lstrip("/") or _place(path)] = path.resolve()

    def _add_tree(self, folder: Path) -> None:
        for parent, folders, files in os.walk(folder):
            folders[:] = sorted(name for name in folders if not LEFT_OUT.search(name))
            for name in sorted(files):
                path = Path(parent, name)
                if not LEFT_OUT.search(name) and path.is_file():  # a link may lead nowhere
                    self._add(path)

    def _add_libraries(self) -> None:
        binaries = [path for path in self._files.values() if _is_elf(path)]
        known = _known_libraries()
        extra = [known[name] for name in LIBRARIES if name in known]
        for library in {*map(Path, extra), *_needed([*binaries, *map(Path, extra)])}:
            self._add(library)


def platform_files() -> dict[str, bytes]:
    """Return the files of our own that every base image gets, by their place: accounts and certificates."""
    accounts = (("root", 0, "/root"), ("builder", BUILDER, "/tmp"), ("worker", WORKER, HOME))  # noqa: S108 - its tmpfs
    return {
        "etc/passwd": "".join(f"{name}:x:{uid}:{uid}::{home}:/bin/sh\n" for name, uid, home in accounts).encode(),
        "etc/group": "".join(f"{name}:x:{uid}:\n" for name, uid, _ in accounts).encode(),
        "etc/nsswitch.conf": b"passwd: files\ngroup: files\nhosts: files dns\n",
        **certificates(),
    }


def certificates() -> dict[str, bytes]:
    """Return the certificates that this machine trusts, its own additions included, as a file of the image."""
    paths = ssl.get_default_verify_paths()
    for candidate in (os.fspath(name) for name in (paths.cafile, "/etc/ssl/certs/ca-certificates.crt") if name):
        if Path(candidate).is_file():
            return {CA_FILE.lstrip("/"): Path(candidate).read_bytes()}
    return {CA_FILE.lstrip("/"): b""}


def add_places(archive: tarfile.TarFile) -> None:
    """Add the folders of ours, each with its owner."""
    for name, owner in PLACES.items():
        entry = _entry(name, tarfile.DIRTYPE, 0o755)
        entry.uid = entry.gid = owner
        archive.addfile(entry)


def add_own(archive: tarfile.TarFile, files: dict[str, bytes], *, executable: Container[str] = ()) -> None:
    """Add files whose content we have in memory.

    Args:
        archive: Takes them.
        files: Their contents by their place.
        executable: Which of them are programs.
    """
    for name, content in sorted(files.items()):
        entry = _entry(name, tarfile.REGTYPE, 0o755 if name in executable else 0o644)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))


def _entry(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = kind, mode
    return entry


def _place(path: Path) -> str:
    """Return where a file lies in the image: its own name, in the folder that its links lead to."""
    return str(path.parent.resolve() / path.name).lstrip("/")


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _needed(binaries: Iterable[Path]) -> Iterator[Path]:
    """Yield every library that these binaries load, as the dynamic linker of this machine says."""
    done = subprocess.run(
        ["ldd", *map(str, binaries)], capture_output=True, text=True, timeout=QUERY_SECONDS, check=False
    )
    for line in done.stdout.splitlines():
        if match := re.search(r"(?:=>\s+)?(/\S+)\s+\(0x", line):
            yield Path(match[1])


def _known_libraries() -> dict[str, str]:
    program = shutil.which("ldconfig", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        return {}
    said = subprocess.run([program, "-p"], capture_output=True, text=True, timeout=QUERY_SECONDS, check=False).stdout
    found = re.findall(r"^\s*(\S+) \([^)]*\) => (\S+)$", said, re.MULTILINE)
    return dict(reversed(found))  # of several the first is the one that is loaded


def _ask(python: str) -> dict[str, Any]:
    try:
        done = subprocess.run(
            [python, "-I", "-c", _ASK], capture_output=True, text=True, timeout=QUERY_SECONDS, check=True
        )
        facts: dict[str, Any] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise DeploymentError(f"The Python at {python} cannot be put into an image: {error}.") from error
    if not shutil.which("ldd"):
        raise InvalidRequestError("This machine has no `ldd`; set BRINERY_BASE_IMAGE to an image with a Python.")
    return facts
