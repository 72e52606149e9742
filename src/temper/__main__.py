"""`python -m temper` is the command line."""

from temper.cli import main

main()
