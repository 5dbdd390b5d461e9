"""Numbers and tokens as every page writes them."""

import math

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


def thousands(value: int) -> str:
    """1043 -> '1,043'."""
    return f"{value:,}"


def shown_token(text: str) -> str:
    """Whitespace made visible: newline, tab; an empty token as a box."""
    return text.replace("\r", "␍").replace("\n", "↵\n").replace("\t", "→\t") or "▯"


def alpha_step(activation: float, largest: float) -> int:
    """Highlight level 0..HIGHLIGHT_STEPS: log10(1 + 9 a / max), one max for all that is compared."""
    if activation <= 0 or largest <= 0:
        return 0
    return max(1, round(HIGHLIGHT_STEPS * math.log10(1 + 9 * min(activation / largest, 1))))
