"""`python -m seedscope.app.cli.worker LISTENER CHANNEL`: one web process of `seedscope serve`; see app.cli.workers."""

import os
import socket
import sys
import threading
from contextlib import suppress

from seedscope.app.cli.web import create_small_app, web_server
from seedscope.app.cli.workers import STOP_S, read_settings


def serve_worker(listener: socket.socket, channel: socket.socket) -> None:
    """Serve on the listener until asked to stop, or until the process at the other end of the channel is gone."""
    from seedscope.app.jobs.remote import RemoteJobs

    settings = read_settings(channel)
    gone = threading.Event()
    app = create_small_app(settings, RemoteJobs(settings.root, channel, gone.set))
    server = web_server(app, settings.proxies)

    def end_with_parent() -> None:
        gone.wait()
        server.should_exit = True
        threading.Event().wait(STOP_S)
        os._exit(1)

    threading.Thread(target=end_with_parent, name="parent", daemon=True).start()
    server.run(sockets=[listener])


def _listener(fd: int) -> socket.socket:
    """The listening socket; the protocol is named, as where it was bound: not every system tells it."""
    bound = socket.socket(fileno=fd)
    return socket.socket(bound.family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=bound.detach())


if __name__ == "__main__":
    with suppress(EOFError, KeyboardInterrupt):
        serve_worker(_listener(int(sys.argv[1])), socket.socket(fileno=int(sys.argv[2])))
