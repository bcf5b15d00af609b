"""What a container of ours may do: the limits and the places of workers and of builds, in Docker's own terms."""

from __future__ import annotations

import math
from typing import Any, Final

WORKER: Final = 65534
"""Id of the user and the group that workers run as."""
BUILDER: Final = 65533
"""The same of builds, so that no worker owns a file of its environment."""
HOME: Final = "/home/worker"
ENVIRONMENT: Final = "/opt/brinery/environment"
BUILD: Final = "/opt/brinery/build"
WORKER_CODE: Final = "/opt/brinery/worker"
BUNDLE: Final = "/opt/brinery/bundle.zip"
UV: Final = "/opt/brinery/uv"
CA_FILE: Final = "/opt/brinery/ca.crt"
PLACES: Final = {
    "opt/brinery": 0,
    ENVIRONMENT.lstrip("/"): BUILDER,
    BUILD.lstrip("/"): BUILDER,
    HOME.lstrip("/"): WORKER,
}
"""Folders that a base image needs, each with its owner."""
CONTROL_PORT: Final = 5006
"""The supervisor's; nothing but this machine reaches it, and the worker itself."""
PIDS: Final = 1024
"""Processes and threads together; a fork bomb ends here."""
LOG_MIB: Final = 8
"""Docker keeps two files of this size for each container."""
BUILD_MEMORY_MIB: Final = 4096
BUILD_DISK_MIB: Final = 32 * 1024
"""What a build may write; it is looked at now and then, so that a fast one gets a little further."""
_MIB: Final = 1024 * 1024
_LEAST_SCRATCH_MIB: Final = 16
_PERIOD_MICROSECONDS: Final = 100_000
_LEAST_QUOTA: Final = 1000


def limits(*, memory_mib: int, cpus: float, read_only: bool, gpus: int = 0) -> dict[str, Any]:
    """Return the ``HostConfig`` of a container that runs code which is not ours.

    Memory has no swap behind it. Files of ``/tmp`` and of the home count as memory; each may hold a quarter of it, so
    that what fills them gets "no space left" and not the out-of-memory killer.

    Args:
        memory_mib: Memory limit.
        cpus: CPU cores, such as 0.5.
        read_only: Whether nothing can be written outside the two; for workers, whose home is then a tmpfs as well.
        gpus: GPUs.
    """
    scratch_mib = max(_LEAST_SCRATCH_MIB, memory_mib // 4)
    # Not `noexec`: compilers of numerical libraries write shared objects there and load them.
    scratch = f"rw,exec,nosuid,nodev,size={scratch_mib}m"
    config: dict[str, Any] = {
        "Memory": memory_mib * _MIB,
        "MemorySwap": memory_mib * _MIB,
        # Not "NanoCpus", which the engine refuses beyond the machine's own number.
        "CpuPeriod": _PERIOD_MICROSECONDS,
        "CpuQuota": max(_LEAST_QUOTA, int(cpus * _PERIOD_MICROSECONDS)),
        "PidsLimit": PIDS,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "ReadonlyRootfs": read_only,
        "Tmpfs": {"/tmp": f"{scratch},mode=1777"},  # noqa: S108 - it is the container's own
        "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}],
        "LogConfig": {"Type": "json-file", "Config": {"max-size": f"{LOG_MIB}m", "max-file": "2"}},
        "RestartPolicy": {"Name": "no"},
    }
    if read_only:
        config["Tmpfs"][HOME] = f"{scratch},mode=0700,uid={WORKER},gid={WORKER}"
    if gpus:
        config["DeviceRequests"] = [{"Driver": "", "Count": gpus, "Capabilities": [["gpu"]]}]
    return config


def threads(cpus: float) -> str:
    """Return how many threads a numerical library should start."""
    return str(max(1, math.ceil(cpus)))
