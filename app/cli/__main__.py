"""`python -m seedscope.app.cli`: the same as `seedscope`."""

from seedscope.app.cli.main import main

main()
