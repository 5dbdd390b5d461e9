"""A study as plain files: whole, within the folder, no larger than promised, and never over files of others."""

import base64
import gzip
import json
import re
from decimal import Decimal
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from starlette.testclient import TestClient

from seedscope.app.routes.feature.contexts import ShownContext
from seedscope.app.site.make import MARK, make_site
from seedscope.app.site.packing import data_file, shortened
from seedscope.app.site.records import short_activation, short_cosine
from seedscope.app.site.texts import Texts
from seedscope.engine.contract.stability import is_match
from support.studies import ENSEMBLE, LISTED, STUDY

MOST_MB = 5.0  # per 1,000 features


def unpacked(content: bytes) -> Any:
    """What a data file hands over, read with the standard library's own decoders."""
    name, packed = re.fullmatch(r'siteData\("([^"]+)","([^"\\]+)"\);\n', content.decode()).groups()
    assert re.fullmatch(r"[\w/-]+", name)
    return json.loads(gzip.decompress(base64.b85decode(packed)))


def data(site: Path, name: str) -> Any:
    return unpacked((site / "s" / ENSEMBLE / "data" / f"{name}.js").read_bytes())


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [
            value for name, value in attrs if value and name in ("href", "src", "action", "data-plain", "data-gl")
        ]


def test_no_link_leads_out_of_the_folder_or_to_a_file_that_is_not_there(site_folder: Path):
    pages = sorted(site_folder.rglob("*.html"))
    assert {page.relative_to(site_folder).as_posix() for page in pages} >= {
        "index.html", "methods.html", "weights.html",
        *(f"s/{ENSEMBLE}/{name}.html" for name in ("index", "features", "feature", "members", "buckets", "ablation")),
    }  # fmt: skip
    for page in pages:
        reader = Links()
        reader.feed(page.read_text())
        assert reader.found
        for link in reader.found:
            parts = urlsplit(unescape(link))
            if parts.scheme not in ("http", "https") and parts.path:
                target = (page.parent / unquote(parts.path)).resolve()
                is_bundle = target.name.startswith("plotly")  # named on every page, loaded by those with figures
                assert target.is_relative_to(site_folder), (page, link)
                assert target.is_file() or is_bundle, (page, link)


def test_nothing_is_left_that_only_a_server_answers(site_folder: Path):
    for page in site_folder.rglob("*.html"):
        text = page.read_text()
        assert not re.search(r'<form(?![^>]*(method="dialog"|search-form|id="filters"))', text), page
        assert not re.search(r'(htmx|lists|suggest|density)(\.min)?\.js"', text), page
        assert text.count("<code>seedscope serve</code>") >= 1, page


def test_every_feature_is_there_with_the_values_of_its_page(site_folder: Path, client: TestClient, address: str):
    about, total = data(site_folder, "about"), 0
    for member in about["seeds"]:
        for i, first in enumerate(about["chunks"][member["seed"]]):
            records = data(site_folder, f"features-{member['seed']}-{i}")
            assert records[0]["feature"] == first
            total += len(records)
            for record in records[::8]:
                twin = client.get(f"{address}/{member['seed']}/{record['feature']}.json").json()
                assert member["sae_digest"] == twin["sae_digest"]
                for name in record.keys() & twin.keys() - {"matches", "contexts"}:
                    assert record[name] == shortened(twin[name]), name
                assert len(record["contexts"]) == len(twin["contexts"])
                for short, match in zip(record["matches"], twin["matches"], strict=True):
                    assert (short[0], short[1]) == (str(match["seed"]), match["rule_partner"])
                    assert short[2] == shortened(match["rule_cosine"])
                    assert bool(short[4] & 1) == match["matched"]
    assert total == client.get(f"{address}/features/page.json?id={LISTED}").json()["total"]


def test_lines_of_the_table_are_those_of_the_dashboard(site_folder: Path, client: TestClient, address: str):
    columns, tokens = data(site_folder, "rows-0"), data(site_folder, "row-tokens")["tokens"]
    rows = client.get(f"{address}/features/page.json?sort=feature&limit=500&id={LISTED}").json()["rows"]
    by_place = {(str(row["seed"]), row["feature"]): row for row in rows}
    assert len(columns["seed"]) == len(by_place)
    for i, place in enumerate(zip(columns["seed"], columns["feature"], strict=True)):
        row = by_place[place]
        for name in columns.keys() & row.keys() - {"seed", "cosines", "top_tokens"}:
            assert columns[name][i] == shortened(row[name]), (place, name)
        assert columns["cosines"][i] == pytest.approx(row["cosines"], abs=0.00051)
        assert [tokens[token] for token in columns["top_tokens"][i]] == row["top_tokens"]


def test_the_card_is_one_that_a_hub_reads(site_folder: Path, client: TestClient):
    _, front, body = (site_folder / "README.md").read_text().split("---\n", 2)
    settings = yaml.safe_load(front)
    assert settings["sdk"] == "static"
    assert (site_folder / settings["app_file"]).is_file()
    assert len(settings["short_description"]) <= 60
    assert all(re.fullmatch("[a-z-]+", tag) for tag in settings["tags"])
    assert "license" not in settings  # nobody told
    html = MarkdownIt("commonmark").enable("table").render(body)
    assert html.count("<tr>") == 2
    shares = client.get("/index.json").json()["studies"][0]["listed"][0]["shares"]
    assert f"<td>{100 * shares['stable']:.1f}\u00a0%</td>" in html


def test_it_is_as_small_as_promised(site_folder: Path):
    size = sum(path.stat().st_size for path in (site_folder / "s" / ENSEMBLE / "data").iterdir())
    assert size / 1e6 / (96 / 1000) <= MOST_MB


# -- refusals and replacing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filter", "says"),
    [("bucket=wobbly", "wobbly"), ("bucket", "NAME=VALUE"), ("sort=density", "sort"), ("density_min=1&density_max=0", "finds none"),
     ("colour=red", "colour"), ("seed=77", "77"), ("theta=7", "theta")],
)  # fmt: skip
def test_a_filter_that_cannot_be_used_says_so_and_leaves_nothing(
    study_root: Path, tmp_path: Path, filter: str, says: str
):
    with pytest.raises(ValueError, match=says):
        make_site(study_root, STUDY, tmp_path / "out", filter=filter)
    assert list(tmp_path.iterdir()) == []


def test_a_study_that_is_not_there_is_named(study_root: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"elsewhere.*small"):
        make_site(study_root, "elsewhere", tmp_path / "out")


def test_a_folder_of_others_is_never_replaced(study_root: Path, tmp_path: Path):
    own = tmp_path / "out"
    own.mkdir()
    (own / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds other files"):
        make_site(study_root, STUDY, own)
    assert (own / "thesis.tex").read_text() == "years of work"


@pytest.mark.slow
def test_a_site_is_replaced_as_a_whole(study_root: Path, tmp_path: Path):
    own = tmp_path / "out"
    made = make_site(study_root, STUDY, own, filter="id=3")
    (own / "left-over.html").touch()
    again = make_site(study_root, STUDY, own, filter="id=3")
    assert (made.n_files, made.n_bytes) == (again.n_files, again.n_bytes)
    assert not (own / "left-over.html").exists()
    assert json.loads((own / MARK).read_text())["filter"] == "id=3"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# -- what data files are made of -----------------------------------------------------------------------------------

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False)
)
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(values)
def test_a_data_file_hands_over_what_it_was_given(value: Any):
    assert unpacked(data_file("any-name", value)) == value


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_single_precision_survives_shortening(value: float):
    assert np.float32(shortened(value)) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
@example(float(np.finfo(np.float32).smallest_normal))
def test_double_precision_keeps_nine_digits(value: float):
    with np.errstate(over="ignore"):
        is_single = float(np.float32(value)) == value
    assert (
        np.float32(shortened(value)) == value
        if is_single
        else shortened(value) == pytest.approx(value, rel=1e-8, abs=0)
    )


@given(st.integers(-(10**6), 10**6), st.integers(0, 7), st.integers(-3, 3), st.sampled_from([np.float32, np.float64]))
@example(525, 3, -1, np.float32)
def test_shortening_rounds_no_number_to_another_side(digits: int, behind: int, steps: int, kind: type):
    value = kind(digits / 10**behind)
    for _ in range(abs(steps)):
        value = np.nextafter(value, kind(np.sign(steps) * np.inf))
    short = shortened(float(value))
    for decimals in range(-Decimal(str(short)).as_tuple().exponent + 1):
        assert f"{short:.{decimals}f}" == f"{float(value):.{decimals}f}"


texts = st.lists(st.text(min_size=1, max_size=3), min_size=4, max_size=40)


@given(texts, st.data())
def test_texts_give_back_every_window(document: list[str], draw: st.DataObject):
    held, windows = Texts(), []
    for name in ("a.py", "b.py", "a.py"):
        other = document if name == "a.py" else document[::-1]
        for _ in range(3):
            start = draw.draw(st.integers(0, len(other) - 2))
            tokens = other[start : draw.draw(st.integers(start + 1, len(other)))]
            context = ShownContext(0, tokens, [0.0] * len(tokens), name, 100 + start, 0)
            windows.append((held.add(context), name, tokens))
    index, blocks = held.index(), held.blocks()
    documents = [document for block in blocks for document in block]
    for window, name, tokens in windows:
        assert index["documents"][window.document] == name
        begin, characters = [each for each in documents[window.document] if each[0] <= window.start][-1]
        shown = characters[window.start - begin :][: window.length]
        codes = [ord(each) - (0x800 if ord(each) >= 0xE000 else 0) - 0x30 for each in shown]
        assert [index["tokens"][code] for code in codes] == tokens


def test_two_documents_of_one_name_do_not_mix():
    held = Texts()
    first, second = (held.add(ShownContext(0, [text, "b"], [0.0, 0.0], "same.py", 5, 0)) for text in ("a", "c"))
    assert first.document != second.document
    assert held.index()["documents"] == ["same.py", "same.py"]


cosines = st.floats(-1, 1, width=32)


@given(cosines, cosines | st.sampled_from([0.7, 0.85, 0.0]))
def test_a_short_cosine_reads_the_same_and_stays_on_its_side_of_theta(cosine: float, theta: float):
    short = short_cosine(cosine, theta)
    assert f"{short:.2f}" == f"{cosine:.2f}"
    assert is_match([short], theta)[0] == is_match([cosine], theta)[0]


@given(st.floats(0, 1e6, width=32, exclude_min=True))
def test_a_short_activation_reads_the_same(activation: float):
    short = short_activation(activation)
    assert short > 0
    assert (f"{short:.3f}", f"{short:.2f}") == (f"{activation:.3f}", f"{activation:.2f}")
