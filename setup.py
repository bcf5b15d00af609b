"""Map the three source roots onto their import names; everything else is in ``pyproject.toml``."""

from pathlib import Path

from setuptools import find_packages, setup

ROOTS = {
    "brinery": "sdk",
    "brinery_platform": "platform",
    "brinery_worker": "worker_runtime",
}

packages = [
    package
    for package_name, root in ROOTS.items()
    for package in find_packages(root, include=[package_name, f"{package_name}.*"])
]

setup(
    packages=packages,
    package_dir={name: str(Path(root) / name) for name, root in ROOTS.items()},
    package_data={
        "brinery": ["py.typed"],
        # migrations is no package: Alembic runs its files from the folder
        "brinery_platform": ["py.typed", "lua/*.lua", "migrations/*.*", "migrations/versions/*.py"],
        "brinery_worker": ["py.typed"],
    },
)
