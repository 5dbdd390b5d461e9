"""The next-token loss that masking one feature adds, measured now by the live engine on evaluation windows."""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, Depends, Request
from pydantic import Field

from seedscope.app import render
from seedscope.app.live.asking import Ask, Asking, asks_engine
from seedscope.app.routes.address import EnsembleName, Filter, JudgedFeature, StudyName, judged_feature
from seedscope.app.store.errors import NotFound
from seedscope.app.store.missing import NO_MODEL
from seedscope.app.store.study import StudyStore
from seedscope.engine.contract.directions import NO_OUTPUT, WAY_OUT
from seedscope.engine.contract.queries import MAX_LOSS_TOKENS, LiveQuery
from seedscope.engine.contract.tables.study import NO_TOKENS

router = APIRouter()
Windows = Literal["random", "contexts"]  # as engine.contract.queries names them; a test holds them together
TIME_LIMIT_S = 120.0  # a model that people run on a CPU needs a while
N_DRAWS = 2000  # of the bootstrap over windows
SIZES = (4096, 16384, 65536)


class WorthQuery(Filter):
    """On which evaluation windows, and on about how many tokens; the list filter it came from stays for the links."""

    windows: Annotated[Windows, Field(description="random ones, or those of its strongest contexts")] = "random"
    tokens: Annotated[int, Field(ge=1, le=MAX_LOSS_TOKENS, description="evaluation tokens, about as many")] = 4096
    by: Annotated[
        str | None,
        Field(
            pattern=r"^[0-9]{1,19}/[0-9]{1,9}$",
            description="SEED/FEATURE of another seed that takes the feature's place as well",
        ),
    ] = None


@dataclass(frozen=True)
class WorthPage:
    """`/s/{study}/{ensemble}/{seed}/{feature}/loss`: the next-token loss that masking the feature alone adds."""

    study: str
    ensemble: str
    seed: int
    feature: int
    windows: str
    tokens: int
    added_nats: float  # per token that is read
    added_low: float  # 95 %, bootstrap over windows
    added_high: float
    added_where_active_nats: float | None  # per token on which it is active; None where it is silent
    n_tokens: int
    n_active: int  # of them
    n_windows: int
    n_windows_active: int
    first_order_nats: float | None  # per token on the tokens that losses were measured on; None where that was not done
    by: str | None  # SEED/FEATURE of the stand-in
    replaced_nats: float | None  # per token that is read, with the stand-in in its place; None without one
    replaced_low: float | None  # 95 %, bootstrap over windows
    replaced_high: float | None
    kept: (
        float | None
    )  # 1 - replaced / added: share of its effect on the loss that the stand-in keeps; None where it has none
    nav_query: WorthQuery
    nav_sizes: tuple[int, ...]


@render.page(router, "/s/{study}/{ensemble}/{seed}/{feature}/loss", "feature/exact_loss.html", "worth", kept=False)
@asks_engine
def worth(
    request: Request,
    study: StudyName,
    ensemble: EnsembleName,
    opened: Annotated[JudgedFeature[WorthQuery], Depends(judged_feature(WorthQuery))],
) -> Asking[WorthPage]:
    """A feature's exact worth: both losses are taken with the reconstruction in place, on the same windows."""
    store, row, asked, member, feature = opened
    if store.study.synthetic:
        raise NotFound("loss", f"a feature of {study}", f"none in a synthetic study: {NO_MODEL}")
    if store.study.recorded:
        raise NotFound("loss", f"a feature of {study}", f"none: undefined: {NO_TOKENS}")
    if row.undefined:
        way_out = f"; give it with {WAY_OUT}" if row.undefined == NO_OUTPUT else ""
        raise NotFound("loss", f"a feature of {ensemble}", f"none: it is {row.undefined}{way_out}")
    if row.control_of is not None:
        raise NotFound("loss", f"a feature of {ensemble}", f"one of {row.control_of}: controls run on another model")
    other, stand_in = _stand_in(store, ensemble, member.seed, asked.by)
    query = LiveQuery(
        "loss", study, ensemble, row.folder, tuple(m.seed for m in store.members(ensemble)), seed=member.seed,
        feature=feature.feature, windows=asked.windows, n_tokens=asked.tokens, model=store.study.model_digest or "",
        tokens=store.study.eval_token_digest or "", other=other, stand_in=stand_in,
    )  # fmt: skip
    arrays = (yield Ask(query, TIME_LIMIT_S)).arrays
    added, read, active = arrays["added"], arrays["read"], arrays["active"]
    low, high = _interval(added, read)
    replaced = arrays.get("replaced")
    replaced_low, replaced_high = (None, None) if replaced is None else _interval(replaced, read)
    n_active = int(active.sum())
    return WorthPage(
        study=study,
        ensemble=ensemble,
        seed=member.seed,
        feature=feature.feature,
        windows=asked.windows,
        tokens=asked.tokens,
        added_nats=float(added.sum() / read.sum()),
        added_low=low,
        added_high=high,
        added_where_active_nats=float(added.sum() / n_active) if n_active else None,
        n_tokens=int(read.sum()),
        n_active=n_active,
        n_windows=len(read),
        n_windows_active=int((active > 0).sum()),
        first_order_nats=feature.worth_loss,
        by=asked.by,
        replaced_nats=None if replaced is None else float(replaced.sum() / read.sum()),
        replaced_low=replaced_low,
        replaced_high=replaced_high,
        # Where the interval of what masking adds holds 0 there is no effect to keep a share of.
        kept=None if replaced is None or low <= 0 else float(1 - replaced.sum() / added.sum()),
        nav_query=asked,
        nav_sizes=SIZES,
    )


def _stand_in(store: StudyStore, ensemble: str, seed: int, by: str | None) -> tuple[int, int]:
    """(seed, feature) of a stand-in, (0, -1) without one; raises NotFound for one that there is not, or of the same seed."""
    if by is None:
        return 0, -1
    other, feature = by.split("/")
    stand_in = store.feature(ensemble, store.other(ensemble, seed, int(other)), str(int(feature)))
    return stand_in.seed, stand_in.feature


def _interval(added: np.ndarray, read: np.ndarray) -> tuple[float, float]:
    """95 % of the ratio of sums, windows drawn with replacement (seed 0)."""
    drawn = np.random.default_rng(0).integers(0, len(read), (N_DRAWS, len(read)))
    ratios = added[drawn].sum(1) / np.maximum(read[drawn].sum(1), 1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(low), float(high)
