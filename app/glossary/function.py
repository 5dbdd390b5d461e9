"""Entries on what counterparts do: co-firing and substitution."""

from seedscope.app.glossary.entry import OWN, Entry, section

PAIRS = "pairs of a living feature of the bucket and another seed"
TOKENS = "evaluation tokens, those on which neither fires included"

ENTRIES: tuple[Entry, ...] = (
    *section(
    "function",
    ("counterpart_kind", "counterpart", "Which feature of the other seed is looked at: the partner of a match rule or under "
     "optimal transport, the second-nearest decoder row, a small set of features, or a control.", None, None, OWN),
    ("cofiring", "fires alike", "Correlation of the two features’ activations over all tokens: 1 where they rise and fall "
     "together, 0 where they have nothing to do with each other.", r"\fn{corr}(a_i, b_j)", TOKENS, "common"),
    ("firing_jaccard", "Jaccard", "Tokens on which both fire, as a share of those on which at least one does.",
     r"\frac{|F_i ∩ F_j|}{|F_i ∪ F_j|}", "evaluation tokens on which one of them fires", "common"),
    ("substitution", "substitution", "How much of what the feature explains its counterpart explains in its place: 1 all of it, 0 "
     "no more than leaving the feature out, below 0 less than that.",
     r"\frac{EV_{\text{counterpart}} − EV_{\text{without}}}{EV_{\text{itself}} − EV_{\text{without}}}", "evaluation tokens", OWN),
    ("scaled_substitution", "scale fitted", "The same with the counterpart multiplied by the one factor, not below 0, that serves "
     "best.",
     r"\fn{max}_{c ≥ 0} \frac{EV_{c · \text{counterpart}} − EV_{\text{without}}}{EV_{\text{itself}} − EV_{\text{without}}}",
     "evaluation tokens", OWN),
    ("small_set", "small set of features", "The at most eight features of one other seed that orthogonal matching pursuit "
     "writes the feature’s row with, together in its place, each with the factor that serves best; a fixed sample of features.",
     r"\fn{min} \norm{d_i − \sum_j c_j d'_j}", "features of the sample, one other seed each", "Pati"),
    ("small_set_control", "small set for another feature", "Control: the small set of another feature of the same bucket, its "
     "factors fitted anew, because eight free factors explain something by themselves.", None,
     "features of the sample, one other seed each", OWN),
    ("hard_negative", "nearest that is no match", "Control: the nearest living feature, among the eight nearest rows, whose cosine "
     "stays below θ: it lies near and did not come back.", r"\fn{cos}(d_i, d'_j) < θ", PAIRS, OWN),
    ("random_density", "random, same density", "Control: a living feature drawn at random among those whose density is nearest to "
     "the feature’s, the eight nearest rows left out.", None, PAIRS, OWN),
    ("raw_share", "substitute", "Share of pairs whose counterpart keeps at least 80 % of what the feature explains, as it is.",
     r"\text{share with score} ≥ 0.8", PAIRS, OWN),
    ("scaled_share", "substitute, scale fitted", "The same share with the counterpart multiplied by the one factor that serves "
     "best.", r"\text{share with score} ≥ 0.8", PAIRS, OWN),
    ("beside_share", "repair", "Share of pairs whose counterpart gains as much, scale fitted, while the feature stays in place: "
     "it mends what the SAE misses and replaces nothing.",
     r"\fn{max}_{c ≥ 0} \frac{EV_{\text{both, counterpart} · c} − EV_{\text{itself}}}{EV_{\text{itself}} − EV_{\text{without}}}"
     r" ≥ 0.8",
     PAIRS, OWN),
    ("transport_partner", "optimal transport", "The row of the other seed that gets most of the feature’s mass where all "
     "rows of both seeds share out equal masses at the least cost, 1 − cosine, smoothed by entropy.",
     r"\fn{argmax}_j P_{ij}, P_{ij} = \fn{exp}((\fn{cos}(d_i, d'_j) + f_i + g_j) / ε)",
     "decoder rows with a direction", "Cuturi"),
    ("marginal_gap", "marginal gap", "How far the masses that arrive at the rows are from equal ones, summed over rows: 0 for an "
     "exact plan, and half of it is the mass that arrives at wrong rows.", r"\sum_j |\sum_i P_{ij} − \frac{1}{n}|",
     "decoder rows of the other seed", "common"),
    ("recall_at", "R@n", "Of the n pairs that a rule calls most alike, by cosine (“fires alike”: by correlation), the "
     "share that substitute as they are.", r"\frac{|\text{score} ≥ 0.8|}{n}", "pairs of both directions with a score", OWN),
    ("seed_interval", "interval", "95 % interval from a bootstrap over seeds: features of one seed share its training.", None,
     "seeds", OWN),
    ("function_pairs", "pairs", "Pairs of a feature and another seed whose substitution is defined.", None, None, OWN),
    ("function_features", "features", "Living features that are looked at.", None, None, OWN),
    ),
)  # fmt: skip
