"""The same platform on a Redis and an S3 server that the settings name, instead of the embedded ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from servers import S3_KEYS, ValkeyProcess, rclone_s3, wait_for
from stack import KIT, Stack


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyProcess]:
    folder = tmp_path / "valkey"
    folder.mkdir()
    server = ValkeyProcess(folder)
    server.start()
    yield server
    server.kill()


def test_bundles_inputs_and_results_lie_on_s3_and_tasks_in_the_redis_that_was_named(
    other: Stack, valkey: ValkeyProcess, tmp_path: Path
) -> None:
    (tmp_path / "s3").mkdir()
    with rclone_s3(tmp_path / "s3") as url:
        other.environment |= {
            "BRINERY_REDIS_URL": valkey.url,
            "BRINERY_OBJECTS_URL": "s3://bucket/brinery",
            "AWS_ENDPOINT_URL": url,
            **S3_KEYS,
        }
        (other.desk / "kit.py").write_text(KIT)
        other.brinery("up", "--detach")
        other.brinery("deploy", "kit.py:add")
        answers = other.run(
            """
            import json
            from kit import add
            future = add.submit(20, 22)
            print(json.dumps([add.remote(1, 2), future.get(timeout=60), future.id]))
            """
        )
        assert answers[:2] == [3, 42]
        # Celery's note of it, which follows the end of the task.
        wait_for((tmp_path / "s3" / "bucket" / "brinery" / "results" / answers[2]).exists)
        assert not (other.home / "objects").exists(), "nothing may lie in the embedded folder"
        assert not (other.home / "redis").exists(), "no embedded Redis may be made"
        other.brinery("down")
