"""The style sheets keep to one scale of text and one of space: both are custom properties, and nothing else is written."""

import re

import pytest

from seedscope.app.settings import STATIC

SHEETS = sorted(STATIC.glob("*.css"))
SPACES = re.compile(r"(?<![\w-])((?:margin|padding)(?:-\w+)?|(?:row-|column-)?gap)\s*:\s*([^;}]+)")
SIZES = re.compile(r"(?<![\w-])(font-size|font)\s*:\s*([^;}]+)")
ALLOWED_SIZE = re.compile(r"(var\(--text-[\w]+\)(/[\d.]+)?( .*)?|inherit)")
# Not space between things but widths: of the column of an activation's maximum, and of a row's first cell.
WIDTHS = {"56px", "186px"}


def sheet(path):
    return re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.S)


def scale(name):
    """{property: px} of a scale, as the root declares it."""
    return {key: int(px) for path in SHEETS for key, px in re.findall(rf"(--{name}-\w+)\s*:\s*(\d+)px", sheet(path))}


def test_text_has_at_most_seven_sizes_and_none_below_11_px():
    sizes = scale("text")
    assert 4 <= len(sizes) <= 7
    assert list(sizes.values()) == sorted(set(sizes.values()))
    assert min(sizes.values()) >= 11


def test_space_has_eight_steps():
    steps = scale("space")
    assert list(steps) == [f"--space-{i}" for i in range(1, 9)]
    assert list(steps.values()) == sorted(set(steps.values()))


@pytest.mark.parametrize("path", SHEETS, ids=lambda path: path.name)
def test_no_size_of_text_is_written_outside_of_the_scale(path):
    off = [
        f"{name}: {value}" for name, value in SIZES.findall(sheet(path)) if not ALLOWED_SIZE.fullmatch(value.strip())
    ]
    assert not off


@pytest.mark.parametrize("path", SHEETS, ids=lambda path: path.name)
def test_no_space_is_written_outside_of_the_scale(path):
    off = [
        f"{name}: {value}"
        for name, value in SPACES.findall(sheet(path))
        if {length for length in re.findall(r"-?[\d.]+(?:px|r?em|ch|v[wh])", value)} - WIDTHS - {"1px", "-1px"}
    ]
    assert not off


@pytest.mark.parametrize("path", SHEETS, ids=lambda path: path.name)
def test_what_is_used_of_the_scales_is_declared(path):
    used = set(re.findall(r"var\((--(?:text|space)-\w+)\)", sheet(path)))
    assert used <= scale("text").keys() | scale("space").keys()


def test_templates_write_neither():
    for path in (STATIC.parent / "templates").rglob("*.html"):
        for style in re.findall(r'style="([^"]*)"', path.read_text()):
            assert not SIZES.search(style), path
            assert not SPACES.search(style), path
