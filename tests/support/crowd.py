"""Many clients of a server at once, in one event loop: what each answer was, and how long it took."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

LONGEST_RETRY_S = 3.0


@dataclass
class Crowd:
    """What came back; times in seconds from sending to the last byte, by the kind of address."""

    statuses: Counter[str] = field(default_factory=Counter)  # "503 without Retry-After" is one of its own
    seconds: dict[str, list[float]] = field(default_factory=dict)
    first_failed: str = ""

    def note(self, kind: str, status: str, seconds: float, path: str) -> None:
        """One answer."""
        self.statuses[status] += 1
        if status == "200":
            self.seconds.setdefault(kind, []).append(seconds)
        elif status != "503" and not self.first_failed:
            self.first_failed = f"{status} {path}"

    def quantile(self, kind: str, share: float) -> float:
        """Seconds that this share of the answers took at most."""
        times = sorted(self.seconds[kind])
        return times[min(int(share * len(times)), len(times) - 1)]


async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[bytes, bytes]]:
    """(status, headers) of the next answer, whose body is read."""
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head[:-4].split(b"\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    if headers.get(b"transfer-encoding") == b"chunked":
        while size := int(await reader.readuntil(b"\r\n"), 16):
            await reader.readexactly(size + 2)
        await reader.readuntil(b"\r\n")
    else:
        await reader.readexactly(int(headers.get(b"content-length", 0)))
    return int(first.split(b" ")[1]), headers


async def _client(
    number: int,
    crowd: Crowd,
    host: str,
    port: int,
    draw: Callable[[random.Random], tuple[str, str]],
    end: float,
    pause_s: float,
) -> None:
    chance = random.Random(number)
    writer = None
    source = (f"127.0.{1 + number // 250}.{1 + number % 250}", 0)
    await asyncio.sleep(chance.random() * pause_s)
    while time.monotonic() < end:
        kind, path = draw(chance)
        begin = time.monotonic()
        retry_s = 0.0
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection(host, port, local_addr=source, limit=2**24)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nAccept-Encoding: gzip\r\n\r\n".encode())
            status, headers = await asyncio.wait_for(_answer(reader), 60)
            retry_s = min(float(headers.get(b"retry-after", 0)), LONGEST_RETRY_S)
            said = f"{status} without Retry-After" if status == 503 and not retry_s else str(status)
            if headers.get(b"connection") == b"close":
                writer.close()
                writer = None
        except (OSError, EOFError, TimeoutError) as error:
            said = type(error).__name__
            if writer is not None:
                writer.close()
            writer = None
        crowd.note(kind, said, time.monotonic() - begin, path)
        await asyncio.sleep(max(retry_s, pause_s * (0.5 + chance.random())))
    if writer is not None:
        writer.close()


def crowd(
    host: str, port: int, draw: Callable[[random.Random], tuple[str, str]], *, n: int, seconds: float, pause_s: float
) -> Crowd:
    """So many clients for so long, each from an address of its own; `draw` gives (kind, path)."""
    seen = Crowd()

    async def run() -> None:
        end = time.monotonic() + seconds
        await asyncio.gather(*(_client(i, seen, host, port, draw, end, pause_s) for i in range(n)))

    with ThreadPoolExecutor(1) as apart:  # beside a loop that a browser of other tests may run in this thread
        apart.submit(lambda: asyncio.run(run())).result()
    return seen
