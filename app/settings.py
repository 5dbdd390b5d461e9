"""Settings of the dashboard, frozen at start."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT_VARIABLE = "SEEDSCOPE_ROOT"
DEFAULT_PORT = 8765
LogFormat = Literal["brief", "text", "json"]


def default_root() -> Path:
    """`$SEEDSCOPE_ROOT`, else `./seedscope-data`."""
    return Path(os.environ.get(ROOT_VARIABLE, "seedscope-data"))


SHIPPED = Path(__file__).parent.parent  # the checkout, or the installed package: templates and static lie beside app
TEMPLATES = SHIPPED / "templates"
STATIC = SHIPPED / "static"


@dataclass(frozen=True)
class Settings:
    """What `seedscope serve` was told."""

    root: Path
    """Folder of study folders."""
    host: str = "127.0.0.1"
    """Address to bind; anything but loopback needs a token."""
    port: int = DEFAULT_PORT
    """Port to bind."""
    token: str | None = None
    """Secret that every request must carry; None on loopback."""
    allowed_hosts: tuple[str, ...] = ()
    """Names, beside loopback and the bound address, that the Host header may hold."""
    device: str = "auto"
    """Where the live engine computes: auto, cpu or cuda."""
    workers: int = 1
    """Web processes that share the port."""
    proxies: tuple[str, ...] = ()
    """Addresses or networks of proxies in front, whose X-Forwarded-For and -Proto are believed."""
    log_format: LogFormat = "brief"
    """What is written of requests: faults alone, or a line or an object each."""
    engine_url: str | None = None
    """Address of a live engine on another machine; None: a process here, started when it is needed."""
    engine_token: str | None = None
    """That engine's token."""
    allowed_origins: tuple[str, ...] = ()
    """Origins of other sites, or `*`, whose pages may read what `app.cross_origin` shares."""
