"""Definitions written out densely in plain NumPy, for tests to compare with. Nothing of the project is imported here."""

import numpy as np


def topk_codes(x, W_enc, b_enc, b_dec, k):
    """Dense activations (tokens, d_sae): relu of the k largest of (x - b_dec) @ W_enc + b_enc, zero elsewhere."""
    pre = (x - b_dec) @ W_enc + b_enc
    largest = np.argsort(-pre, axis=1, kind="stable")[:, :k]
    codes = np.zeros_like(pre)
    np.put_along_axis(codes, largest, np.maximum(np.take_along_axis(pre, largest, 1), 0), 1)
    return codes


def explained_variance(x, x_hat):
    """1 - sum ||x - x_hat||^2 / sum ||x - mean(x)||^2."""
    return 1 - ((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()


def unit_rows(rows):
    """Rows divided by their L2 norm."""
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)
