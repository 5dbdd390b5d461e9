"""Entries on activity, reconstruction and loss, explanations, and what a study stands on."""

from seedscope.app.glossary.entry import OWN, Entry, section

TOKENS = "evaluation tokens"
FIRINGS = "evaluation tokens on which the feature is active"
LOSS_TOKENS = "the evaluation tokens that losses are measured on"
VOCABULARY = "tokens of the vocabulary"
MASKED_MEAN = "seeds; where features are drawn at random, draws"

ENTRIES: tuple[Entry, ...] = (
    *section(
    "activity",
    ("density", "density", "Share of the evaluation tokens on which the feature is active.",
     r"\frac{n_{\text{active}}}{n_{\text{tokens}}}", TOKENS, "A"),
    ("n_active", "active tokens", "How many tokens the feature is active on.", r"n_{\text{active}}", TOKENS, "common"),
    ("max_activation", "max activation", "The largest activation, in units of the decoder row’s length.",
     r"\fn{max}_t a_i(t) \norm{d_i}", FIRINGS, OWN),
    ("mean_activation", "mean activation", "Mean activation where the feature is active, in units of the decoder row’s length.",
     r"\frac{1}{n_{\text{active}}} \sum_t a_i(t) \norm{d_i}", FIRINGS, OWN),
    ("activation_quantile", "quantile of activations", "The activation below which that share of the feature’s activations lie, "
     "where it is active.", None, FIRINGS, OWN),
    ("entropy", "token-type entropy", "How spread the feature’s firings are over token types, in bits: 0 is one type alone.",
     r"− \sum_v q_v \fn{log}_2 q_v", FIRINGS, OWN),
    ("top_share", "share of the top token type", "Share of the feature’s firings that fall on its most frequent token type.",
     r"\fn{max}_v q_v", FIRINGS, OWN),
    ("top_tokens", "top tokens", "The token types that the feature fires on most often.", None, FIRINGS, OWN),
    ("tokens_in_common", "top tokens in common",
     "How alike the two features’ most frequent token types are: those of both over those "
     "of either (Jaccard).", r"\frac{|A ∩ B|}{|A ∪ B|}", "top token types of the two features", OWN),
    ("contexts_in_common", "strongest contexts in common",
     "How many of the two features’ strongest contexts peak on the same token of "
     "the same document.", None, "stored contexts of the two features", OWN),
    ("trigger", "trigger", "What most firings have in common, as far as tokens show it; the share says of how many firings.",
     None, FIRINGS, OWN),
    ("decoder_norm", "decoder norm", "Length of the decoder row as stored.", r"\norm{d_i}", None, "common"),
    ("l0", "L0", "Features that are active on a token, on average.", r"\frac{1}{T} \sum_t |a(t)|_0", TOKENS, "common"),
    ("logit", "direct logit effect (unscaled)", "How much the feature raises or lowers the logit of a next token by itself: its "
     "decoder row, times the final norm’s weights, times the unembedding; the norm’s own division is left out.",
     r"(d_i ⊙ γ) W_U", None, OWN),
    ("logit_count", "tokens by logit effect", "How many tokens of the vocabulary the feature affects by so much, and their share.",
     None, VOCABULARY, OWN),
    ("logit_mean", "mean logit effect", "Mean of the direct logit effects on all tokens; a shift of all logits alike changes "
     "no prediction.", r"\frac{1}{V} \sum_v ℓ_v", VOCABULARY, "common"),
    ("logit_sd", "spread of logit effects", "Standard deviation of the direct logit effects on all tokens.",
     r"σ = \sqrt{\text{mean}((ℓ − μ)^2)}", VOCABULARY, "common"),
    ("logit_skewness", "skewness of logit effects", "How lopsided the effects are: above 0, few tokens are raised far; below 0, "
     "few are lowered far.", r"\frac{\text{mean}((ℓ − μ)^3)}{σ^3}", VOCABULARY, "common"),
    ("logit_kurtosis", "excess kurtosis of logit effects", "How heavy the tails are: 0 as for a normal distribution; large where "
     "the feature singles out few tokens.", r"\frac{\text{mean}((ℓ − μ)^4)}{σ^4} − 3", VOCABULARY, "common"),
    ("max_here", "max here", "The feature’s largest activation on this text.", r"\fn{max}_t a_i(t) \norm{d_i}",
     "tokens of the text", OWN),
    ("n_here", "tokens", "Tokens of this text on which the feature is active.", None, "tokens of the text", OWN),
    ("strength_here", "max here", "The shared span’s largest strength on this text: the norm of what its members in the seed write "
     "inside the span.", r"\fn{max}_t \norm{\sum_i a_i(t) P d_i}", "tokens of the text", OWN),
    ("raw_here", "raw, max here", "The largest norm of what lies in the span of the activation itself, as the SAE reads it, less "
     "its decoder bias: whoever writes it.", r"\fn{max}_t \norm{P (x_t − b)}", "tokens of the text", OWN),
    ("span_tokens_here", "tokens", "Tokens of this text on which any member of the span in the seed is active.", None,
     "tokens of the text", OWN),
    ),
    *section(
    "worth",
    ("ev", "EV", "Explained variance: how much of the activations’ variance the reconstruction explains, at most 1.",
     r"1 − \frac{\sum_t \norm{x_t − \hat{x}_t}^2}{\sum_t \norm{x_t − \text{mean}(x)}^2}", TOKENS, OWN),
    ("worth_ev", "marginal EV", "Explained variance that is lost when this feature alone is masked, exact; in thousandths.",
     r"\frac{\sum_t (2 a_i r·d_i + a_i^2 \norm{d_i}^2)}{\sum_t \norm{x_t − \text{mean}(x)}^2}", TOKENS, OWN),
    ("worth_loss", "loss added, first order", "Next-token loss that masking this feature alone adds, to first order, in "
     "thousandths of a nat per token.", r"− \frac{1}{T} \sum_t a_i d_i · \frac{∂L}{∂\hat{x}}", LOSS_TOKENS, OWN),
    ("mask", "removed features",
     "Which features’ activations are set to zero after the activation function; TopK is not run again.",
     r"a_i → 0", None, OWN),
    ("n_masked", "n removed", "Features removed from each SAE; N is a seed’s number of stable features or a quarter of its "
     "unstable ones, whichever is smaller.", r"N = \fn{min}(n_{\text{stable}}, ⌊n_{\text{unstable}} / 4⌋)", "mean over seeds", OWN),
    ("draws", "draws", "Random choices of the removed features that a mean is over; 1 where nothing is random.",
     None, "draws per seed", OWN),
    ("ev_masked", "EV, features removed", "Explained variance that is left with these features removed.", None, MASKED_MEAN, OWN),
    ("ev_lost", "EV lost", "Explained variance of the whole SAE less that with the features removed.",
     r"\text{EV} − \text{EV}_{\text{removed}}", MASKED_MEAN, OWN),
    ("loss", "next-token loss", "Cross-entropy of the next token with the reconstruction in place of the activations, in nats per "
     "token.", r"− \frac{1}{T} \sum_t \fn{log} P(v_{t+1})", LOSS_TOKENS, "common"),
    ("loss_added", "loss added", "Next-token loss with the features removed, less that of the whole reconstruction.",
     r"L_{\text{removed}} − L_{\text{spliced}}", LOSS_TOKENS, OWN),
    ("loss_own", "own loss", "Next-token loss of the model itself, nothing put in the activations’ place.",
     r"L_{\text{own}}", LOSS_TOKENS, "common"),
    ("loss_spliced", "spliced", "Next-token loss with the SAE’s reconstruction in place of the activations.",
     r"L_{\text{spliced}}", LOSS_TOKENS, "common"),
    ("loss_zero", "zeros", "Next-token loss with zeros in place of the activations.", r"L_{\text{zero}}", LOSS_TOKENS, "common"),
    ("loss_recovered", "loss recovered", "How much of what zeros cost the reconstruction wins back.",
     r"\frac{L_{\text{zero}} − L_{\text{spliced}}}{L_{\text{zero}} − L_{\text{own}}}", LOSS_TOKENS, "common"),
    ("n_loss_tokens", "loss tokens", "Tokens that the losses are means over.", None, LOSS_TOKENS, OWN),
    ("sd", "SD", "Standard deviation of the number beside it, over what the column’s name or the card says: seeds, pairs or draws.",
     None, "seeds, pairs of seeds or draws", "common"),
    ("fewest_most", "fewest – most", "The smallest and the largest number of features removed from one seed.", None, "seeds", OWN),
    ),
    *section(
    "explanations",
    ("explanation", "explanation", "A short text about the feature with the explainer that made it: a token rule, found by search, "
     "or a language model.", None, None, "A"),
    ("score", "score", "Balanced accuracy: how well the explanation tells contexts that hold the feature from others, in documents "
     "that its explainer did not see; 0.5 is knowing nothing.",
     r"\frac{1}{2} (\text{share of active recognised} + \text{share of silent recognised})",
     "up to 50 active and 50 silent contexts", OWN),
    ("score_chance", "chance level", "The level that 95 % of scores with shuffled labels stay below.", None,
     "200 shufflings of the contexts’ labels", OWN),
    ("above_chance", "above chance", "Share of scored explanations whose score is higher than their own chance level.",
     None, "scored explanations of the bucket", OWN),
    ("mean_score", "mean score", "Mean score of the features at that stability.", None, "scored features", OWN),
    ("n_explained", "explained", "Features that have a text by this explainer.", None, "features of the bucket", OWN),
    ("n_failed", "failed", "Features without a text, or with too few contexts or answers to score: a failure, never a low score.",
     None, "features of the bucket", OWN),
    ("n_scored", "scored", "Features whose explanation has a score.", None, "features of the bucket", OWN),
    ("control_score", "the control’s score", "Median score in the ensemble that repeats the recipe on a model with random weights, "
     "or in the one whose control this is.", None, "scored features of that ensemble", "A"),
    ("word_share_stable", "share, stable", "Share of stable features’ explanations that hold the word or the kind of rule, with a "
     "95 % Clopper–Pearson interval.", None, "explained stable features", OWN),
    ("word_share_unstable", "share, unstable", "Share of unstable features’ explanations that hold the word or the kind of rule, "
     "with a 95 % Clopper–Pearson interval.", None, "explained unstable features", "A"),
    ("word_difference", "difference, points", "Share among unstable less share among stable explanations, in percentage points, "
     "with a 95 % bootstrap interval over seeds.", r"q_{\text{unstable}} − q_{\text{stable}}", "explained features; seeds", OWN),
    ),
    *section(
    "buckets",
    ("stable_above_unstable", "stable > unstable", "How often a stable feature has more of it than an unstable one, ties counted "
     "half: 0.5 says nothing. With a 95 % bootstrap interval over seeds.",
     r"P(x_{\text{stable}} > x_{\text{unstable}}) + \frac{1}{2} P(=)", "features compared; seeds", OWN),
    ("trigger_share", "share with this trigger", "Share of the bucket’s features that fire by this kind of trigger.",
     None, "features of the bucket", OWN),
    ("trigger_ratio", "unstable / stable", "Share of the trigger among unstable features over its share among stable ones, with a "
     "95 % bootstrap interval over seeds.", r"\frac{q_{\text{unstable}}}{q_{\text{stable}}}", "features of the two buckets", OWN),
    ("bucket_median", "median by bucket", "Median of the quantity over the features of the bucket; below it the quartiles and "
     "their "
     "number.", None, "features of the bucket that are compared", OWN),
    ("density_bin", "density (bin centre)", "The middle of a bin of densities on a log scale.", None, TOKENS, OWN),
    ),
    *section(
    "data",
    ("training_tokens", "training tokens", "Tokens that each SAE was trained on, repeats included.", None, "tokens per seed",
     "common"),
    ("measured_on", "measured on", "Tokens that count in every number about activity; those of outlying norm are left out.",
     None, TOKENS, OWN),
    ("evaluation_tokens", "evaluation tokens", "Held-out tokens of the study that count, under its token policy.",
     None, "tokens", OWN),
    ("token_position", "tokens", "Tokens that each SAE had seen at that point of its training.", None, "tokens per seed", "common"),
    ("first_order_rank", "rank", "Place of the feature among the features of its seed, the largest first.", None,
     "features of the seed", OWN),
    ),
)  # fmt: skip
