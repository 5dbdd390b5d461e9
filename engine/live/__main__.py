"""`python -m seedscope.engine.live ROOT SOCKET [DEVICE]`: the live engine as a process of its own."""

from seedscope.engine.live.server import main

main()
