"""`seedscope mcp`: studies as read-only tools of the Model Context Protocol."""

from seedscope.app.cli.options import Compute, Device, Root, Stop, app
from seedscope.app.settings import Settings, default_root


@app.command()
def mcp(root: Root = None, device: Device = Compute.auto) -> None:
    """Let coding agents read the studies under the root, over standard input and output.

    An agent's settings name the command `seedscope` with the arguments `mcp --root DIR`. Needs `pip install 'seedscope[mcp]'`.

    Example: seedscope mcp --root ~/studies
    """
    try:
        from seedscope.app.agents import make_server
    except ModuleNotFoundError as error:
        if error.name not in ("mcp", "httpx2"):
            raise
        raise Stop("the server needs the package mcp; install it with: pip install 'seedscope[mcp]'") from None
    make_server(Settings(root or default_root(), device=device.value)).run("stdio")
