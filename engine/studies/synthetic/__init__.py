"""Studies of known true features: samples are drawn, SAEs trained on them, and their recovery measured (METHOD section 7).

There is no model and no text; a plan that names either is refused.
"""
