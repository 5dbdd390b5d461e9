"""What each feature of an SAE does and is worth, measured on evaluation tokens.

Activity with contexts and quantiles (activity), the token classes that trigger a feature (triggers), contexts for explainers
(examples), direct logit effects (logits), explained variance under masks (ablation) and next-token loss with reconstructions
in place (loss); `rows` writes them as rows of the contract.

Refuses models without a next-token loss where a loss is asked for, and masks that were not announced to a second pass.
Compares no seeds: that is the room `matching`.
"""
