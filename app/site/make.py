"""Making a site: pages from the dashboard asked in process, data files from what its feature pages are made of."""

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from fastapi import FastAPI

from seedscope.app import render
from seedscope.app.formats import architecture
from seedscope.app.lens import PARAMETERS
from seedscope.app.main import create_app
from seedscope.app.routes.address import judged_shares
from seedscope.app.routes.feature.permalink import FeatureFilter
from seedscope.app.security import PLOTLY_STYLES
from seedscope.app.settings import STATIC, Settings
from seedscope.app.site.addresses import SiteMap
from seedscope.app.site.asking import ask
from seedscope.app.site.card import CardRow, card
from seedscope.app.site.crawl import crawl
from seedscope.app.site.ensemble_data import EnsembleData, Listed, SiteEnsemble, list_features
from seedscope.app.site.pages import PageRewriter
from seedscope.app.site.table_columns import ORDERS, columns_of
from seedscope.app.site.wasm import SCRIPTS, read_package
from seedscope.engine.contract.tables.study import Ensemble

MARK = "seedscope-site.json"  # tells a folder that may be replaced
Report = Callable[[int, int], None]  # features that are made, of how many
# As the dashboard's own, of files: no server says who may frame them, and nothing is fetched.
_POLICY = (
    f"default-src 'none'; script-src 'self'; style-src 'self' {PLOTLY_STYLES}; style-src-attr 'unsafe-inline'; "
    "img-src 'self' data: blob:; form-action 'self'; base-uri 'none'"
)
_DUCKDB_POLICY = (
    f"{_POLICY}; worker-src 'self'; connect-src 'self'"  # it runs in a worker and reads files of the folder
)
_SCRIPTS = ("site-data.js", "site-marks.js", "site-filter.js")


@dataclass(frozen=True)
class Made:
    """A site as it was written."""

    folder: Path
    n_files: int
    n_features: int
    n_thinned: int  # features whose weakest contexts were left out
    n_bytes: int
    n_data_bytes: int  # of them in data files

    @property
    def mb_per_thousand(self) -> float:
        """MB of data files per 1,000 features; pages and scripts do not grow with features."""
        return self.n_data_bytes / 1e6 / max(self.n_features, 1) * 1000


def make_site(
    root: Path,
    study: str,
    folder: Path,
    *,
    filter: str = "",
    duckdb_wasm: Path | None = None,
    report: Report = lambda done, total: None,
) -> Made:
    """Write a study's site to `folder`, whole or not at all; a site that stands there is replaced.

    `filter`: as the query of the dashboard's table, of the features that get a page; theta, epsilon, rule and dead in it judge
    all pages. `duckdb_wasm`: npm's package of DuckDB-WASM, which then answers for the table where a file server serves the site.
    Raises ValueError for a study, filter, package or folder that cannot be used.
    """
    _check_folder(folder)
    duckdb = read_package(duckdb_wasm) if duckdb_wasm else {}
    work = partial(_make, create_app(Settings(root)), study, folder, filter.lstrip("?"), duckdb, report)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work())
    with ThreadPoolExecutor(1) as thread:  # a notebook's thread runs a loop of its own
        return thread.submit(lambda: asyncio.run(work())).result()


async def _make(app: FastAPI, study: str, folder: Path, filter: str, duckdb: dict[str, bytes], report: Report) -> Made:
    try:
        store = app.state.studies.get(study)
    except LookupError as error:
        raise ValueError(str(error)) from None
    asked = _read_filter(filter)
    lens = {name: value for name, value in asked.items() if name in PARAMETERS}
    lines = {name: await list_features(app, study, row, asked) for name, row in store.ensembles.items()}
    total = sum(map(len, lines.values()))
    if not total:
        raise ValueError(
            f"filter is {filter!r} and finds none of the features of {study}, expected one that finds some"
        )
    places = {name: frozenset((line["seed"], line["feature"]) for line in found) for name, found in lines.items()}
    site = SiteMap(study, tuple(store.ensembles), lens, places)
    with _written_whole(folder) as draft:
        pages = await crawl(app, site)
        writer = _Writer(app, site, draft, _note(study, filter), _DUCKDB_POLICY if duckdb else _POLICY)
        for path, answer in pages.items():
            is_page = answer.media_type == "text/html"
            writer.write(
                site.pages[path],
                writer.rewriter.rewrite(answer.text, site.pages[path]).encode() if is_page else answer.body,
            )
        done = n_thinned = n_data = 0

        def count(n: int) -> None:
            nonlocal done
            done += n
            report(done, total)

        for name, row in store.ensembles.items():
            judged = SiteEnsemble(store, row, _judgement(row, lens))
            spans = [
                path.rsplit("/", 1)[1]
                for path in pages
                if path.startswith(f"/s/{study}/{name}/spans/") and "." not in path
            ]
            data = EnsembleData(judged, lines[name], spans, is_queried=bool(duckdb))
            for file, content in data.files(count):
                n_data += writer.write(f"s/{name}/data/{file}", content)
            n_thinned += data.n_thinned
            await writer.write_shells(judged, data.has)
        await writer.write_weights({name: store.members(name) for name in store.ensembles})
        rows = [
            _card_row(SiteEnsemble(store, row, _judgement(row, lens)), lines[name])
            for name, row in store.ensembles.items()
        ]
        writer.write(
            "README.md", card(study, store.study.model, rows, filter=filter, version=version("seedscope")).encode()
        )
        writer.write(MARK, json.dumps(_about(study, store.ensembles, filter, total), indent=1).encode())
        for file, content in duckdb.items():
            writer.write(f"static/duckdb/{file}", content)
        writer.copy_assets(SCRIPTS if duckdb else ())
    return Made(folder, writer.n_files, total, n_thinned, writer.n_bytes, n_data)


class _Writer:
    """Writes the files of a site under its draft, and counts them."""

    def __init__(self, app: FastAPI, site: SiteMap, draft: Path, note: str, policy: str) -> None:
        self.n_files = self.n_bytes = 0
        self._app, self._site, self._draft = app, site, draft
        self.rewriter = PageRewriter(site, partial(_head, policy), note)

    def write(self, file: str, content: bytes) -> int:
        """Write one file; returns its size in bytes."""
        path = self._draft / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.n_files += 1
        self.n_bytes += len(content)
        return len(content)

    async def write_shells(self, judged: SiteEnsemble, has: dict[str, bool]) -> None:
        """The pages that the table and the features of an ensemble are drawn on, in the frame of the dashboard's table."""
        row, query = judged.row, judged.query
        home = f"/s/{self._site.study}/{row.ensemble}"
        frame = (await ask(self._app, f"{home}/features", urlencode(self._site.lens))).text
        values = {
            "ensemble": row, "theta": query.theta, "epsilon": query.epsilon, "rule": query.rule,
            "has": has | {"trajectory_page": f"{home}/trajectory" in self._site.pages}, "columns": columns_of(has),
            "orders": {name: says for name, (says, needs) in ORDERS.items() if needs is None or has[needs]},
        }  # fmt: skip
        for name, script in (("table", "site-table.js"), ("feature", "site-feature.js")):
            file = f"s/{row.ensemble}/{'features' if name == 'table' else 'feature'}.html"
            main = str(render.rendered(f"site/{name}.html", file, **values))
            # Its links are written as the dashboard's own are, and follow them into the folder.
            inner = self.rewriter.rewrite_part(main, file)
            self.write(file, self.rewriter.rewrite(frame, file, main=inner, scripts=(*_SCRIPTS, script)).encode())

    async def write_weights(self, members: dict[str, list[Any]]) -> None:
        """The page that finds an SAE's feature by the digest of its weights."""
        places: dict[str, list[list[str]]] = {}
        for ensemble, own in members.items():
            for member in own:
                places.setdefault(member.sae_digest, []).append([ensemble, str(member.seed)])
        frame = (await ask(self._app, "/methods")).text
        main = str(render.rendered("site/weights.html", "weights.html", places=places, example=next(iter(places))))
        self.write("weights.html", self.rewriter.rewrite(frame, "weights.html", main=main).encode())

    def copy_assets(self, scripts: tuple[str, ...]) -> None:
        """The static files that the pages name, with the larger bundle of Plotly where a figure needs it, and other scripts."""
        for name in sorted(self.rewriter.assets.union(scripts)):
            self.write(f"static/{name}", (STATIC / name).read_bytes())


def _head(policy: str, scripts: list[str]) -> str:
    return render.templates.get_template("site/head.html").render(policy=policy, scripts=scripts)


def _note(study: str, filter: str) -> str:
    return render.templates.get_template("site/note.html").render(
        study=study, filter=filter, version=version("seedscope")
    )


def _read_filter(filter: str) -> dict[str, str]:
    """The parameters of a filter, each once; raises ValueError where it is none, or says what a site arranges itself."""
    try:
        pairs = parse_qsl(filter, strict_parsing=True, keep_blank_values=True) if filter else []
    except ValueError:
        raise ValueError(
            f"filter is {filter!r}, expected NAME=VALUE&NAME=VALUE as in the address of the feature table"
        ) from None
    own = {"sort", "dir", "limit", "after", "before", "at", "view", "v", "embed"}
    for name, _ in pairs:
        if name in own or [other for other, _ in pairs].count(name) > 1:
            raise ValueError(
                f"filter has {name}, expected each of bucket, seed, density_min, theta and the like once: they say which features"
            )
    return dict(pairs)


def _judgement(row: Ensemble, lens: dict[str, str]) -> FeatureFilter:
    own: dict[str, Any] = {"theta": row.theta, "epsilon": row.epsilon}
    return FeatureFilter.resolved(row, FeatureFilter.model_validate(own | lens))


def _card_row(judged: SiteEnsemble, lines: Listed) -> CardRow:
    store, row, query = judged.store, judged.row, judged.query
    counts = store.features(query.query(row.ensemble)).matched_counts()
    chance = store.null_rates(row.ensemble, query.theta, query.rule).get("second_moment")
    return CardRow(
        row.ensemble, row.hookpoint, architecture(row.variant, row.k), row.d_sae, row.n_members, len(lines), query.theta,
        judged_shares(counts), chance, row.digest,
    )  # fmt: skip


def _about(study: str, ensembles: dict[str, Ensemble], filter: str, n_features: int) -> dict[str, Any]:
    """What tells this folder, to programs."""
    return {
        "made_by": f"seedscope {version('seedscope')}", "study": study, "filter": filter, "n_features": n_features,
        "ensembles": {name: row.digest for name, row in ensembles.items()},
    }  # fmt: skip


def _check_folder(folder: Path) -> None:
    """Raise ValueError for a folder that holds something else than a site."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, expected a new folder, an empty one, or a site that was made before")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).is_file():
        raise ValueError(
            f"{folder} holds other files (no {MARK}), expected a new folder, an empty one, or a site that was made before"
        )


@contextmanager
def _written_whole(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that takes its place when the block ends without an error."""
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft, former = folder.with_name(f"{folder.name}.tmp"), folder.with_name(f"{folder.name}.former")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir()
        yield draft
        if folder.exists():
            folder.rename(former)
        draft.rename(folder)
        shutil.rmtree(former, ignore_errors=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
