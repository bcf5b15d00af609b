"""What the documents promise is so: settings, public names, commands, links."""

import re
from pathlib import Path

import pytest
from pydantic import SecretStr
from typer.main import get_command

import brinery
from brinery.cli import app
from brinery_platform.settings import Settings

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text()
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
OF_THE_SDK = {"BRINERY_URL", "BRINERY_API_KEY", "BRINERY_DEBUG"}


def settings_in_the_readme():
    rows = re.findall(r"^\| `(BRINERY_\w+)` \| (.*?) \| (.*?) \|$", README, re.MULTILINE)
    return {name: (default, text) for name, default, text in rows}


def test_the_readme_lists_every_setting_and_no_other():
    ours = {f"BRINERY_{name.upper()}" for name in Settings.model_fields}
    assert settings_in_the_readme().keys() == ours | OF_THE_SDK


def test_the_readme_tells_the_defaults_that_hold():
    for name, field in Settings.model_fields.items():
        default = field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
        told, _ = settings_in_the_readme()[f"BRINERY_{name.upper()}"]
        assert told == f"`{default}`" if default != "" else not told.startswith("`"), name


def test_the_sdks_settings_are_those_that_it_reads():
    source = (REPOSITORY / "sdk" / "brinery" / "config.py").read_text()
    read = set(re.findall(r"environ\S*?[\[(]\"(BRINERY_\w+)\"", source))
    assert read == OF_THE_SDK | {"BRINERY_HOME"}


@pytest.mark.parametrize("name", sorted(brinery.__all__))
def test_every_public_name_is_documented(name):
    text = README + (REPOSITORY / "docs" / "architecture" / "sdk.md").read_text()
    assert re.search(rf"`{name}\b", text) or re.search(rf"import .*\b{name}\b", text)


def test_the_readme_lists_every_command_and_no_other():
    listed = set(re.findall(r"`brinery ([a-z-]+)", README))
    assert listed == set(get_command(app).commands)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_between_the_documents_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("page", sorted((REPOSITORY / "docs").rglob("*.md")), ids=lambda page: page.stem)
def test_every_page_is_in_the_index(page):
    index = REPOSITORY / "docs" / "README.md"
    assert page == index or str(page.relative_to(index.parent)) in index.read_text()
