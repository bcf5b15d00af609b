"""Which database URLs are taken, and that one that is not is named without its password."""

from __future__ import annotations

import subprocess
import sys

import pytest

from brinery.errors import InvalidRequestError
from brinery_platform.database import migrate, open_engine
from brinery_platform.settings import Settings

PASSWORD = "sesame-0815"


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_each_way_to_write_postgresql_means_the_same_driver(scheme: str) -> None:
    engine = open_engine(f"{scheme}://ada:{PASSWORD}@db.example:5433/brinery")
    assert (engine.dialect.name, engine.dialect.driver) == ("postgresql", "psycopg")
    assert (engine.url.host, engine.url.port, engine.url.password) == ("db.example", 5433, PASSWORD)
    engine.dispose()


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        PASSWORD,
        f"postgresql:/ada:{PASSWORD}@host/db",
        f"postgresql://ada@host:{PASSWORD}/db",
        f"mysql://ada:{PASSWORD}@host/db",
        f"postgresql+asyncpg://ada:{PASSWORD}@host/db",
    ],
)
def test_a_url_that_cannot_be_opened_is_named_without_its_password(url: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"BRINERY_DATABASE_URL.*postgresql://user:password") as caught:
        open_engine(url)
    assert PASSWORD not in caught.value.message
    assert "\n" not in caught.value.message


def test_a_folder_that_is_not_there_is_named() -> None:
    with pytest.raises(InvalidRequestError, match="BRINERY_DATABASE_URL cannot be used"):
        migrate("sqlite:////no/such/folder/at/all.db")


def test_a_missing_driver_is_said_with_what_to_install() -> None:
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from brinery_platform.database import open_engine\n"
        "from brinery.errors import BrineryError\n"
        "try: open_engine('postgresql://ada:sesame-0815@host/db')\n"
        "except BrineryError as error: print(error.message)"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60).stdout
    assert "pip install 'brinery[postgres]'" in said
    assert len(said.splitlines()) == 1
    assert PASSWORD not in said


def test_the_settings_do_not_show_the_password() -> None:
    assert PASSWORD not in repr(Settings(database_url=f"postgresql://ada:{PASSWORD}@host/db"))
