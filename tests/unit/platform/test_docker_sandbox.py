"""What containers are created with, and which addresses their networks may have."""

import pytest

from brinery.errors import InvalidRequestError
from brinery_platform.runtimes.docker import sandbox
from brinery_platform.settings import platform_environment, read_settings


def test_a_worker_has_no_swap_no_capability_and_nothing_to_write_to_but_its_scratch():
    limits = sandbox.limits(memory_mib=512, cpus=1.5, read_only=True)
    assert limits["Memory"] == limits["MemorySwap"] == 512 * 1024 * 1024
    assert limits["CpuQuota"] / limits["CpuPeriod"] == 1.5
    assert (limits["CapDrop"], limits["SecurityOpt"]) == (["ALL"], ["no-new-privileges"])
    assert limits["ReadonlyRootfs"] is True
    assert set(limits["Tmpfs"]) == {"/tmp", sandbox.HOME}  # noqa: S108 - the container's own
    assert all("size=128m" in options for options in limits["Tmpfs"].values())
    assert not {"Privileged", "Binds", "PidMode", "IpcMode", "Devices", "CapAdd", "DeviceRequests"} & set(limits)


def test_graphics_processors_are_asked_for_only_where_they_are_wanted():
    (asked,) = sandbox.limits(memory_mib=512, cpus=1, read_only=True, gpus=2)["DeviceRequests"]
    assert (asked["Count"], asked["Capabilities"]) == (2, [["gpu"]])


def test_a_small_worker_still_has_room_for_its_sources():
    assert "size=16m" in sandbox.limits(memory_mib=32, cpus=1, read_only=True)["Tmpfs"][sandbox.HOME]


@pytest.mark.parametrize("cidr", ["8.8.8.0/24", "10.0.0.0/30", "10.0.0.1/16", "somewhere", "fd00::/64"])
def test_networks_of_workers_take_private_addresses_only(cidr):
    with pytest.raises(InvalidRequestError, match="BRINERY_WORKER_CIDR"):
        read_settings(worker_cidr=cidr)


def test_platform_processes_get_the_settings_of_containers(tmp_path):
    settings = read_settings(home=tmp_path, runtime="docker", worker_cidr="10.9.0.0/16", base_image="python:3.11")
    passed_on = platform_environment(settings)
    assert (passed_on["BRINERY_RUNTIME"], passed_on["BRINERY_WORKER_CIDR"]) == ("docker", "10.9.0.0/16")
    assert passed_on["BRINERY_BASE_IMAGE"] == "python:3.11"
