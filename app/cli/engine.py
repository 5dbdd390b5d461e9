"""`seedscope engine`: the live engine by itself, for servers on other machines."""

from typing import Annotated

import typer

from seedscope.app.cli.options import Compute, Device, Root, Stop, app
from seedscope.app.cli.serve import AllowHost, Host, Token, TokenFile, bind, given_token
from seedscope.app.settings import DEFAULT_PORT, default_root

ENGINE_PORT = DEFAULT_PORT + 1
EnginePort = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to bind; the next free one if taken.")]


@app.command()
def engine(
    root: Root = None, host: Host = "127.0.0.1", port: EnginePort = ENGINE_PORT, token: Token = None,
    token_file: TokenFile = None, allow_host: AllowHost = None, device: Device = Compute.auto,
) -> None:  # fmt: skip
    """Answer the questions of `seedscope serve --engine-url`, over the same studies, until it is stopped.

    Example: seedscope engine --root /studies --host 0.0.0.0 --token-file token
    """
    root = root or default_root()
    if not root.is_dir():
        raise Stop(f"found no folder {root}, expected the one with the studies that the servers show")
    given = given_token(token, token_file)
    from seedscope.app.security import is_loopback, new_token
    from seedscope.engine.contract import sockets

    beyond = not is_loopback(host)
    secret = given or (new_token() if beyond else None)
    crashes = sockets.address(root).with_suffix(".remote-deaths")
    try:
        sockets.make_folder(crashes.parent)
    except OSError as error:
        raise Stop(f"the engine needs the folder {crashes.parent}: {error.strerror}") from None
    listener = bind(host, port)
    from seedscope.engine.live.remote import RemoteSettings, serve_remotely

    settings = RemoteSettings(secret, host, tuple(allow_host or ()), beyond)
    if secret and not given:
        print(f"its token is {secret}", flush=True)
    bound = listener.getsockname()[1]
    print(f"the engine is at http://{f'[{host}]' if ':' in host else host}:{bound} (Ctrl-C stops it)", flush=True)
    serve_remotely(root, listener, settings, device.value, crashes)
