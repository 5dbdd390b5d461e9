"""`seedscope lookup`: which studies know an SAE's weights, here or on a server."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seedscope.app.cli.options import Root, Stop, app, check_parent, printable, refusals
from seedscope.app.cli.serve import TokenFile, given_token
from seedscope.app.settings import default_root

if TYPE_CHECKING:
    from seedscope.app.store.studies import Studies

UNKNOWN = 3  # exit code where no study knows one of the SAEs
DIGEST = "[0-9a-f]{16}"
ANSWER_S = 30.0
LONGEST_ANSWER = 4 << 20  # bytes


@app.command()
def lookup(
    sae: Annotated[
        str,
        typer.Argument(
            metavar="SAE",
            show_default=False,
            help="An SAE file, a folder of them, hf:OWNER/REPO/FOLDER, public:NAME/FOLDER, RELEASE/SAE_ID; or a digest.",
        ),
    ],
    format: Annotated[str, typer.Option(help="The library that wrote it; auto recognises it by the files.")] = "auto",
    hookpoint_out: Annotated[
        str | None,
        typer.Option(
            help="As it was given to import, of files that do not say they are transcoders.", show_default=False
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Ask the server there instead of the studies here.", show_default=False),
    ] = None,
    token_file: TokenFile = None,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", allow_dash=True, help="Write what is known to this file, or with - print it.", show_default=False
        ),
    ] = None,
    root: Root = None,
) -> None:
    """Say which studies know these weights, by their digest, and how many of the features come back; exit 3 where none does.

    Example: seedscope lookup runs/seed0 --url https://studies.example.org
    """
    prints = json_file == Path("-")
    if not prints:
        check_parent(json_file)
    if url is None and token_file is not None:
        raise Stop("found --token-file without --url, expected both: studies here need no token")
    if url is not None and root is not None:
        raise Stop("found both --url and --root, expected one of them")
    token = given_token(None, token_file)
    studies = None if url else _studies(root or default_root())
    entries = []
    for path, digest in _digests(sae, format, hookpoint_out):
        holders = _asked(url, digest, token) if url else _known_here(studies, digest) if studies else []
        entries.append({"path": path, "sae_digest": digest, "holders": holders})
        if not prints:
            _print(entries[-1], (url or "").rstrip("/"))
    text = json.dumps({"format": "seedscope.lookup", "version": 1, "saes": entries}, indent=1, ensure_ascii=False)
    if prints:
        print(text)
    elif json_file is not None:
        from seedscope.engine.contract.files import write_whole

        write_whole(json_file, text + "\n")
    if not all(entry["holders"] for entry in entries):
        raise typer.Exit(UNKNOWN)


def _digests(sae: str, format: str, hookpoint_out: str | None) -> Iterator[tuple[str | None, str]]:
    """(path, digest) of each SAE that is meant; a path goes before a digest of the same letters."""
    if re.fullmatch(DIGEST, sae) and not Path(sae).exists():
        yield None, sae
        return
    with refusals():
        from seedscope.engine.saes.importers.public import resolved
        from seedscope.engine.saes.importers.registry import named
        from seedscope.engine.studies.import_ensemble import digests_at

        for each in resolved(sae):
            yield from digests_at(named(each), format, hookpoint_out=hookpoint_out)


def _studies(root: Path) -> "Studies":
    if not root.is_dir():
        raise Stop(f"found no folder {root}, expected one with studies; or ask a server with --url")
    from seedscope.app.store.studies import Studies

    studies = Studies(root)
    for broken in studies.broken():  # whose weights nobody can look at: silence would pass for "not known"
        print(f"left out {broken.study}: {broken.says}", file=sys.stderr)
    return studies


def _known_here(studies: "Studies", digest: str) -> list[dict[str, Any]]:
    from seedscope.app.store.errors import UNREADABLE, NotFound
    from seedscope.app.store.lookup import places_of, summarise

    try:
        return [asdict(summarise(place)) for place in places_of(studies, digest)]
    except NotFound:
        return []
    except UNREADABLE as error:
        raise Stop(f"{error.path} cannot be read: {error.reason}") from None


def _asked(url: str, digest: str, token: str | None) -> list[dict[str, Any]]:
    """What a server answers; empty where it knows no such SAE. Stop for whatever is no answer of a dashboard."""
    import http.client
    import ssl
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    is_bare = not (parts.query or parts.fragment or parts.username or parts.password)
    if parts.scheme not in ("http", "https") or not parts.hostname or not is_bare:
        raise Stop(f"--url is {url!r:.200}, expected an address such as https://studies.example.org")
    secure = parts.scheme == "https"
    connection = (
        http.client.HTTPSConnection(parts.hostname, port, timeout=ANSWER_S, context=ssl.create_default_context())
        if secure
        else http.client.HTTPConnection(parts.hostname, port, timeout=ANSWER_S)
    )
    headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        connection.request("GET", f"{parts.path.rstrip('/')}/stability/{digest}.json", headers=headers)
        response = connection.getresponse()
        content = response.read(LONGEST_ANSWER + 1)
    except (OSError, http.client.HTTPException) as error:
        raise Stop(f"no answer from {url}: {error or type(error).__name__}") from None
    finally:
        connection.close()
    if response.status == 401:
        raise Stop(f"{url} asks for a token; give the file that holds it with --token-file")
    try:
        answer = json.loads(content)
        if response.status == 404 and answer["problems"][0]["name"] == "SAE":
            return []
        if response.status != 200:
            raise ValueError("a refusal")
        holders: list[dict[str, Any]] = answer["holders"]
        _lines({"holders": holders}, "")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        says = content[:200].decode(errors="replace")
        raise Stop(
            f"{url} gives no answer of a SeedScope that knows /stability (status {response.status}): {says}"
        ) from None
    return holders


def _print(entry: dict[str, Any], url: str) -> None:
    print(f"SAE {entry['sae_digest']}" + (f"  {entry['path']}" if entry["path"] else ""))
    for depth, line in _lines(entry, url):
        print("  " * depth + printable(line))  # a server's words, in somebody's terminal


def _lines(entry: dict[str, Any], url: str) -> list[tuple[int, str]]:
    """(depth, line) of what is known of an SAE; raises KeyError or TypeError for what no server says."""
    if not entry["holders"]:
        return [(1, "no study knows these weights")]
    lines = []
    for each in entry["holders"]:
        place = f"{each['study']}/{each['ensemble']} seed {each['seed']}"
        lines.append((1, f"{place}, hook point {each['hookpoint'] or 'unknown'}"))
        lines += [(2, says) for says in (_counts(each), each["remark"]) if says]
        lines += [(2, f"not known: {lack['result']}: {lack['reason']}") for lack in each["missing"]]
        lines.append((2, f"{url}{each['address']}"))
    return lines


def _counts(holder: dict[str, Any]) -> str | None:
    """Buckets with counts, mean and median; None of one SAE alone, for which `missing` says why."""
    if holder["mean_stability"] is None:
        return None
    n = holder["n_judged"]
    buckets = ", ".join(f"{count:,} {name} ({count / n:.1%})" for name, count in holder["counts"].items())
    dead = "" if holder["n_dead"] is None else f", {holder['n_dead']:,} dead"
    word = {"no": "stability", "yes": "agreement (start shared)"}.get(
        holder["shared_start"], "agreement (start unknown)"
    )
    chance = ", ".join(f"{kind.replace('_', ' ')} {rate:.2%}" for kind, rate in holder["null_rate"].items())
    return (
        f"{buckets} of {n:,} features{dead}; mean {word} {holder['mean_stability']:.3f}, "
        f"median {holder['median_stability']:.3f} over {holder['n_comparisons']} other seeds "
        f"at θ {holder['theta']:g}, ε {holder['epsilon']:g}; by chance: {chance or 'not known'}"
    )
