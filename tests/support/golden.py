"""Definitions written out densely in plain NumPy and SciPy, for tests to compare with. Nothing of the project is imported here."""

import numpy as np
from scipy.special import logsumexp


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


def plan_of(cosines, epsilon, sweeps=3000):
    """The plan of entropic transport with uniform marginals and cost 1 - cosine: Sinkhorn in the log domain on the dense matrix."""
    (n, m), logits = cosines.shape, cosines.astype(np.float64) / epsilon
    v = np.zeros(m)
    for _ in range(sweeps):
        u = -logsumexp(logits + v, axis=1) - np.log(n)
        v = -logsumexp(logits + u[:, None], axis=0) - np.log(m)
    return np.exp(logits + u[:, None] + v)


def relu_codes(pre):
    """Dense activations (tokens, d_sae) from pre-activations: relu."""
    return np.where(pre > 0, pre, 0)


def jumprelu_codes(pre, threshold, inclusive):
    """relu where the pre-activation is above its feature's threshold, or at it where `inclusive`."""
    return np.where((pre >= threshold) if inclusive else (pre > threshold), relu_codes(pre), 0)


def gated_codes(inputs, W_enc, b_enc, r_mag, b_mag):
    """relu of inputs @ (W_enc * exp(r_mag)) + b_mag where inputs @ W_enc + b_enc > 0."""
    return np.where(inputs @ W_enc + b_enc > 0, relu_codes(inputs @ (W_enc * np.exp(r_mag)) + b_mag), 0)


def groupmax_codes(pre, k):
    """relu of the largest pre-activation in each of k groups of neighbours, zero elsewhere."""
    codes = np.zeros_like(pre)
    size = pre.shape[1] // k
    for token in range(len(pre)):
        for group in range(k):
            best = group * size + np.argmax(pre[token, group * size : (group + 1) * size])
            codes[token, best] = max(pre[token, best], 0)
    return codes


def normalised_forward(x, tensors, c):
    """(dense activations, reconstruction) of one member under any convention `c`, whatever its architecture."""
    t, x = tensors, x * c.input_scale
    inputs, scale, shift = x, 1, 0  # and how the reconstruction goes back
    if c.normalize == "layer_norm":
        mean, std = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
        inputs, shift = (x - mean) / (std + 1e-5), mean
        scale = std + 1e-5 if c.layer_norm_eps_out else std
    elif c.normalize == "centre":
        shift = x.mean(1, keepdims=True)
        inputs = x - shift
    elif c.normalize == "constant_norm_rescale":
        factor = np.sqrt(x.shape[1]) / np.linalg.norm(x, axis=1, keepdims=True)
        inputs, scale = x * factor, 1 / factor
    inputs = inputs - t["b_dec"] if c.subtract_b_dec else inputs
    pre, W_dec = inputs @ t["W_enc"] + t["b_enc"], t["W_dec"]
    if c.architecture == "relu":
        codes = relu_codes(pre)
    elif c.architecture == "jumprelu":
        codes = jumprelu_codes(pre, t["threshold"], c.inclusive)
    elif c.architecture == "gated":
        codes = gated_codes(inputs, t["W_enc"], t["b_enc"], t["r_mag"], t["b_mag"])
    elif c.architecture == "groupmax":
        codes = groupmax_codes(pre, c.k)
    else:
        norms = np.linalg.norm(W_dec, axis=1) if c.rescale_by_decoder_norm else 1
        codes = topk_codes(inputs, t["W_enc"] * norms, t["b_enc"] * norms, 0, c.k)
        W_dec = W_dec / np.maximum(np.linalg.norm(W_dec, axis=1), 1e-300)[:, None] if np.ndim(norms) else W_dec
    return codes, ((codes @ W_dec + t["b_dec"]) * scale + shift) / c.input_scale
