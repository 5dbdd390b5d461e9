"""How one feature's direct logit effects spread over the whole vocabulary: one kind of query of the live engine."""

import numpy as np

from seedscope.engine.activations.model import LanguageModel
from seedscope.engine.contract.directions import NO_OUTPUT, WAY_OUT
from seedscope.engine.contract.queries import LOGIT_BINS, LiveAnswer, LiveQuery
from seedscope.engine.features.logits import all_direct_logits
from seedscope.engine.live.text import TextHook
from seedscope.engine.saes import sae


def answer(query: LiveQuery, model: LanguageModel, place: TextHook, member: sae.SAE) -> LiveAnswer:
    """Counts of tokens in LOGIT_BINS equal bins from the lowest effect to the highest, of one feature of an ensemble of one.

    Raises ValueError for a feature that is not there or has no direction, for models without direct logits, and for
    transcoders that do not say what they predict.
    """
    if place.transcoder and not place.hookpoint_out:
        raise ValueError(f"direct logits are {NO_OUTPUT}; give it with: seedscope analyze {query.study} {WAY_OUT}")
    if not 0 <= query.feature < member.d_sae:
        raise ValueError(f"feature is {query.feature}, expected 0 to {member.d_sae - 1}")
    row = member.W_dec[0, query.feature]
    if not bool(sae.directed(row[None])[0]):
        raise ValueError(
            f"feature {query.feature} of seed {query.seed} has no direction: its row is zero or not finite"
        )
    logits = all_direct_logits(model, row).double().numpy()
    counts, edges = np.histogram(logits, LOGIT_BINS)
    mean, spread = logits.mean(), logits.std()
    shape = [np.nan, np.nan]
    if spread > 0:
        standard = (logits - mean) / spread
        shape = [(standard**3).mean(), (standard**4).mean() - 3]
    return LiveAnswer({"counts": counts, "edges": edges, "moments": np.array([mean, spread, *shape])})
