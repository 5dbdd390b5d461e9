"""The picture that chat programs and social sites show for a shared feature: 1200 x 630 pixels, drawn here."""

from collections.abc import Sequence
from functools import cache
from io import BytesIO
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from seedscope.engine.contract.stability import is_match

SIZE = (1200, 630)
INK, SOFT, GROUND, TRACK, LINE = "#1c1e22", "#5d636c", "#fbfbf9", "#e6e7e9", "#e3e4e6"
COLOURS = {"stable": "#0b6fb8", "middle": "#8a8f96", "unstable": "#d4640a", "dead": "#c9cdd2"}
MARGIN = 70
STRIP_HEIGHT = 200
MOST_BARS = 96

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class SharedFeature(NamedTuple):
    """What the picture says of a feature."""

    title: str  # such as "Feature #37"
    where: str  # its seed, ensemble and study
    bucket: str | None
    cosines: Sequence[float]  # under the rule, one per comparison
    theta: float
    sentence: str  # its matches in words
    about: str | None  # its explanation, else its top tokens; None without activity


def draw_preview(feature: SharedFeature) -> bytes:
    """The picture as PNG."""
    image = Image.new("RGB", SIZE, GROUND)
    draw = ImageDraw.Draw(image)
    colour = COLOURS.get(feature.bucket or "", INK)
    draw.rectangle((0, 0, SIZE[0], 14), fill=colour)
    draw.text((MARGIN, 56), feature.title, INK, _font(64, bold=True))
    draw.text((MARGIN, 136), _fitted(draw, feature.where, _font(30), SIZE[0] - 2 * MARGIN), SOFT, _font(30))
    if feature.bucket:
        font = _font(34, bold=True)
        width = draw.textlength(feature.bucket, font)
        right = SIZE[0] - MARGIN
        draw.rounded_rectangle((right - width - 48, 66, right, 122), 28, fill=colour)
        draw.text((right - width - 24, 72), feature.bucket, "#ffffff", font)
    _draw_strip(draw, feature, colour)
    draw.text((MARGIN, 438), feature.sentence, INK, _font(32))
    if feature.about:
        for i, line in enumerate(_lines(draw, feature.about, _font(30), SIZE[0] - 2 * MARGIN, most=2)):
            draw.text((MARGIN, 490 + 40 * i), line, SOFT, _font(30))
    draw.text((SIZE[0] - MARGIN - draw.textlength("SeedScope", _font(24)), 588), "SeedScope", SOFT, _font(24))
    buffer = BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _draw_strip(draw: ImageDraw.ImageDraw, feature: SharedFeature, colour: str) -> None:
    cosines = list(feature.cosines)
    cosines = sorted(cosines, reverse=True)[:MOST_BARS] if len(cosines) > 32 else cosines
    if not cosines:
        return
    top, bottom = 200, 200 + STRIP_HEIGHT
    step = min((SIZE[0] - 2 * MARGIN) / len(cosines), 110)
    gap = min(14, step / 4)
    for i, (cosine, reaches) in enumerate(zip(cosines, is_match(cosines, feature.theta), strict=True)):
        left, right = MARGIN + i * step, MARGIN + (i + 1) * step - gap
        draw.rectangle((left, top, right, bottom), fill=TRACK)
        height = STRIP_HEIGHT * max(cosine, 0.02)
        draw.rectangle((left, bottom - height, right, bottom), fill=colour if reaches else _paler(colour))
    line, x = bottom - STRIP_HEIGHT * feature.theta, MARGIN
    while x < MARGIN + step * len(cosines) - gap:
        draw.line((x, line, x + 8, line), fill=INK, width=2)
        x += 16


def _paler(colour: str) -> str:
    """42 % of a colour on the track, as the strips of pages show what does not reach theta."""
    mixed = [round(0.42 * int(colour[i : i + 2], 16) + 0.58 * int(TRACK[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{value:02x}" for value in mixed)


def _lines(draw: ImageDraw.ImageDraw, text: str, font: Font, width: float, *, most: int) -> list[str]:
    """The text broken between words into at most so many lines, the last one cut where it is too long."""
    lines, words = [""], text.split()
    for i, word in enumerate(words):
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font) <= width or not lines[-1]:
            lines[-1] = longer
        elif len(lines) < most:
            lines.append(word)
        else:
            lines[-1] = " ".join([lines[-1], *words[i:]])
            break
    return [_fitted(draw, line, font, width) for line in lines]


def _fitted(draw: ImageDraw.ImageDraw, text: str, font: Font, width: float) -> str:
    """A line cut to a width, with an ellipsis where something is lost."""
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "…", font) > width:
        text = text[:-1]
    return text + "…"


@cache
def _font(size: int, *, bold: bool = False) -> Font:
    """DejaVu Sans where the machine has it, for its many scripts; else the font that comes with Pillow."""
    try:
        return ImageFont.truetype("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf", size)
    except OSError:
        return ImageFont.load_default(size)
