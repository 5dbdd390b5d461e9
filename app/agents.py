"""A server of the Model Context Protocol: what the pages answer, as read-only tools for coding agents.

Every tool asks an address of the dashboard for its JSON twin, in this process and without a port, so that an agent and a page never
disagree; what a tool leaves out of an answer it says in its description.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Annotated, Any, Literal

import httpx2
from anyio.to_thread import run_sync
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from pydantic import Field

from seedscope.app.main import create_app
from seedscope.app.settings import Settings

ADDRESS = "http://127.0.0.1"
ANSWER_S = 120.0  # that the live engine may take to start and to answer
AGAIN_S = 0.5
MOST_ROWS = 100
INSTRUCTIONS = (
    "SeedScope measures which features of sparse autoencoders (SAEs) come back when the SAE is trained again with another seed. "
    "stability p = n_matched / n_comparisons: the share of other seeds in which some feature has a cosine of at least theta; "
    "buckets are stable, middle, unstable, dead. Begin with `studies`. Quote a number with its n, its interval and its null_rate, "
    "and give the permalink: it pins the weights by a digest. null in an answer means not computed, never zero; `missing` names "
    "the command."
)
Name = Annotated[str, Field(description="as `studies` lists it")]
Seed = Annotated[int, Field(ge=0, description="the SAE: seeds are those of the ensemble's members")]
Index = Annotated[int, Field(ge=0, description="index of the feature in the SAE")]
Place = Annotated[str, Field(description="STUDY/ENSEMBLE/SEED/FEATURE, or STUDY/ENSEMBLE/SEED, or STUDY/ENSEMBLE")]
Theta = Annotated[
    float | None, Field(ge=-1, le=1, description="cosine from which on two features match; default the ensemble's own")
]
Answer = dict[str, Any]
READ_ONLY = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)


class Pages:
    """The dashboard over a root, asked in this process."""

    def __init__(self, settings: Settings) -> None:
        self._app = create_app(settings)
        transport = httpx2.ASGITransport(app=self._app)
        self._client = httpx2.AsyncClient(transport=transport, base_url=ADDRESS, timeout=ANSWER_S)

    async def ask(self, path: str, **parameters: Any) -> Answer:
        """The JSON twin of a page; raises ToolError with what the page says is wrong. Waits while the live engine starts."""
        given = {name: value for name, value in parameters.items() if value is not None}
        try:
            async with asyncio.timeout(ANSWER_S):
                while True:
                    response = await self._client.get(f"{path}.json", params=given)
                    answer = response.json()
                    if response.status_code == 200:
                        return dict(answer)
                    if not answer.get("again"):
                        raise ToolError(_says(answer))
                    await asyncio.sleep(AGAIN_S)
        except TimeoutError:
            raise ToolError(f"no answer within {ANSWER_S:g} s; ask again") from None

    async def close(self) -> None:
        """End the live engine, if one was started."""
        await self._client.aclose()
        await run_sync(self._app.state.live.close)


def _says(answer: Answer) -> str:
    """What a refusal says, in one line."""
    problems = [
        f"{each['name']} is {each['found']!r}, expected {each['expected']}" for each in answer.get("problems", [])
    ]
    return "; ".join(problems) or str(answer.get("says") or answer.get("title") or "refused")


def _path(*parts: str | int) -> str:
    """An address; a name with a slash would be another one."""
    for part in parts:
        if not str(part) or "/" in str(part):
            raise ToolError(f"name is {part!r}, expected one without a slash")
    return "/s/" + "/".join(map(str, parts))


def make_server(settings: Settings) -> MCPServer[None]:
    """The server with its tools; it reads the studies under the settings' root and writes nothing."""
    pages = Pages(settings)

    @asynccontextmanager
    async def until_closed(_: MCPServer[None]) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await pages.close()

    server = MCPServer(
        "seedscope", title="SeedScope", version=version("seedscope"), instructions=INSTRUCTIONS, lifespan=until_closed,
        log_level="WARNING",
    )  # fmt: skip

    @server.tool(annotations=READ_ONLY)
    async def studies() -> Answer:
        """Every study with its ensembles: model, hook point, SAEs, thresholds, what was computed, shares of buckets."""
        home = await pages.ask("/index")
        return {"studies": [_study(each) for each in home["studies"]], "broken": home["broken"]}

    @server.tool(annotations=READ_ONLY)
    async def ensemble(study: Name, ensemble: Name, theta: Theta = None) -> Answer:
        """One ensemble's overview: distribution of stability with its nulls, buckets, curves over theta. Without figures."""
        page = await pages.ask(_path(study, ensemble), theta=theta)
        return {name: value for name, value in page.items() if not name.startswith(("figure", "nav_"))}

    @server.tool(annotations=READ_ONLY)
    async def search(
        study: Name,
        ensemble: Name,
        text: Annotated[str | None, Field(description="in explanations, or a token that features fire on")] = None,
        bucket: Annotated[
            Literal["stable", "middle", "unstable", "dead"] | None, Field(description="stability bucket")
        ] = None,
        seed: Seed | None = None,
        stability_min: Annotated[float | None, Field(ge=0, le=1)] = None,
        stability_max: Annotated[float | None, Field(ge=0, le=1)] = None,
        sort: Annotated[str | None, Field(description="column, such as stability, density, worth, score")] = None,
        descending: bool = True,
        theta: Theta = None,
        limit: Annotated[int, Field(ge=1, le=MOST_ROWS)] = 20,
        after: Annotated[str | None, Field(description="`after` of the page before")] = None,
    ) -> Answer:
        """Features that a filter finds, a page at a time: bucket, matches, density, tokens, explanation; `total` counts all."""
        return await pages.ask(
            f"{_path(study, ensemble)}/features/page", q=text, bucket=bucket, seed=seed, stability_min=stability_min,
            stability_max=stability_max, sort=sort, dir=None if sort is None else "desc" if descending else "asc", theta=theta,
            limit=limit, after=after,
        )  # fmt: skip

    @server.tool(annotations=READ_ONLY)
    async def feature(
        study: Name, ensemble: Name, seed: Seed, feature: Index, theta: Theta = None,
        contexts: Annotated[int, Field(ge=0, le=50, description="that are kept, the strongest first")] = 5,
    ) -> Answer:  # fmt: skip
        """One feature: stability with its interval and nulls, activity, explanations with scores, ablation, spans, permalink.

        Left out: counterparts (`counterparts` lists them), all but the first contexts, histograms.
        """
        page = await pages.ask(_path(study, ensemble, seed, feature), theta=theta)
        kept = {name: value for name, value in page.items() if name not in ("matches", "histogram", "histogram_edges")}
        if kept.get("contexts"):
            kept["contexts"] = kept["contexts"][:contexts]
        return kept | {"permalink": _permalink(page)}

    @server.tool(annotations=READ_ONLY)
    async def counterparts(study: Name, ensemble: Name, seed: Seed, feature: Index, theta: Theta = None) -> Answer:
        """The nearest feature in every other seed: cosine, runner-up, whether it matches, is mutual, and what other rules find."""
        page = await pages.ask(_path(study, ensemble, seed, feature), theta=theta)
        named = (
            "stability",
            "stability_low",
            "stability_high",
            "n_matched",
            "n_comparisons",
            "bucket",
            "theta",
            "null_rate",
        )
        return {name: page[name] for name in named} | {"matches": page["matches"], "permalink": _permalink(page)}

    @server.tool(annotations=READ_ONLY)
    async def compare(a: Place, b: Place) -> Answer:
        """Two features, SAEs or ensembles side by side; of features the cosine of their decoder rows too, where it is stored."""
        page = await pages.ask("/compare", a=a, b=b)
        for each in page.get("features") or []:
            each["contexts"] = (each.get("contexts") or [])[:3]
            each.pop("histogram", None)
            each.pop("histogram_edges", None)
        return page

    @server.tool(annotations=READ_ONLY)
    async def project(study: Name, ensemble: Name, seed: Seed, feature: Index) -> Answer:
        """How much of a feature's direction lies in the spans of other seeds' features, beside random ones; computed now."""
        return await pages.ask(f"{_path(study, ensemble, seed, feature)}/project")

    @server.tool(annotations=READ_ONLY)
    async def try_text(
        study: Name, ensemble: Name,
        text: Annotated[str, Field(min_length=1, max_length=4000, description="run through the model and the SAEs, now")],
        seed: Seed | None = None,
    ) -> Answer:  # fmt: skip
        """Which features of each seed fire on a text, token by token, with their stability; computed now by the live engine."""
        return await pages.ask(f"{_path(study, ensemble)}/try", text=text, seed=seed)

    @server.tool(annotations=READ_ONLY)
    async def spans(study: Name, ensemble: Name) -> Answer:
        """Small subspaces that unstable features of several seeds share, each with its nulls; kept ones first, 50 at most."""
        page = await pages.ask(f"{_path(study, ensemble)}/spans")
        return {name: value for name, value in page.items() if not name.startswith(("figure", "nav_"))}

    return server


def _study(listed: Answer) -> Answer:
    """What an agent needs of a study on the first page."""
    study = listed["study"]
    shares = {each["ensemble"]["ensemble"]: each["shares"] for each in listed["listed"]}
    named = (
        "ensemble", "hookpoint", "variant", "d_in", "d_sae", "n_members", "n_comparisons", "shared_start", "theta", "epsilon",
        "digest", "control_of", "computed", "remarks",
    )  # fmt: skip
    return {
        "study": study["study"], "model": study["model"],
        "ensembles": [
            {name: row[name] for name in named} | {"shares_of_living": shares.get(row["ensemble"])} for row in listed["ensembles"]
        ],
    }  # fmt: skip


def _permalink(page: Answer) -> str:
    return f"/s/{page['study']}/{page['ensemble']}/{page['seed']}/{page['feature']}?v={page['digest']}"
