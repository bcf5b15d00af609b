"""LitServe with one worker and its fast (ZeroMQ) queue; the command line is the port."""

from __future__ import annotations

import sys
from typing import Any

import litserve
from workload import describe


class DescribeAPI(litserve.LitAPI):
    """LitServe's form of the function."""

    def setup(self, device: str) -> None:
        """Load nothing; LitServe wants the method."""

    def predict(self, x: dict[str, Any]) -> dict[str, float]:
        """Return the function's result; LitServe decodes and encodes JSON by itself."""
        return describe(**x)


if __name__ == "__main__":
    server = litserve.LitServer(DescribeAPI(), accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
    )
