"""Entries on subspaces, training, the map, variants and starts, the pool, and known true features."""

from seedscope.app.glossary.entry import OWN, Entry, section

CROSS = "unstable rows of the other seed, mean over ordered pairs of seeds"
CHECKPOINT_PAIRS = "pairs of seeds at one checkpoint"
AT_CHECKPOINT = "features that end in the bucket, at one checkpoint"
POOL_SIDES = "living features of both SAEs"
TRUE = "true features of the group"

ENTRIES: tuple[Entry, ...] = (
    *section(
    "spans",
    ("captured_energy", "captured energy", "How much of unstable features lies inside a span of r directions: their mean squared "
     "cosine with it.", r"E(r; s→t) = \frac{1}{n} \sum_i \norm{V_r(s)^T d_i(t)}^2", CROSS, "A"),
    ("rank_r", "rank r", "How many directions the span has: the top right singular vectors of the unstable rows.",
     r"V_r", "directions", "A"),
    ("random_span", "r/d", "What a random subspace of r of d dimensions captures on average.", r"\frac{r}{d}", None, OWN),
    ("n_pairs", "pairs", "Ordered pairs of seeds, or seeds, that the mean is over.", None, "pairs of seeds", OWN),
    ("rows_fitted", "rows fitted", "Decoder rows that the span was fitted on, of the seed with the fewest.", None, "rows", OWN),
    ("kept", "kept", "What another seed’s span captures above a random one, as a share of what the own seed’s does.",
     r"\frac{E_{\text{another}} − r/d}{E_{\text{own}} − r/d}", "pairs of seeds", OWN),
    ("own_seed_energy", "own seed", "Captured energy of a span that is fitted on a random half of a seed’s unstable rows, on the "
     "other half.", r"E(r; s→s)", "the other half of the rows, mean over seeds and random halves", "A"),
    ("other_seed_energy", "another seed", "Captured energy of another seed’s span, fitted on as many rows as the own seed’s.",
     r"E(r; s→t), s ≠ t", CROSS, "A"),
    ("random_set_energy", "random features", "Captured energy of the span of as many living features drawn at random.",
     None, CROSS, "A"),
    ("span_overlap", "overlap", "How much of two spans is the same: 1 for the same span, r/d on average for unrelated ones.",
     r"\frac{1}{r} \norm{V_r(s)^T V_r(t)}_F^2", "pairs of seeds, all unstable rows of each", "A"),
    ("span_pair", "span of one seed against another", "The pair’s overlap, captured energy, or median principal angle, as chosen "
     "above the figure; principal angles are those whose cosines are the singular values.",
     r"\fn{cos} φ_k = σ_k(V_r(s)^T V_r(t))", "one pair of seeds", "A"),
    ("effective_rank", "effective rank", "Over how many directions rows spread: the exponential of the entropy of the singular "
     "values’ shares. It grows with the number of rows alone.",
     r"\fn{exp}(− \sum_i p_i \fn{ln} p_i), p_i = \frac{σ_i}{\sum_k σ_k}", "rows of the set", "Roy"),
    ("effective_share", "of min(n, d)", "Effective rank as a share of the most that n rows in d dimensions can have.",
     r"\frac{\text{effective rank}}{\fn{min}(n, d)}", "rows of the set", OWN),
    ("rows", "rows", "Decoder rows that are compared, of each kind.", None, "rows", OWN),
    ("singular_share", "singular value’s share", "Each singular value as a share of their sum, the largest first.",
     r"\frac{σ_k}{\sum_i σ_i}", "rows of each kind, mean over seeds", OWN),
    ("singular_index", "direction", "The place of a singular value, the largest first.", None, None, OWN),
    ("feature_others", "in other seeds",
     "Squared cosine of the feature with the span of the other seeds’ features: its energy there.",
     r"\norm{V_r^T d_i}^2", "mean over the other seeds", OWN),
    ("feature_own", "in its own", "Squared cosine of the feature with its own seed’s span, which is fitted without it where it is "
     "one of them.", r"\norm{V_r^T d_i}^2", "one feature", OWN),
    ("feature_difference", "own − others", "Energy in its own seed’s span less that in the other seeds’ spans, in percentage "
     "points.", None, "one feature", OWN),
    ("feature_energy", "energy of the feature", "Squared cosine of the feature with the span, mean over the other seeds.",
     r"\norm{V_r^T d_i}^2", "other seeds", OWN),
    ("energy_range", "from seed to seed", "The lowest and the highest energy among the other seeds.", None, "other seeds", OWN),
    ("control_energy", "controls", "The same energy of features drawn for comparison: of about its density where that is known.",
     None, "control features", OWN),
    ("residual", "residual", "Length that is left of a unit row when it is written with at most k features of another seed, chosen "
     "one by one (orthogonal matching pursuit).", r"\norm{d_i − \sum_{j ∈ J} c_j d'_j}, |J| ≤ k",
     "rows of the bucket, mean over ordered pairs of seeds", "Pati"),
    ("pursuit_k", "k", "How many features of the other seed may be used.", None, None, OWN),
    ("f1", "F1", "How well a linear classifier, trained on one seed’s decoder rows, finds the stable features of another: harmonic "
     "mean of precision and recall of the class stable.", r"\frac{2 P R}{P + R}", "ordered pairs of seeds, both balanced", "A"),
    ("auroc", "AUROC", "How often the classifier ranks a stable feature above an unstable one; 0.5 is guessing.",
     r"P(f_{\text{stable}} > f_{\text{unstable}})", "ordered pairs of seeds, both balanced", "A"),
    ),
    *section(
    "trajectory",
    ("hungarian_distance", "Hungarian distance", "Mean of 1 − cosine over the one-to-one matching that makes it smallest: 0 for "
     "the same features in another order, 1 for orthogonal ones.", r"\frac{1}{n} \sum_i (1 − \fn{cos}(d_i, d'_{π(i)}))",
     CHECKPOINT_PAIRS, "B"),
    ("best_cosine", "mean best cosine", "Mean of every feature’s largest cosine with a feature of the other seed.",
     r"\frac{1}{n} \sum_i \fn{max}_j \fn{cos}(d_i, d'_j)", CHECKPOINT_PAIRS, "B"),
    ("pair_range", "smallest and largest pair", "The pairs of seeds with the smallest and with the largest value.",
     None, CHECKPOINT_PAIRS, OWN),
    ("row_cosine", "mean cosine of two rows", "Mean cosine of two different rows of one dictionary: where it is high, cosines "
     "between dictionaries are inflated.", None, "pairs of rows, mean over seeds", "B"),
    ("mean_direction", "share of the mean direction", "Squared length of the mean of a dictionary’s unit rows: 0 where they cancel "
     "out, 1 where all are equal.", r"\norm{\frac{1}{n} \sum_i d_i}^2", "rows, mean over seeds", "B"),
    ("centred_distance", "without the mean direction", "The same after the mean direction was taken out of every row of each "
     "dictionary.", None, CHECKPOINT_PAIRS, "B"),
    ("random_distance", "of random dictionaries", "The same between random unit dictionaries of this size.", None,
     "rows of two random dictionaries", "B"),
    ("live_distance", "living alone", "Hungarian distance among features that are active on the evaluation tokens at that step.",
     None, CHECKPOINT_PAIRS, OWN),
    ("at_start", "start", "The value at step 0, before any training.", None, CHECKPOINT_PAIRS, "B"),
    ("at_end", "end", "The value at the last checkpoint.", None, CHECKPOINT_PAIRS, "B"),
    ("along", "at a checkpoint", "Mean over the features that end in this bucket, at one checkpoint.", None, AT_CHECKPOINT, OWN),
    ("auc", "AUC", "How often a feature that ends stable has more of the quantity at the checkpoint than one that ends unstable; "
     "0.5 is chance.", r"P(x_{\text{stable}} > x_{\text{unstable}}) + \frac{1}{2} P(=)", "within seeds, mean over seeds", OWN),
    ("interval_seeds", "95 % over seeds", "95 % interval of the mean over seeds, by Student’s t; seeds share their comparisons, "
     "so it "
     "is somewhat too narrow.", None, "seeds", OWN),
    ("partial", "partial", "Rank correlation of one quantity with the other’s change up to the next checkpoint, given the other as "
     "it stands.", None, "features that end alive, within seeds, mean over seeds", OWN),
    ("partial_chance", "by chance", "The range in which 95 % of random orders lie.", None, "features that end alive", OWN),
    ("spearman", "Spearman, plain", "The same rank correlation without taking the other quantity as given.", None,
     "features that end alive, within seeds, mean over seeds", OWN),
    ),
    *section(
    "training",
    ("training_ev", "EV in training", "Explained variance of some of the training rows, the same at every point.", None,
     "training rows", OWN),
    ("training_loss", "training loss", "What the SAE minimises, of one batch.", None, "one batch", OWN),
    ("training_l0", "L0 in training", "Active features per token on the same training rows.", None, "training rows", OWN),
    ("training_dead", "dead in training", "Share of features that have not fired for the length that the recipe calls silent.",
     None, "features of the seed", OWN),
    ("training_curve", "mean over seeds", "The curve’s value at that point, mean over seeds, with the lowest and the highest seed.",
     None, "seeds", OWN),
    ),
    *section(
    "map",
    ("near_other_seeds", "other seeds’", "Share of the ten nearest points of the map that are features of other seeds.",
     None, "points of the bucket", OWN),
    ("near_same_bucket", "of the same bucket", "Share of the ten nearest points of the map that are of the same bucket.",
     None, "points of the bucket", OWN),
    ("near_chance", "chance", "The share that is expected where seeds or buckets are dealt out at random.", None,
     "points of the map", OWN),
    ),
    *section(
    "variants",
    ("factor", "what was varied", "The setting in which the ensembles of a sweep differ.", None, "ensembles", OWN),
    ("dead_share", "dead", "Share of all features that are active on none of the evaluation tokens.", None,
     "all features, mean over seeds", "common"),
    ("l0_matched", "L0, and whether it is matched", "Active features per token; matched within 10 % of the median of the ensembles "
     "with the same hook point, width and training tokens.", None, "evaluation tokens, mean over seeds", OWN),
    ),
    *section(
    "starts",
    ("reference_distance", "Hungarian distance in paper B", "The distance at the end of training that paper B released, for other "
     "data.", None, "pairs of SAEs there", "B"),
    ),
    *section(
    "pool",
    ("pool_row", "row", "Row of the feature in the pool’s decoder.", None, None, OWN),
    ("held_by", "held by", "Seeds that have a feature at cosine θ or more with the pooled one, the seed it came from included.",
     r"|\text{seeds with} \fn{max}_j \fn{cos} ≥ θ|", "seeds", OWN),
    ("original", "original", "The seed and feature that the pooled feature was taken from.", None, None, OWN),
    ("pool_unique", "unique features", "Features whose largest cosine to all that were taken before stays below θ.",
     r"\fn{max}_j \fn{cos}(d_i, u_j) < θ", "features of all seeds", "A"),
    ("pool_taken", "in the pool", "Unique features that the pool keeps: those that most seeds hold, then the densest.", None,
     "unique features", OWN),
    ("pool_given", "features taken", "Features of the pool that were taken from this seed.", None, "features of the pool", OWN),
    ("pool_by_all", "held by all", "Of these, the features that every seed holds.", None, "features taken from the seed", OWN),
    ("pool_alone", "by no other", "Of these, the features that no other seed holds.", None, "features taken from the seed", OWN),
    ("pool_shared", "share each other’s features", "Of both SAEs’ living features, the share with a counterpart at θ in the other.",
     None, POOL_SIDES, "A"),
    ("pool_each_way", "each way", "The same share for each of the two SAEs alone.", None, "living features of one SAE", OWN),
    ("pool_value", "mean and each", "The value of the two SAEs, their mean and each alone.", None, "two SAEs", OWN),
    ("pool_tokens", "more tokens", "Tokens that pools and controls were trained on after they were made.", None, "tokens", "A"),
    ("living", "living", "Features that are active on some of the evaluated tokens.", None, "features of one SAE", "common"),
    ("pool_size", "pool", "Features that the pool keeps: as many as one seed has.", None, "unique features", "A"),
    ("pool_trained", "trained on", "Tokens that the pool was trained on after its features were taken.", None, "tokens", "A"),
    ),
    *section(
    "truth",
    ("n_true", "true features", "How many true features the samples are made of, in this group.", None, TRUE, OWN),
    ("true_active", "active", "Evaluation samples in which the true feature is active.", None, "evaluation samples", OWN),
    ("found", "found", "Share of pairs of a true feature and a seed in which some latent of the seed reaches θ with it.",
     r"\fn{max}_j \fn{cos}(f_i, d_j) ≥ θ", "true features × seeds", OWN),
    ("found_chance", "by chance", "The same with every latent turned at random: inside the true span for low-rank ones.", None,
     "true features × seeds", OWN),
    ("found_by_all", "by all", "Share of true features that every seed finds.", None, TRUE, OWN),
    ("found_by_none", "by none", "Share of true features that no seed finds.", None, TRUE, OWN),
    ("found_by", "found by", "Seeds with a latent at cosine θ or more with the true feature.", None, "seeds", OWN),
    ("nearest_latent", "nearest latent", "The seed’s latent with the largest cosine to the true feature, and that cosine.",
     r"\fn{max}_j \fn{cos}(f_i, d_j)", "latents of the seed", OWN),
    ("true_cosine", "best cosine", "Cosine of a true feature with its closest latent, on average.",
     r"\fn{max}_j \fn{cos}(f_i, d_j)", "true features × seeds", OWN),
    ("latents", "latents", "Living latents of the group, all seeds together.", None, "living latents", OWN),
    ("true_energy", "energy in the true span", "Squared cosine with the r dimensions that the low-rank true features share.",
     r"\frac{1}{n} \sum_i \norm{V^T d_i}^2", "rows of the set, mean over seeds", OWN),
    ("true_overlap", "span against the true one", "Overlap of the set’s top r directions with the true span: 1 for the same span.",
     r"\frac{1}{r} \norm{V_r^T V}_F^2", "seeds", OWN),
    ("cross_overlap", "against another seed’s", "Overlap of the sets’ top r directions in two seeds.",
     r"\frac{1}{r} \norm{V_r(s)^T V_r(t)}_F^2", "pairs of seeds", OWN),
    ("cross_energy", "energy of others’ unstable rows", "Squared cosine of other seeds’ unstable rows with the top r directions of "
     "half as many rows of the set.", None, CROSS, OWN),
    ("latent_chance", "by chance", "Match rate with every other seed’s latents turned at random, "
     "low-rank ones inside the true span.",
     None, "latents × other seeds", OWN),
    ("map_cell", "cell of the map", "One ensemble of the map, named by the two settings that vary.", None, "ensembles of the map",
     OWN),
    ("sample_settings", "how samples are made", "How many true features there are, how often each is active, and how strongly.",
     None, "samples", OWN),
    ),
)  # fmt: skip
