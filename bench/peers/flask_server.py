"""Plain Flask, as one would write it by hand; gunicorn serves ``flask_server:app``."""

from __future__ import annotations

from flask import Flask, Response, jsonify, request
from workload import describe

app = Flask(__name__)


@app.post("/predict")
def predict() -> Response:
    """Answer the function's result as JSON."""
    return jsonify(describe(**request.get_json()))
