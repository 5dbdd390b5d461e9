"""Whether stability can be told from one SAE, in one sentence made from a predictor's scores."""

from collections.abc import Sequence

from seedscope.engine.contract.tables.predictions import PREDICTOR_SETTINGS, PredictorScore

WELL = 0.9  # AUROC from which matches are told well, at the lower end of its interval [this project's]
CHANCE = 0.55  # AUROC below which, at the lower end, little is told [this project's]
_CONTROLS = {"shuffled": "what density tells alone gives", "rotated": "rotated dictionaries"}


def prediction_sentence(scores: Sequence[PredictorScore]) -> str | None:
    """What the scores say; None without any."""
    by_setting = {row.setting: row for row in scores}
    main = by_setting.get(PREDICTOR_SETTINGS[0])
    if main is None:
        return None
    shuffled = by_setting.get("shuffled")
    beyond_density = shuffled is None or main.auroc_low > shuffled.auroc_high
    if main.auroc_low < CHANCE:
        answer = "Hardly"
    elif not beyond_density:
        answer = "No better than density tells it"
    else:
        answer = "Yes, well" if main.auroc_low >= WELL else "In part"
    interval = f"{main.auroc_low:.3f} to {main.auroc_high:.3f}"
    text = f"{answer}: AUROC {main.auroc:.3f} ({interval}) on clusters of matches that the predictor did not see"
    beside = [f"{says} {by_setting[name].auroc:.3f}" for name, says in _CONTROLS.items() if name in by_setting]
    text += f", where {' and '.join(beside)}" if beside else ""
    return f"{text}; predicted and observed p are {main.calibration_error:.3f} apart on average."
