"""Time of the next-token loss under masks, against the model's own passes from the hook point's block on."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch

from seedscope.engine.activations.harvest import stream, tokenize
from seedscope.engine.activations.model import load_model
from seedscope.engine.bench.report import BenchLine, interleaved
from seedscope.engine.demo import stdlib
from seedscope.engine.features.loss import LOSS_TOKENS, Splice, losses_under
from seedscope.engine.saes.sae import SAE

GOAL = "within 3 x of the limit"
_MASKS, _MASKED = 8, 128  # masks, and features of each


def lines() -> Iterator[BenchLine]:
    """Masks of one SAE of the embedded study's shape, on its model."""
    model, train = load_model(str(stdlib.MODEL_DIR)), stdlib.STUDY.train
    tokens = tokenize(stdlib.load_corpus().held_out, model, n_ctx=stdlib.STUDY.n_ctx, n_tokens=LOSS_TOKENS)
    rows = torch.cat([batch.rows for batch in stream(model, tokens, stdlib.STUDY.hookpoint)])
    rng = np.random.default_rng(0)
    chosen = torch.from_numpy(rng.choice(len(rows), train.d_sae, replace=False))
    decoder = torch.nn.functional.normalize(rows[chosen] - rows.mean(0), dim=1)[None]
    sae = SAE(
        decoder.transpose(1, 2).contiguous(), torch.zeros(1, train.d_sae), decoder, rows.mean(0)[None], k=train.k,
        seeds=(0,),
    ).requires_grad_(False)  # fmt: skip
    masks = {"random": [rng.choice(train.d_sae, _MASKED, replace=False) for _ in range(_MASKS)]}
    splice, whole = (Splice(model, tokens, stdlib.STUDY.hookpoint) for _ in range(2))
    splice.keep_below()
    work: dict[str, Callable[[], object]] = {
        "ours": partial(losses_under, splice, sae, masks),
        "limit": partial(_passes, splice),
        "whole passes": partial(_passes, whole),
    }
    taken = interleaved(work, rounds=3)
    yield BenchLine(
        work=f"loss under {_MASKS} masks of one SAE, {splice.n_tokens:,} tokens, {stdlib.STUDY.hookpoint}",
        ours_s=taken["ours"],
        limit="as many passes of the model from the hook point's block on",
        limit_s=taken["limit"],
        goal=GOAL,
        remark=f"as many passes of the whole model: {taken['whole passes']:.2f} s",
    )


def _passes(splice: Splice) -> None:
    with torch.no_grad():
        for _ in range(_MASKS):
            splice.own()
