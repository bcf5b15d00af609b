"""A forwarder's part, played by a test: it claims tasks and ends them."""

from __future__ import annotations

import time

from brinery.spec import TaskStatus, new_id
from brinery_platform.tasks import Tasks
from brinery_platform.transitions import new_token


class Forwarder:
    """Claims and finishes as a forwarder does."""

    def __init__(self, redis):
        self.tasks = Tasks(redis)
        self.incarnation = f"fwd_{new_id('fwd')}:{time.time_ns()}"
        self.tasks.register(self.incarnation)

    def claim(self, task_id):
        claimed = self.tasks.claim(task_id, self.incarnation, new_token())
        assert claimed.claim is not None, claimed.reason
        return claimed.claim

    def finish(self, task_id, status=TaskStatus.SUCCEEDED, **values):
        self.tasks.finish(self.claim(task_id), status, reason="test", **values)


def submit(client, endpoint, body=b'{"x": 1}', content_type="application/json", **headers):
    response = client.post(
        f"/v1/endpoints/{endpoint.name}/tasks", content=body, headers={"Content-Type": content_type, **headers}
    )
    assert response.status_code == 202, response.text
    return response.json()
