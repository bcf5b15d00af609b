"""What `brinery up` outlives."""

import errno

from brinery_platform.settings import read_settings
from brinery_platform.up import Up


class FullDisk:
    """An embedded Redis that is down, and can be started once there is room again."""

    def __init__(self):
        self.starts = 0
        self.up = None

    def running(self):
        return False

    def start(self):
        self.starts += 1
        if self.starts == 2:
            self.up._stop.set()
            return
        raise OSError(errno.ENOSPC, "No space left on device")


class Quiet:
    """Parts whose processes all run."""

    @property
    def runtime(self):
        return self

    def poll(self, _name):
        return None


def test_a_full_disk_ends_no_platform_and_redis_is_tried_again(tmp_path):
    said = []

    def say(line):
        said.append(line)
        raise OSError(errno.ENOSPC, "No space left on device")

    redis = FullDisk()
    redis.up = up = Up(read_settings(home=tmp_path), say)
    up._redis, up._services = redis, Quiet()
    up._supervise()
    assert redis.starts == 2
    assert any("No space left on device" in line for line in said)
