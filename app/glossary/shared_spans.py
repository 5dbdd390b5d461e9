"""Entries on small spans that unstable features share over seeds."""

from seedscope.app.glossary.entry import OWN, Entry, section

SEEDS = "seeds that were left out in turn"
DRAWS = "draws of the null, all seeds"

ENTRIES: tuple[Entry, ...] = (
    *section(
        "shared-spans",
        ("span_candidate", "candidate", "A community of unstable features of several seeds that write each other with few "
         "features; kept as a shared span where it beats every null.", None, "unstable living features of all seeds", OWN),
        ("span_kept", "kept", "Candidates that beat every null after correction for their number, and that most searches without a "
         "seed find again.", None, "candidates", OWN),
        ("span_rank", "rank", "Directions of the span: as many as separate a seed’s members best from its other unstable "
         "features, in the span of the other seeds’ members.", None, None, OWN),
        ("span_members", "members", "Unstable features of all seeds that are in the candidate; a feature is in one at most.", None,
         None, OWN),
        ("span_n_seeds", "seeds", "Seeds with at least one member.", None, None, OWN),
        ("span_sharing", "sharing", "Seeds with members whose own test passes every null: what was found without the seed "
         "captures more of it than chance.", None, SEEDS, OWN),
        ("span_energy", "captured energy", "Mean squared cosine of a left-out seed’s features nearest to the span with the span "
         "as found without that seed, as many features as the candidate has per seed; mean over seeds.",
         r"\frac{1}{m} \sum_i \norm{V^T d_i}^2", SEEDS, OWN),
        ("span_seed_energy", "captured", "The same of one seed: no feature of it has seen the span that it is measured on.",
         r"\frac{1}{m} \sum_i \norm{V^T d_i}^2", "the seed’s m unstable features nearest to the span", OWN),
        ("span_null_living", "random living features", "Null: the span of as many random living features of the same seeds, at "
         "the same rank.", None, DRAWS, OWN),
        ("span_null_density", "random living, same density", "Null: the same, each member replaced by a living feature of about "
         "its density.", None, DRAWS, OWN),
        ("span_null_rotated", "rotated dictionary", "Null: the left-out seed’s unstable features rotated at random as a whole.",
         None, DRAWS, OWN),
        ("span_null_second_moment", "same second moment", "Null: Gaussian rows of the second moment of the left-out seed’s "
         "unstable features in their place.", None, DRAWS, OWN),
        ("span_null_high", "99 % quantile", "What 99 % of a null’s draws stay below, of this seed and candidate alone; the test "
         "corrects for the number of candidates.", None, "draws of the null", OWN),
        ("span_p", "p", "Largest of the nulls’ p, each corrected for the number of candidates and joined over seeds; at most "
         "0.01 for a kept span, 1 where it is mostly not found again.", None, "draws and seeds", OWN),
        ("span_seed_p", "p of the seed", "The same of one seed: share of draws whose largest statistic over all candidates "
         "reaches this one’s.", None, "draws of the null", OWN),
        ("span_found_again", "found again", "Seeds without which the search finds the candidate again: a community whose members "
         "it shares by half or more.", None, SEEDS, OWN),
        ("span_stability", "Jaccard", "Members that are found again, as a share of those of either search, the left-out seed not "
         "counted; mean over seeds.", r"\frac{|M ∩ M'|}{|M ∪ M'|}", SEEDS, OWN),
        ("span_share", "share of energy", "Of the activation energy of all unstable features, the part inside this span as the "
         "other seeds’ members fit it; where activity is unknown, features are weighed alike.",
         r"\frac{\sum_i E_i \norm{V^T d_i}^2}{\sum_j E_j}", "seeds with unstable features", OWN),
        ("span_shared", "in shared spans", "The share of unstable features’ energy that lies inside any kept span; 95 % interval "
         "from a bootstrap over seeds.", None, "seeds with unstable features", OWN),
        ("span_member_share", "carried by members", "Share of unstable features’ energy that the members of kept spans carry, "
         "inside their span or not.", None, "seeds with unstable features", OWN),
        ("span_chance_share", "by chance", "What as many random spans of the same ranks hold of the same features’ energy.", None,
         None, OWN),
        ("span_searched", "searched", "Unstable living features of all seeds that were searched.", None, None, OWN),
        ("span_links", "links", "Pairs of features of two seeds, each of which is in the other’s expansion.", None, None, OWN),
        ("span_failed", "candidates", "Candidates that are not kept, by what speaks most against them.", None, None, OWN),
        ("span_seed_rank", "rank without it", "Directions of the span that is found without the seed.", None, None, OWN),
        ("span_pair_energy", "captured", "Mean squared cosine of one seed’s features nearest to it with the span of another "
         "seed’s members alone.", r"\frac{1}{m} \sum_i \norm{V_s^T d_i}^2", "the m nearest features", OWN),
        ("span_pair_overlap", "overlap", "How far two seeds’ own spans are one: 1 where the smaller lies in the larger.",
         r"\frac{1}{r} \norm{V_s^T V_t}_F^2", None, "common"),
        ("span_feature_energy", "in the span", "Squared cosine of a member with the span of the other seeds’ members.",
         r"\norm{V^T d_i}^2", None, OWN),
        ("span_carried", "carries", "Share of a seed’s unstable features’ activation energy that the member carries.", None,
         "the seed’s unstable features", OWN),
        ("span_place", "principal directions", "Coordinates of a member’s unit decoder row on the span’s first two principal "
         "directions.", None, None, OWN),
        ("span_strength", "strength", "Norm of what the span’s members together write inside the span on a token.",
         r"\norm{\sum_i a_i P d_i}", "members of one seed", OWN),
        ("span_token_share", "share", "Of the span’s squared strength over all tokens and seeds, what falls on the token.", None,
         "evaluation tokens of all seeds", OWN),
        ("span_token_active", "occurrences", "Occurrences of the token on which any member is active, all seeds together.", None,
         "evaluation tokens of all seeds", OWN),
        ("span_axis_energy", "along it", "Share of the members’ energy along a principal direction.", None, "members of all seeds",
         OWN),
        ("span_ev", "EV without the span", "Explained variance with all members of the span masked, mean over seeds.", None,
         "evaluation tokens, seeds with members", OWN),
        ("span_ev_control", "EV without as many others", "Explained variance with as many living features of about the same "
         "densities masked; ± is the standard deviation over draws.", None, "draws and seeds", OWN),
        ("span_loss_whole", "loss", "Next-token loss with the reconstruction in place, nothing masked, nats per token; mean over "
         "seeds.", None, "some windows of the evaluation tokens, seeds with members", OWN),
        ("span_loss", "loss without the span", "The same, all members masked.", None,
         "the same tokens, seeds with members", OWN),
        ("span_loss_control", "loss without as many others", "The same with the sets masked that EV is compared with; ± is the "
         "standard deviation over draws.", None, "draws and seeds", OWN),
        ("span_active_from", "active", "Where an explanation takes the span as active: the root mean square of its strengths over "
         "seeds is above 0 or, where more than a quarter of contexts would be, at least what a quarter of them reach.",
         r"\sqrt{\frac{1}{S} \sum_s \norm{\sum_i a_i P d_i}^2}", "contexts of 16 tokens", OWN),
    ),
)  # fmt: skip
