"""Options that several of the platform's commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Home = Annotated[Path | None, typer.Option(help="Folder of data, environments and logs. [BRINERY_HOME, ~/.brinery]")]
