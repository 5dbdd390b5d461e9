"""Entries on stability that is predicted from one SAE."""

from seedscope.app.glossary.entry import OWN, Entry, section

HELD_OUT = "held-out features of the training ensemble"
PREDICTED = "living features of the SAE"

ENTRIES: tuple[Entry, ...] = (
    *section(
    "predicted",
    ("predicted_p", "predicted p", "The probability of a match per comparison that a predictor gives a feature from what one SAE "
     "and its text say: never measured.", r"P(\text{match} | \text{one SAE})", PREDICTED, OWN),
    ("predicted_interval", "95 % of such features", "Where 95 % of the held-out features with the nearest predictions have their "
     "measured p.", None, "200 held-out features", OWN),
    ("predicted_features", "features", "How many features are predicted, or were held out, in this line.", None, "features", OWN),
    ("observed_p", "observed p", "The share of comparisons that match, mean over the features with this prediction.",
     r"\frac{X}{N}", HELD_OUT, OWN),
    ("predictor_auroc", "AUROC", "How often a comparison with a match has the larger prediction than one without; 0.5 is guessing.",
     r"P(f_{\text{match}} > f_{\text{none}}) + \frac{1}{2} P(=)", HELD_OUT, OWN),
    ("predictor_buckets", "stable against unstable", "How often a stable feature has the larger prediction than an unstable one; "
     "those between are left out.", r"P(f_{\text{stable}} > f_{\text{unstable}})", HELD_OUT, OWN),
    ("calibration_error", "calibration error", "Mean distance of predicted and observed p over ten bins of equal size (expected "
     "calibration error).", r"\sum_b \frac{n_b}{n} |\text{observed}_b − \text{predicted}_b|", HELD_OUT, "common"),
    ("predictor_setting", "predicted from", "What the predictor sees, or what was done to the labels: the first line is the "
     "predictor, the others are controls.", None, None, OWN),
    ("input_auroc", "alone", "AUROC of one input by itself: above 0.5, features with large values match more often.", None,
     "features that the predictor was trained on", OWN),
    ("input_range", "training range", "Smallest and largest value among the features that the predictor was trained on.", None,
     "features that the predictor was trained on", OWN),
    ("interval_covers", "intervals cover", "Share of held-out features whose measured p lies in the interval that they are given.",
     None, HELD_OUT, OWN),
    ("outside", "outside", "Features with an input beyond those of the features that the predictor was trained on.", None,
     PREDICTED, OWN),
    ("carried_auroc", "from the others", "AUROC of a predictor trained on the study’s other ensembles, which saw no "
     "feature that matches the one it predicts.", None, "features of the left-out ensemble", OWN),
    ("own_auroc", "from its own", "The same figure of a predictor trained on the ensemble’s own other clusters of matches.", None,
     "features of the ensemble", OWN),
    ("mean_predicted", "mean predicted", "Mean of the predicted p over the ensemble’s features.", None, "features of the ensemble",
     OWN),
    ),
)  # fmt: skip
