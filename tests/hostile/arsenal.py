"""What hostile code tries, with the standard library alone: its source runs in a worker and in a control container.

Each attempt returns what it got, or raises what stopped it. Every one is bounded in count, size and time.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import errno
import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

BOMB = """
import os, signal, sys, time
pids = []
try:
    for _ in range(int(sys.argv[1])):
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        pids.append(pid)
    said = ""
except OSError as error:
    said = error.strerror
for pid in pids:
    os.kill(pid, signal.SIGKILL)
for pid in pids:
    os.waitpid(pid, 0)
print(len(pids), said)
"""


def reach(host: str, port: int, say: str = "GET / HTTP/1.0\r\n\r\n", seconds: float = 4.0) -> str:
    """Connect, say something and return the first of what is answered."""
    with socket.create_connection((host, port), timeout=seconds) as connection:
        connection.sendall(say.encode())
        heard = connection.recv(60)
    if not heard:
        raise ConnectionAbortedError(errno.ECONNABORTED, "closed without an answer")
    return heard.decode(errors="replace").splitlines()[0]


def reach_any(places: list[list], say: str = "PING\r\n\r\n") -> str:
    """Return the first of several places that answers at all."""
    stopped = OSError("there is no place")
    for host, port in places:
        try:
            return f"{host}:{port} says {reach(host, port, say, 2.0)}"
        except OSError as error:
            stopped = error
    raise stopped


def reach_all(places: list[list]) -> str:
    """Connect to every one of several places."""
    for host, port in places:
        socket.create_connection((host, port), timeout=4.0).close()
    return f"connected to all {len(places)}"


def ask_socket(path: str, say: str) -> str:
    """Ask whoever listens on a socket in the file system."""
    with socket.socket(socket.AF_UNIX) as asked:
        asked.settimeout(4.0)
        asked.connect(path)
        asked.sendall(say.encode())
        return asked.recv(60).decode().splitlines()[0]


def through_proxy(host: str, port: int, *, tunnel: bool, permit: str = "") -> str:
    """Ask a host for a page by the proxy that the environment names; return what is answered last."""
    parts = urlsplit(os.environ["HTTP_PROXY"])
    shown = permit or f"{parts.username}:{parts.password}"
    basic = f"Proxy-Authorization: Basic {base64.b64encode(shown.encode()).decode()}\r\n\r\n"
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as proxy:
        if tunnel:
            proxy.sendall(f"CONNECT {host}:{port} HTTP/1.1\r\n{basic}".encode())
            heard = proxy.recv(400).decode()
            if " 200 " not in heard:
                raise OSError(errno.EACCES, heard.splitlines()[0])
            proxy.sendall(f"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        else:
            proxy.sendall(f"GET http://{host}:{port}/ HTTP/1.1\r\n{basic}".encode())
        heard = proxy.recv(400).decode().splitlines()[0]
    if " 200 " not in heard:
        raise OSError(errno.EACCES, heard)
    return heard


def read_others(names: list[str], roots: list[str]) -> str:
    """Find what belongs to somebody else: a bundle of one of these names."""
    for root in roots:
        for folder, folders, files in os.walk(root):
            folders[:] = [one for one in folders if one not in {"dev", "proc", "sys"}]
            for file in files:
                path = Path(folder, file)
                try:
                    if not path.is_file():
                        continue
                    with zipfile.ZipFile(path) as bundle:
                        text = bundle.read("manifest.json").decode()
                except (OSError, zipfile.BadZipFile, KeyError, ValueError):
                    continue
                if any(f'"{name}"' in text for name in names):
                    return "read a bundle of another owner"
    raise FileNotFoundError(errno.ENOENT, "only the own bundle is there")


def read_environments(word: str) -> str:
    """Find a variable of another process."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if word.encode() in (entry / "environ").read_bytes():
                    return "read another process's environment"
            except OSError:
                continue
    raise FileNotFoundError(errno.ENOENT, "only own processes are there")


def fork_bomb(count: int) -> str:
    """Start many processes that stay."""
    done = subprocess.run(
        [sys.executable, "-c", BOMB, str(count)], capture_output=True, text=True, timeout=120, check=False
    )
    started, _, said = (done.stdout.strip() or f"0 {done.stderr[-80:]}").partition(" ")
    if int(started) < count:
        raise OSError(errno.EAGAIN, f"{said} after {started} processes" if int(started) < 1000 else said)
    return f"{count:,} processes"


def fill_memory(mib: int) -> str:
    """Hold so much memory at once."""
    held = [bytearray(b"x") * 2**20 for _ in range(mib)]
    return f"{len(held)} MiB"


def fill_disk(folder: str, mib: int) -> str:
    """Write one large file."""
    path = Path(folder, "large")
    try:
        with path.open("wb") as file:
            for _ in range(mib):
                file.write(bytes(2**20))
    finally:
        path.unlink(missing_ok=True)
    return f"{mib} MiB"


def fill_log(mib: int) -> str:
    """Print many long lines."""
    line = "x" * 8191 + "\n"
    for _ in range(mib * 128):
        sys.stdout.write(line)
    sys.stdout.flush()
    return f"{mib} MiB"


def write_outside(folders: list[str]) -> str:
    """Write into any of these folders, or remove what is there."""
    written, stopped = [], {}
    for folder in folders:
        path = Path(folder, "hostile")
        try:
            path.write_text("x")
            path.unlink()
        except OSError as error:
            stopped[error.strerror if error.errno == errno.EROFS else str(error)] = None
            continue
        written.append(folder)
    if not written:
        raise OSError(errno.EROFS, ", ".join(stopped))
    return f"wrote into {', '.join(written)}"


def writable() -> list[str]:
    """Every folder that can be written into, and that is no other's place."""
    found = []
    for folder, folders, _ in os.walk("/"):
        folders[:] = [one for one in folders if Path(folder, one).as_posix() not in {"/proc", "/sys"}]
        if os.access(folder, os.W_OK):
            found.append(folder)
    return found


def _libc(name: str, *arguments: object) -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return "done"


def set_user_0() -> str:
    os.setuid(0)
    return f"user {os.getuid()}"


def own_namespace() -> str:
    _libc("unshare", 0x10000000)  # CLONE_NEWUSER
    return "root of a namespace of its own"


def mount() -> str:
    return _libc("mount", b"none", b"/tmp", b"tmpfs", 0, None)


def make_device() -> str:
    path = "/tmp/memory"  # noqa: S108 - the container's own
    os.mknod(path, 0o020666, os.makedev(1, 1))
    Path(path).unlink()
    return "made /dev/mem anew"


def change_root() -> str:
    os.chroot("/tmp")  # noqa: S108 - the container's own
    return "changed the root folder"


def raw_packets() -> str:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()
    return "hears every packet"


def change_kernel() -> str:
    with contextlib.suppress(OSError):  # where it is mounted read-only
        _libc("mount", None, b"/proc/sys", None, 0x1020, None)  # MS_REMOUNT, MS_BIND
    path = Path("/proc/sys/kernel/domainname")
    before = path.read_text()
    path.write_text(before)
    return "wrote into /proc/sys"


def trace(pid: int) -> str:
    """Take over a process of the machine."""
    _libc("ptrace", 0x4206, pid, 0, 0)  # PTRACE_SEIZE
    return "traces it"


def bind(port: int) -> str:
    """Take a port, by every way of doing so."""
    stopped = OSError("none")
    for host in ("0.0.0.0", "127.0.0.1"):  # noqa: S104 - the container's own
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            with socket.socket() as listener:
                listener.setsockopt(socket.SOL_SOCKET, option, 1)
                try:
                    listener.bind((host, port))
                    listener.listen()
                except OSError as error:
                    stopped = error
                    continue
                return f"listens on {host}:{port}"
    raise stopped
