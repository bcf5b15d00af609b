"""Processes cannot be kept from connecting to anything, and whoever asks for it is told so."""

from pathlib import Path

import pytest

from brinery.errors import DeploymentError
from brinery_platform.runtimes.base import WorkerSpec
from brinery_platform.services import connect
from brinery_platform.settings import read_settings


@pytest.mark.parametrize("egress", ["off", ("api.example.com",)])
def test_a_worker_that_is_a_process_has_open_egress_or_none_at_all(tmp_path, egress):
    runtime = connect(read_settings(home=tmp_path, runtime="process")).runtime
    spec = WorkerSpec(
        id="wrk_1",
        endpoint_id="end_1",
        version=1,
        environment_id="0" * 16,
        bundle=Path("none"),
        sha256="",
        concurrency=1,
        cpus=1,
        memory_mib=64,
        gpus=0,
        drain_seconds=1,
        egress=egress,
    )
    try:
        with pytest.raises(DeploymentError, match=r"egress has to be 'on'.*BRINERY_RUNTIME=docker"):
            runtime.start(spec)
        with pytest.raises(DeploymentError, match="BRINERY_RUNTIME=docker"):
            runtime.egress_proxy()
    finally:
        runtime.close()
