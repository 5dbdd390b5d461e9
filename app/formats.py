"""Numbers and tokens as every page writes them."""

import math
import re
from datetime import UTC, datetime

from markupsafe import Markup, escape

HIGHLIGHT_STEPS = 20  # alpha levels of the token highlight; each is a CSS class


def percent(value: float, digits: int = 1) -> str:
    """0.01284 -> '1.3 %', with a space that does not break."""
    return f"{100 * value:.{digits}f}\u00a0%"


def optional_percent(value: float | None, digits: int = 1) -> str:
    """As `percent`; a dash for what is not known."""
    return "–" if value is None else percent(value, digits)


def points(value: float) -> str:
    """A difference of shares, signed, in percentage points."""
    return f"{100 * value:+.1f}"


def density(value: float) -> str:
    """Densities have three decimals in percent, as everywhere in the field."""
    return f"{100 * value:.3f}\u00a0%"


def per_mille(value: float) -> str:
    """A change of explained variance, signed, in thousandths."""
    return f"{1000 * value:+.2f}\u00a0‰"


def millinats(value: float) -> str:
    """A change of next-token loss, signed, in thousandths of a nat per token."""
    return f"{1000 * value:+.3f}\u00a0mnat"


def short(value: float) -> str:
    """Three significant digits without a power of ten: 0.0000123 -> '0.0000123', 46.0 -> '46', 12345 -> '12,345'."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    digits = max(2 - math.floor(math.log10(abs(value))), 0)
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def count_or_mean(value: float) -> str:
    """How many: a count without decimals, a mean of counts with one."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def thousands(value: int) -> str:
    """1043 -> '1,043'."""
    return f"{value:,}"


def duration(seconds: float) -> str:
    """7.4 -> '7 s', 95 -> '1 min 35 s', 8000 -> '2 h 13 min'."""
    minutes, rest = divmod(max(round(seconds), 0), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def moment(unix_s: float) -> str:
    """Seconds since 1970 -> '2026-03-01 14:05 UTC'."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M UTC")


def recipe_remark(anchor: int | None, n_comparisons: int, seed: int) -> str | None:
    """What the stability of a seed's features means where one member's recipe is not the others'; None where it is."""
    if anchor is None:
        return None
    if seed == anchor:
        return (
            f"Recipe differs: a feature of the anchor, a public SAE. p counts {n_comparisons} comparisons that were trained here "
            "by another recipe, on other text and for another length: what none of them has may be missing for that alone."
        )
    return (
        f"Recipe differs: this seed was trained here to compare seed {anchor} with, a public SAE of another recipe, text and "
        f"length; that anchor is one of the {n_comparisons} that p counts."
    )


def differing_recipe(anchor: int, n_comparisons: int) -> str:
    """What stability means in an ensemble of which one member's recipe is not the others'."""
    return (
        f"Recipe differs: seed {anchor} is a public SAE, the {n_comparisons} others were trained here to compare it with, by "
        f"another recipe, on other text and for another length. Of a feature of seed {anchor}, p counts comparisons of "
        f"another recipe; of a comparison’s feature, one of the {n_comparisons} counts is the anchor."
    )


# Unicode's pictures of what cannot be seen.
_CONTROLS = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {127: 0x2421}


def shown_token(text: str) -> str:
    """Whitespace and control characters made visible: ⏎, tab, ␀; an empty token as a box."""
    return text.translate(_CONTROLS).replace("\n", "⏎\n").replace("\t", "→\t") or "▯"


def with_code(text: str) -> Markup:
    """A sentence as HTML: what stands between backticks is code."""
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 else escape(part)
        for index, part in enumerate(text.split("`"))
    )


def counted(number: int, noun: str) -> str:
    """A number with its noun in the right form: 1 seed, 5 seeds."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def shown_on_one_line(text: str) -> str:
    """As `shown_token`, without the line breaks themselves."""
    return shown_token(text).replace("\n", "")


def hit_runs(text: str, q: str, *, before: int | None = None) -> list[tuple[str, bool]]:
    """A text in runs, each with whether a search for words finds it; the last word may be a beginning (`app.store.search`).

    `before`: at most so many characters stand in front of the first hit, for where there is room for one line.
    """
    words = [rf"\b{re.escape(word)}\b" for word in re.findall(r"\w+", q.lower())]
    if not words:
        return [(text, False)]
    if not q[-1:].isspace():
        words[-1] = words[-1].removesuffix(r"\b")
    runs = re.split(f"({'|'.join(words)})", text, flags=re.IGNORECASE)
    if before is not None and len(runs) > 1 and len(runs[0]) > before:
        tail = runs[0][len(runs[0]) - before :]
        runs[0] = "…" + tail[tail.find(" ") + 1 :]  # from a word's beginning
    return [(run, bool(i % 2)) for i, run in enumerate(runs) if run]


def known(value: object) -> str:
    """What an import could not know is said to be unknown."""
    return "unknown" if value is None else str(value)


_ARCHITECTURE = {
    "topk": "TopK", "batchtopk": "BatchTopK", "matryoshkabatchtopk": "Matryoshka BatchTopK",
    "matryoshka": "Matryoshka BatchTopK", "archetypal": "Archetypal TopK", "relaxedarchetypal": "Relaxed archetypal TopK",
    "jumprelu": "JumpReLU", "relu": "ReLU", "standard": "ReLU", "": "ReLU", "gated": "Gated", "groupmax": "GroupMax",
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
