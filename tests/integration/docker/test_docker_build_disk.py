"""A build that writes without an end is ended, and says why."""

import pytest

from brinery.errors import DeploymentError
from brinery_platform.images.environments import open_environments
from brinery_platform.images.workshop import Workshop
from brinery_platform.runtimes.detached import home_mark
from brinery_platform.runtimes.docker import labels
from brinery_platform.runtimes.docker.network import WorkerNetwork
from brinery_platform.settings import index_environment, read_settings
from containers import cleared


def test_a_build_that_writes_too_much_is_ended_and_leaves_nothing(tmp_path):
    settings = read_settings(home=tmp_path / "home", runtime="docker")
    with cleared(settings.home) as engine:
        environments = open_environments(settings, index_environment())
        mark = home_mark(settings.home)
        network = WorkerNetwork(engine, mark, settings.worker_network)
        workshop = Workshop(engine, mark, network, index_environment(), disk_mib=1, look_seconds=0.05)
        said = []
        try:
            base = environments.base("3.11", said.append).id
            lock = "flask==3.0.3\nwerkzeug==3.0.3\njinja2==3.1.4\n"
            image = ("brinery/env", f"{mark}-none")
            with pytest.raises(DeploymentError, match="has written more than 1 MiB"):
                workshop.install(f"{mark}-disk", base, lock, said.append, image=image, environment_id="none")
        finally:
            environments.close()
        assert not engine.containers({labels.HOME: mark}, ended_too=True)
        assert engine.image(":".join(image)) is None
