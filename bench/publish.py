"""Write the tables of ``bench/results`` into ``docs/performance.md``, each between its two marks."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from harness import BENCH, RESULTS, BenchmarkError

DOCUMENT: Final = BENCH.parent / "docs/performance.md"
SCENARIOS: Final = ("sync", "async", "async-s3", "cost", "load", "frozen", "redeploy", "containers", "memory")


def run() -> None:
    """Replace what stands between the marks of each scenario that has results.

    Raises:
        BenchmarkError: There are no results, or the document has no marks for one.
    """
    text = DOCUMENT.read_text()
    published = []
    for scenario in SCENARIOS:
        path = RESULTS / f"{scenario}.json"
        if not path.exists():
            continue
        begin, finish = f"<!-- {scenario}: begin -->", f"<!-- {scenario}: end -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(finish)}", re.DOTALL)
        result = json.loads(path.read_text())
        block = f"{begin}\n{result['markdown']}\n\n{circumstances(result['machine'])}\n{finish}"
        if len(pattern.findall(text)) != 1:
            raise BenchmarkError(f"{DOCUMENT} needs the marks {begin} and {finish} exactly once.")
        text = pattern.sub(block.replace("\\", r"\\"), text)
        published.append(scenario)
    if not published:
        raise BenchmarkError("There are no results to publish; run `bench/run all` first.")
    DOCUMENT.write_text(text)
    print(f"{DOCUMENT}: {', '.join(published)}")


def circumstances(machine: dict[str, Any]) -> str:
    """Return one line on where and when figures were taken."""
    versions = ", ".join(f"{name} {number}" for name, number in sorted(machine["versions"].items()))
    return (
        f"*{machine['at']}; {machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB; "
        f"{machine['system']}; Python {machine['python']}; {versions}. "
        f"The machine was {machine['busy_before_percent']:.0f} % busy with other things before.*"
    )
