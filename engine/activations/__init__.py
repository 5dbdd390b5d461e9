"""From text and a language model to activations on disk, the input of everything else.

Documents are read and cut into windows of token ids (documents, tokens), a transformers model is loaded and checked (model,
model_files), a hook point is resolved to a module (hookpoints), its activations are recorded (harvest, shards) and
positions with an outlying norm are found (outliers).

Refuses what would fail or mislead later: models that transformers does not know, encoder-decoders and code from a model's
folder; hook points without one row per token; ids outside the vocabulary; activations that are not finite. Knows nothing of
SAEs.
"""
