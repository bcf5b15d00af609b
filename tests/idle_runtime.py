"""A runtime that does nothing, for tests that need one verb of it."""

from brinery_platform.runtimes.base import Runtime


class IdleRuntime(Runtime):
    """Each verb that a test does not give it fails that test."""

    def start(self, spec):
        raise NotImplementedError

    def poll(self, running_id):
        raise NotImplementedError

    def stop(self, running_id, *, grace_seconds):
        raise NotImplementedError

    def list(self):
        raise NotImplementedError

    def logs(self, running_id, *, tail=200, follow=False, since=None):
        raise NotImplementedError
