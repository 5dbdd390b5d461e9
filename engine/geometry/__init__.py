"""How the features of different seeds lie in activation space, beyond matching them one by one.

Spans of sets of features and what they capture of each other (subspaces, measure; projection for any set, asked of the live
engine), what is left of a feature written with features of another member (pursuit), whether a decoder row predicts that
its feature is stable (predictability), and a two-dimensional map of directions (map); `rows` writes them as rows of the
contract.

Refuses single members (all of it compares members), rows without a direction and sets that are too small to fit and
measure. Reads decoder rows and matches alone: no tokens, no model.
"""
