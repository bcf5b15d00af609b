"""``python -m brinery.cli``: the CLI where the ``brinery`` script is not on the path."""

from brinery.cli import main

main()
