"""The badge of an SAE or a feature: a word, a number and the number of seeds, as a small SVG for other sites."""

from dataclasses import dataclass

LIGHT_DARK = {  # (ground, ink) in light and in dark, as the pills of pages have them in static/app.css
    "stable": (("#e1effa", "#07568f"), ("#12314a", "#9fd0f5")),
    "middle": (("#ececee", "#4d5259"), ("#33373d", "#c9cdd3")),
    "unstable": (("#fdebdd", "#9c4703"), ("#47280f", "#ffbd8a")),
    "dead": (("#f1f2f3", "#5d636c"), ("#26292e", "#a9aeb6")),
}
NEUTRAL = (("#eeebfb", "#5b4bd6"), ("#2a2648", "#a99efc"))  # of what is no bucket
NO_OTHER_SEED = "no other seed"
_AROUND = 14  # pixels beside a text
_SIZE, _BOLD, _USUAL = 11, 1.1, 0.63  # of the font in pixels, of bold letters to plain ones, of a letter to the size
# Widths of other letters, about those of the fonts that the badge names first; `textLength` then fits any font into them.
_LETTERS = {0.29: "ijl", 0.33: " .·", 0.39: "ft", 0.42: "r", 0.52: "cs", 0.84: "<>w", 0.97: "m"}
_WIDTHS = {letter: width for width, letters in _LETTERS.items() for letter in letters}


@dataclass(frozen=True)
class Badge:
    """What the badge says; lengths in pixels."""

    label: str
    value: str
    title: str  # all of it in a sentence, for those who hover and who hear
    light: tuple[str, str]  # ground and ink
    dark: tuple[str, str]

    @property
    def lengths(self) -> tuple[int, int]:
        """Of the two texts, the second of which is bold."""
        label, value = (sum(_WIDTHS.get(letter, _USUAL) for letter in text) for text in (self.label, self.value))
        return round(_SIZE * label), round(_SIZE * _BOLD * value)

    @property
    def widths(self) -> tuple[int, int]:
        """Of the two parts."""
        label, value = self.lengths
        return label + _AROUND, value + _AROUND


def make_badge(label: str, value: str, title: str, bucket: str | None = None) -> Badge:
    """A badge in the colours of a bucket; in a neutral one without."""
    light, dark = LIGHT_DARK.get(bucket or "", NEUTRAL)
    return Badge(label, value, title, light, dark)


def written_share(p: float) -> str:
    """A share with two digits; what is not quite 0 or 1 is not written as if it were."""
    if 0 < p < 0.005:
        return "<0.01"
    return ">0.99" if 0.995 <= p < 1 else f"{p:.2f}"


def written_seeds(n: int) -> str:
    """So many seeds."""
    return f"{n} seed" if n == 1 else f"{n} seeds"
