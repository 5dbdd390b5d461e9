"""Entries on seeds and features, matching, stability and chance."""

from seedscope.app.glossary.entry import OWN, Entry, section

PER_COMPARISON = "one number per feature and other seed"
JUDGED = "share of the features that are judged: those active on the evaluation tokens, unless dead ones are counted in"

ENTRIES: tuple[Entry, ...] = (
    *section(
    "words",
    ("feature", "feature", "One row of an SAE’s decoder, also called a latent; its number is its row.", None, None, "common"),
    ("seed", "seed", "One SAE of the ensemble, named by the seed that it was trained with.", None, None, "common"),
    ("anchor", "anchor", "The seed whose features are scored; the other seeds are its comparisons.", None, None, "A"),
    ("comparisons", "comparisons", "The other seeds, in each of which a feature of the anchor is looked for.",
     r"N = \text{seeds} − 1", "seeds of the ensemble", "A"),
    ("n_seeds", "seeds", "How many SAEs of one recipe the ensemble has; a number is a mean over those for which it exists.",
     None, "seeds", "common"),
    ("n_features", "features", "How many features a number stands on.", None, "features", "common"),
    ("width", "width", "Features of each SAE, and the dimensions of the activations that it reads.",
     r"d_{\text{sae}}", "features per seed", "common"),
    ("dead", "dead", "Features that are active on none of the evaluation tokens, or whose decoder row has no direction.",
     r"a_i(t) = 0 \text{ for every } t", "all features of a seed", "common"),
    ),
    *section(
    "matching",
    ("counterpart", "counterpart",
     "The feature of another seed that the match rule picks: by default the one with the largest cosine.",
     r"j^* = \fn{argmax}_j \fn{cos}(d_i, d'_j)", "one per feature and other seed", "A"),
    ("cosine", "cosine", "Signed cosine of the two decoder rows, from −1 to 1; from θ on it is a match.",
     r"\fn{cos}(d, d') = \frac{d·d'}{\norm{d} \norm{d'}}", PER_COMPARISON, "A"),
    ("next_best", "next best", "The second largest cosine of the feature with a feature of that seed: where it is close to the "
     "largest, the choice was close.", None, PER_COMPARISON, OWN),
    ("encoder_cosine", "encoder cosine", "Signed cosine of the two encoder columns, at the nearest feature.",
     r"\fn{cos}(e_i, e'_j)", PER_COMPARISON, "Paulo"),
    ("mean_cosine", "mean cosine", "The feature’s cosine to its counterpart under the match rule, mean over the other seeds in "
     "which the rule picks one.", None, "other seeds with a counterpart", OWN),
    ("seed_strip", "seed strip", "One bar per other seed: its height is the best cosine there (“fires alike”: correlation), "
     "solid from θ on.",
     None, "other seeds", OWN),
    ("theta", "match threshold θ", "The smallest cosine that counts as a match; under “fires alike” the smallest correlation.",
     r"\fn{cos} ≥ θ", None, "A"),
    ("match_rule", "match rule", "Which feature of another seed is the counterpart: the nearest, the nearest active, the mutual "
     "nearest, the one of a one-to-one matching, the one on which decoder and encoder matching agree, or of the eight "
     "nearest the one that fires alike.",
     None, None, OWN),
    ("shared", "shared", "Share of one seed’s features that match in the other seed; the two directions can differ.",
     r"\frac{1}{n} \sum_i [\fn{cos}(d_i, d'_{j^*}) ≥ θ]", "features of the first seed", "A"),
    ("unclaimed", "unclaimed", "Features of the second seed that are the match of none in the first.",
     None, "features of the second seed", OWN),
    ("mmcs", "MMCS", "Mean of the largest cosines: of every feature of the first seed with its nearest in the second.",
     r"\frac{1}{n} \sum_i \fn{max}_j \fn{cos}(d_i, d'_j)", "features of the first seed with a direction", "common"),
    ("mcc", "MCC", "Mean cosine under the one-to-one matching that makes the summed cosine largest; pairwise MCC is its mean "
     "over pairs of seeds.", r"\frac{1}{n} \sum_i \fn{cos}(d_i, d'_{π(i)})", "matched pairs of features", "Song"),
    ("rule_cosine", "mean cosine of pairs", "Mean cosine of the pairs of features that the match rule forms.",
     None, "pairs that the rule forms", OWN),
    ("proven_gap", "proven gap", "How far the one-to-one matching found can be below the best one, as a share of its summed "
     "cosine: a bound, from dual prices.", None, "one pair of seeds", OWN),
    ("cosine_bin", "from and to", "Edges of a bin of the histogram of cosines (“fires alike”: correlations) with the "
     "counterpart.",
     None, "features of the first seed", OWN),
    ),
    *section(
    "stability",
    ("stability", "stability p", "In how many of the other seeds the feature has a match, as a share.",
     r"p = \frac{X}{N}", "N other seeds", "A"),
    ("interval_p", "95 % interval of p", "The Clopper–Pearson interval: the probabilities of a match at which X of N is not yet "
     "unlikely. With few seeds it is wide.", None, "N other seeds", "Clopper"),
    ("p_stable", "probability of being stable", "How probable it is that the feature’s p, over all seeds there could be, is at "
     "least 1 − ε, given X of N and a Jeffreys prior.",
     r"P(p ≥ 1 − ε | X, N), p ∼ \fn{Beta}(X + \frac{1}{2}, N − X + \frac{1}{2})", "N other seeds", OWN),
    ("epsilon", "tolerance ε", "Stable features match in at least 1 − ε of the other seeds, unstable ones in at most ε.",
     None, None, "A"),
    ("bucket", "bucket", "Stable, middle or unstable by the feature’s stability; dead features are a bucket of their own.",
     None, "N other seeds", "A"),
    ("stable", "stable", "Features that match in nearly every other seed; a share is of the features that are judged.",
     r"p ≥ 1 − ε", JUDGED, "A"),
    ("middle", "middle", "Features between stable and unstable.", r"ε < p < 1 − ε", JUDGED, "A"),
    ("unstable", "unstable", "Features that match in hardly any other seed.", r"p ≤ ε", JUDGED, "A"),
    ("mean_p", "mean p", "Mean of the stability of the features that are judged.", r"\frac{1}{n} \sum_i p_i",
     "features that are judged, those active on the evaluation tokens unless said otherwise", OWN),
    ("x_matches", "seeds with a match", "In how many of the other seeds a feature has a match.", r"X = 0, …, N",
     "other seeds", "A"),
    ("p_axis", "p", "A value of stability; with N other seeds only N + 1 values exist.", r"p = \frac{X}{N}", "N other seeds", "A"),
    ("share_up_to_p", "share up to p", "Share of features whose stability is at most p (the cumulative distribution).",
     r"\frac{1}{n} \sum_i [p_i ≤ p]", "features of all seeds that are judged", OWN),
    ("band_seeds", "95 % band over seeds", "Where 95 % of bootstrap samples of the seeds lie. Seeds are drawn, not features, for "
     "features of several seeds are copies that share their comparisons.", None, "seeds", OWN),
    ("one_anchor", "lowest and highest anchor", "The smallest and the largest share that one seed’s features alone give.",
     None, "features of one seed", OWN),
    ("final_bucket", "in the final bucket", "Share of features that fewer comparisons put into the bucket that all comparisons "
     "give; mean over all choices of comparisons, exact by the hypergeometric distribution.",
     None, "features that are judged", OWN),
    ("p_error", "mean |p − final p|", "How far the stability from fewer comparisons lies from the one from all, on average.",
     r"\frac{1}{n} \sum_i |p_i − p_i^{\text{all}}|", "features that are judged, all choices of comparisons", OWN),
    ),
    *section(
    "nulls",
    ("chance", "by chance", "Share of comparisons that reach θ in random dictionaries: at random directions, and at random ones "
     "with this SAE’s spread.", r"P(\fn{max}_j \fn{cos}(d_i, r_j) ≥ θ)", "features × other seeds", OWN),
    ("chance_haar", "chance, random directions", "The same search after the other seed’s dictionary was turned by a random "
     "rotation.", r"d'_j → Q d'_j", "features × other seeds", OWN),
    ("chance_spread", "chance, this SAE’s spread", "The same search in random unit rows that have the other dictionary’s own "
     "second moment, so that a shared mean direction and uneven spread stay.",
     r"r ∝ S^{1/2} g, g ∼ \fn{N}(0, I)", "features × other seeds", OWN),
    ("chance_one_in_1000", "once in 1,000", "The best cosine that one in 1,000 comparisons with random dictionaries exceeds: the "
     "99.9th percentile.", None, "features × other seeds", OWN),
    ),
)  # fmt: skip
