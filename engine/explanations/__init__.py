"""Texts that explain features, and scores of how well they tell active contexts from silent ones.

Token rules, found by search without a network (rule_search, rules, conditions); explanations by a language model behind an
OpenAI-compatible server (language_model, prompts, chat, answer_log); detection and fuzzing scores (scoring); a study's parts
of explanations (of_study), those of others (imported, exchange), and rows of the contract (rows).

Refuses to score on contexts that the explainer saw, to score with too few contexts of a kind, to ask again what an answer
was paid for, and to write a server's key anywhere. Reads contexts that activity kept: no SAE, no model of the study.
"""
