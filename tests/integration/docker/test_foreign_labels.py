"""Labels that a user's image brings along: containers made of it carry them, and they say nothing of ours."""

import io
import json
import tarfile

from brinery_platform.runtimes.detached import home_mark
from brinery_platform.runtimes.docker import labels
from brinery_platform.services import connect
from brinery_platform.settings import read_settings
from containers import cleared

IMAGE = "foreign-labels-test"


def test_a_container_that_prepares_a_volume_is_never_taken_for_a_worker(tmp_path):
    home = tmp_path / "home"
    archive = tmp_path / "root.tar"
    with tarfile.open(archive, "w") as tar:
        tar.addfile(tarfile.TarInfo("file"), io.BytesIO())
    pretended = {labels.RUNNING: json.dumps("nonsense"), labels.ID: "wrk_other"}
    changes = [f"LABEL {name}={json.dumps(value)}" for name, value in pretended.items()]
    with cleared(home) as engine:
        engine.load_root(archive, IMAGE, tmp_path.name.lower(), changes)
        try:
            ours = {labels.HOME: home_mark(home), labels.KIND: "volume"}
            made = engine.create(
                f"brinery-{home_mark(home)}-look",
                {"Image": f"{IMAGE}:{tmp_path.name.lower()}", "Entrypoint": ["none"], "Labels": ours},
            )
            found = engine.inspect(made)
            assert found["Config"]["Labels"].items() >= pretended.items()
            runtime = connect(read_settings(home=home, runtime="docker", redis_url="redis://127.0.0.1:1/0")).runtime
            runtime.on_exit = lambda _running_id: None  # as the controller, which clears up what has ended
            try:
                assert runtime.list() == []
            finally:
                runtime.close()
            assert engine.inspect(made) is not None
            engine.remove(made)
        finally:
            engine.remove_image(f"{IMAGE}:{tmp_path.name.lower()}")
