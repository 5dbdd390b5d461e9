"""Numbers and tokens as every page writes them."""

import math
import re

HIGHLIGHT_STEPS = 20  # alpha levels of the token highlight; each is a CSS class


def percent(value: float, digits: int = 1) -> str:
    """0.01284 -> '1.3 %', with a space that does not break."""
    return f"{100 * value:.{digits}f}\u00a0%"


def density(value: float) -> str:
    """Densities have three decimals in percent, as everywhere in the field."""
    return f"{100 * value:.3f}\u00a0%"


def per_mille(value: float) -> str:
    """A change of explained variance, signed, in thousandths."""
    return f"{1000 * value:+.2f}\u00a0‰"


def millinats(value: float) -> str:
    """A change of next-token loss, signed, in thousandths of a nat per token."""
    return f"{1000 * value:+.3f}\u00a0mnat"


def thousands(value: int) -> str:
    """1043 -> '1,043'."""
    return f"{value:,}"


# Unicode's pictures of what cannot be seen.
_CONTROLS = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {127: 0x2421}


def shown_token(text: str) -> str:
    """Whitespace and control characters made visible: newline, tab, ␀; an empty token as a box."""
    return text.translate(_CONTROLS).replace("\n", "↵\n").replace("\t", "→\t") or "▯"


def known(value: object) -> str:
    """What an import could not know is said to be unknown."""
    return "unknown" if value is None else str(value)


_ARCHITECTURE = {
    "topk": "TopK", "batchtopk": "BatchTopK", "matryoshkabatchtopk": "Matryoshka BatchTopK", "jumprelu": "JumpReLU",
    "relu": "ReLU", "standard": "ReLU", "": "ReLU", "gated": "Gated", "groupmax": "GroupMax",
}  # fmt: skip


def architecture(variant: str, k: int | None) -> str:
    """'topk', 10 -> 'TopK, k = 10'; the libraries' own class names likewise, and what they do not name as it stands."""
    short = re.sub(r"sae$|autoencoder|[_\- ]", "", variant.lower())
    return _ARCHITECTURE.get(short, variant) + (f", k = {k}" if k is not None else "")


def alpha_step(activation: float, largest: float) -> int:
    """Highlight level 0..HIGHLIGHT_STEPS: log10(1 + 9 a / max), one max for all that is compared."""
    if activation <= 0 or largest <= 0:
        return 0
    return max(1, round(HIGHLIGHT_STEPS * math.log10(1 + 9 * min(activation / largest, 1))))
