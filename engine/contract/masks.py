"""Sets of features as text for the live engine's messages: one bit per member and feature, in base64. Needs NumPy alone."""

import base64
import binascii

import numpy as np
from jaxtyping import Bool


def packed(masks: Bool[np.ndarray, "members d_sae"]) -> str:
    """Masks as text: each member's bits padded to whole bytes, the first feature in the highest bit, all in base64."""
    return base64.b64encode(np.packbits(masks, axis=1).tobytes()).decode()


def unpacked(text: str, n_members: int, d_sae: int) -> Bool[np.ndarray, "members d_sae"]:
    """The masks that `packed` wrote; raises ValueError where the text is no base64 or holds another number of bytes."""
    try:
        bits = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    except (binascii.Error, ValueError):
        bits = np.empty(0, np.uint8)
    width = -(-d_sae // 8)
    if len(bits) != n_members * width:
        raise ValueError(
            f"found masks of {len(bits)} bytes, expected {n_members} members of {width} bytes each, as base64"
        )
    return np.unpackbits(bits.reshape(n_members, width), axis=1, count=d_sae).astype(bool)
