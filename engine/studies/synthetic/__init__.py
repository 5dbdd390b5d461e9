"""Data whose true features are known: made, and what SAEs trained on it find of them (METHOD section 7)."""
