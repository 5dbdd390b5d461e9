"""Contexts, logits and ablations of one member as rows of the contract."""

import numpy as np

from seedscope.engine.contract.tables.features import Ablation, Context, Logit
from seedscope.engine.features.ablation import Masking
from seedscope.engine.features.activity import Contexts
from seedscope.engine.features.logits import Logits
from seedscope.engine.features.loss import MaskedLoss
from seedscope.engine.store.database import Writer
from seedscope.engine.store.rows import add_row, row_keys


def add_contexts(writer: Writer, ensemble: str, seed: int, c: Contexts) -> None:
    """One member's contexts, a row each."""
    if not len(c.feature):
        return
    columns = {
        "group": c.group,
        "rank": c.rank,
        "document": c.document,
        "position": c.position,
        "peak": c.peak,
        "token_ids": [ids[:length] for ids, length in zip(c.token_ids, c.length, strict=True)],
        "activations": [acts[:length] for acts, length in zip(c.activations, c.length, strict=True)],
    }
    writer.add(Context, row_keys(ensemble, seed, c.feature) | columns)


def add_logits(writer: Writer, ensemble: str, seed: int, logits: Logits) -> None:
    """One member's direct effects on logits: per feature the highest, then the lowest, a row each."""
    for sign, ids, values in ((1, logits.positive_ids, logits.positive), (-1, logits.negative_ids, logits.negative)):
        n_features, n = ids.shape
        keys = row_keys(ensemble, seed, np.repeat(np.arange(n_features), n))
        found = {"sign": np.full(n_features * n, sign), "rank": np.tile(np.arange(n), n_features),
                 "token": np.ravel(ids), "logit": np.ravel(values)}  # fmt: skip
        writer.add(Logit, keys | found)


def add_ablation(writer: Writer, ensemble: str, seed: int, maskings: list[Masking], losses: list[MaskedLoss]) -> None:
    """Explained variance of one member under every kind and size of mask, with the loss where that was measured."""
    found = {(each.mask, each.n_masked): each for each in losses}
    for masking in maskings:
        loss = found.get((masking.mask, masking.n_masked))
        add_row(writer, Ablation(ensemble, seed, *masking, loss and loss.loss, loss and loss.loss_sd))
