"""What answers on contexts are worth: balanced accuracy, beside that of labels that mean nothing."""

import numpy as np

from seedscope.engine.explanations.explanation import ExplanationScore

N_SHUFFLES = 200
SELDOM = 0.95  # of the shuffled labels give less than Score.shuffled_p95


def score(kind: str, is_active: np.ndarray, said: np.ndarray, *, seed: int = 0, fewest: int = 1) -> ExplanationScore:
    """Score what was said (1, 0, or -1 for no answer) of contexts with known labels; contexts without answer do not count.

    The labels are shuffled N_SHUFFLES times: how many of a fixed number said to be active fall among the active ones is then
    hypergeometric, so that is what is drawn. Fewer than `fewest` contexts of either kind make a failure, not a score.
    """
    answered = said >= 0
    labels, answers = is_active[answered].astype(bool), said[answered] == 1
    n_active, n_silent, n_said = int(labels.sum()), int((~labels).sum()), int(answers.sum())
    said = said.astype(np.int8)
    if min(n_active, n_silent) < fewest:
        told = f"{n_active} active and {n_silent} silent contexts to score on, at least {fewest} of each are needed"
        return ExplanationScore(kind, None, None, None, n_active, n_silent, said, told)

    def balanced(hits):
        return (hits / n_active + 1 - (n_said - hits) / n_silent) / 2

    rng = np.random.default_rng((seed, n_said))
    shuffled = balanced(rng.hypergeometric(n_active, n_silent, n_said, N_SHUFFLES))
    value, high = float(balanced(int(answers[labels].sum()))), float(np.quantile(shuffled, SELDOM, method="higher"))
    return ExplanationScore(kind, value, float(shuffled.mean()), high, n_active, n_silent, said)
