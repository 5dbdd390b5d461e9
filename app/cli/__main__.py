"""`python -m app.cli`: the same as `seedscope`."""

from app.cli import main

main()
