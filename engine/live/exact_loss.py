"""The exact next-token loss that masking one feature adds, on evaluation windows: one kind of query of the live engine."""

from pathlib import Path

import numpy as np

from seedscope.engine.activations.model import LanguageModel
from seedscope.engine.activations.tokens import TokenSet, load_tokens
from seedscope.engine.contract.directions import NO_OUTPUT, WAY_OUT
from seedscope.engine.contract.queries import MAX_LOSS_TOKENS, WINDOWS, LiveAnswer, LiveQuery
from seedscope.engine.features.loss import StandIn, exact_loss
from seedscope.engine.live.text import TextHook
from seedscope.engine.saes.sae import SAE
from seedscope.engine.store import catalogue
from seedscope.engine.store.evaluation import measured_from, read_evaluation
from seedscope.engine.store.parts import Parts


def find_windows(study: Path, query: LiveQuery) -> TokenSet:
    """The evaluation windows that a query asks for, with what counts at its ensemble's hook point.

    `random`: as many as hold about n_tokens, drawn as for the losses of masks; `contexts`: those of the feature's strongest
    contexts, the strongest first. Raises ValueError where the study's parts do not have them.
    """
    if query.windows not in WINDOWS or not 1 <= query.n_tokens <= MAX_LOSS_TOKENS:
        raise ValueError(
            f"windows is {query.windows!r}, n_tokens {query.n_tokens}, expected {' or '.join(WINDOWS)}, 1 to {MAX_LOSS_TOKENS}"
        )
    tokens, evaluation = load_tokens(study / "parts"), read_evaluation(study)
    again = f"measure again with: seedscope analyze {query.study}"
    if tokens is None or evaluation is None or not tokens.digest == evaluation.token_digest == query.tokens:
        raise ValueError(f"study {query.study} does not hold the evaluation tokens that it was measured on; {again}")
    plan = catalogue.read(study)
    if plan is None:
        raise ValueError(f"found no {catalogue.FILE} in study {query.study}; {again}")
    ensemble = plan.ensemble(query.ensemble)
    activity = Parts(study, query.ensemble).find("activity", **measured_from(ensemble, evaluation))
    if activity is None:
        raise ValueError(f"ensemble {query.ensemble} of study {query.study} has no activity; {again}")
    tokens = tokens._replace(left_out=activity.read(query.seed, "left_out")["left_out"])
    if query.windows == "random":
        return tokens.sample(query.n_tokens)
    contexts = activity.read(query.seed, *(f"context_{name}" for name in ("feature", "group", "document", "position")))
    mine = (contexts["context_feature"] == query.feature) & (contexts["context_group"] == 0)
    # Windows of one document stand in its order: the last that begins at or before a peak holds it.
    key = tokens.document.astype(np.int64) * (1 << 32) + tokens.start
    wanted = contexts["context_document"][mine].astype(np.int64) * (1 << 32) + contexts["context_position"][mine]
    windows = np.searchsorted(key, wanted, side="right") - 1
    n_read = np.cumsum(tokens.counted[windows].sum(1))
    return tokens.only(np.sort(windows[: int(np.searchsorted(n_read, query.n_tokens)) + 1]))


def answer(
    query: LiveQuery, model: LanguageModel, place: TextHook, study: Path, member: SAE, other: SAE | None
) -> LiveAnswer:
    """The exact loss of one feature of `member` (an ensemble of one), and with the query's stand-in of `other` in its place.

    Raises ValueError as `find_windows` does, for transcoders that do not say what they predict, and for features that there are
    not.
    """
    if place.transcoder and not place.hookpoint_out:
        raise ValueError(f"the loss is {NO_OUTPUT}; give it with: seedscope analyze {query.study} {WAY_OUT}")
    if not 0 <= query.feature < member.d_sae:
        raise ValueError(f"feature is {query.feature}, expected 0 to {member.d_sae - 1}")
    windows = find_windows(study, query)
    if not len(windows.ids):
        raise ValueError(f"feature {query.feature} of seed {query.seed} fires nowhere: it has no contexts")
    stand_in = None
    if other is not None:
        if not 0 <= query.stand_in < other.d_sae:
            raise ValueError(f"stand_in is {query.stand_in}, expected 0 to {other.d_sae - 1}")
        stand_in = StandIn(other, query.stand_in)
    loss = exact_loss(
        model, windows, place.hookpoint, member, query.feature, hookpoint_out=place.hookpoint_out, stand_in=stand_in
    )
    return LiveAnswer({name: array for name, array in loss._asdict().items() if array is not None})
