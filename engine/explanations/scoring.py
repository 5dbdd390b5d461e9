"""Balanced accuracy of answers about contexts with known labels, and the level that shuffled labels reach.

From labels (active or not) and answers (1, 0 or -1 for none), one of each per context, to an ExplanationScore.
"""

import numpy as np

from seedscope.engine.explanations.explanation import ExplanationScore

N_SHUFFLES = 200
CHANCE_QUANTILE = 0.95  # of the shuffled scores, kept as ExplanationScore.shuffled_p95


def score(kind: str, is_active: np.ndarray, said: np.ndarray, *, seed: int = 0, fewest: int = 1) -> ExplanationScore:
    """Score the answers `said` (1 active, 0 silent, -1 none) against `is_active`, both (contexts,).

    Contexts without an answer do not count. Shuffled labels: of a fixed number said to be active, those that fall among the
    active ones are hypergeometric, so N_SHUFFLES such numbers are drawn. Fewer than `fewest` answered contexts of either
    kind make a failure, not a score.
    """
    answered = said >= 0
    labels, answers = is_active[answered].astype(bool), said[answered] == 1
    n_active, n_silent, n_said = int(labels.sum()), int((~labels).sum()), int(answers.sum())
    said = said.astype(np.int8)
    if min(n_active, n_silent) < fewest:
        reason = f"{n_active} active and {n_silent} silent contexts to score on, at least {fewest} of each are needed"
        return ExplanationScore(kind, None, None, None, n_active, n_silent, said, reason)

    def balanced(hits: np.ndarray) -> np.ndarray:
        return (hits / n_active + 1 - (n_said - hits) / n_silent) / 2

    rng = np.random.default_rng((seed, n_said))
    shuffled = balanced(rng.hypergeometric(n_active, n_silent, n_said, N_SHUFFLES))
    value = float(balanced(np.array([answers[labels].sum()]))[0])
    high = float(np.quantile(shuffled, CHANCE_QUANTILE, method="higher"))
    return ExplanationScore(kind, value, float(shuffled.mean()), high, n_active, n_silent, said)
