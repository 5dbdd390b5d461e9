"""The embedded study's inputs: a corpus that every Python has, and a small language model trained on it.

`stdlib` reads the corpus (the standard library's source text) and holds the study's settings; `train_model` made the
language model in `model/`. `starts.toml` and `variants.toml` are study files that build on both.

Refuses an interpreter without its standard library's source. Downloads nothing; imports no torch but in `train_model`.
"""
