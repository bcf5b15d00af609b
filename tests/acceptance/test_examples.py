"""The README's code and every file in ``examples/`` run as they stand, and say what the README says they say."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent


def test_the_readmes_code_prints_what_the_readme_shows(stack):
    readme = (REPOSITORY / "README.md").read_text()
    code, output = re.search(r"```python\n(.*?)```.*?```text\n(.*?)```", readme, re.DOTALL).groups()
    script = stack.desk / "readme.py"
    script.write_text(code)
    done = run(stack, script)
    assert done.returncode == 0, done.stderr + stack.last_words()
    assert done.stdout == output


@pytest.mark.parametrize("name", ["digits.py", "pair.py", "stream.py", "text.py"])
def test_an_example_runs_as_a_script(stack, name):
    done = run(stack, Path(shutil.copy(REPOSITORY / "examples" / name, stack.desk)))
    assert done.returncode == 0, done.stderr + stack.last_words()
    assert done.stdout


def run(stack, script):
    return subprocess.run(
        [sys.executable, str(script)],
        cwd=stack.desk,
        env=stack.environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
