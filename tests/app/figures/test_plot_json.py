"""Figures as JSON in an attribute: nothing breaks out of it, and only long lists lose digits that nobody sees."""

import json
from html.parser import HTMLParser

from seedscope.app.figures.drawing import pair_links
from seedscope.app.figures.plot_json import FEW, plot_json


def test_what_stands_in_an_attribute_is_what_was_written():
    plot = {
        "data": [{"text": ["<b>'\"&amp;", "θ ≥ 1", None, True], "y": [0.1 + 0.2, 12, 1 / 3]}],
        "layout": {"a": 2 / 3},
    }
    seen = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: seen.append((tag, dict(attributes)))  # type: ignore[method-assign]
    parser.feed(f"<div data-figure='{plot_json(plot)}' id=last></div>")
    assert [(tag, set(attributes)) for tag, attributes in seen] == [("div", {"data-figure", "id"})]
    assert json.loads(seen[0][1]["data-figure"]) == plot


def test_long_lists_hold_six_digits_and_whole_counts():
    many = [1 / 3, 123_456_789.0, 1e-9 / 3, 7] * FEW
    assert json.loads(plot_json({"y": many}))["y"][:4] == [0.333333, 123_456_789.0, 3.33333e-10, 7]
    assert json.loads(plot_json({"z": [many, many]}))["z"][1][0] == 0.333333


def test_cells_of_a_matrix_open_pairs_under_the_parameters_of_their_page():
    meta = pair_links("/s/a/b/members?theta=0.6", [3, 10]).meta()
    assert meta["base"] + meta["rows"][0] + meta["columns"][1] == "/s/a/b/members?theta=0.6&a=3&b=10"
    assert not meta["diagonal"]
