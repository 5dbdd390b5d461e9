"""A shared feature: what its link says to sites that unfurl it, and the picture that they show."""

from dataclasses import replace
from functools import partial
from io import BytesIO
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from seedscope.app.figures.preview import COLOURS, SIZE, SharedFeature, draw_preview
from seedscope.app.routes.feature.preview import about
from seedscope.app.store.studies import Studies
from support.reading import parsed
from support.studies import ENSEMBLE, STUDY


def picture(content: bytes) -> np.ndarray:
    """(height, width, 3) of the PNG."""
    return np.asarray(Image.open(BytesIO(content)).convert("RGB"))


def n_pixels(shown: np.ndarray, colour: str) -> int:
    return int((shown == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(-1).sum())


@pytest.fixture
def meta(client, address):
    """{property: content} of a feature's page."""

    def read(feature: int, query: str = "") -> dict[str, str]:
        tags = parsed(client.get(f"{address}/0/{feature}{query}").text).select("meta[property], meta[name]")
        return {tag.get("property") or tag["name"]: tag["content"] for tag in tags}

    return read


@pytest.mark.parametrize("query", ["", "?theta=0.5&epsilon=0.3&rule=mutual"])
def test_title_text_and_picture_are_of_the_page_under_its_lens(client, address, meta, query):
    for feature in (3, 5, 17):
        data, tags = client.get(f"{address}/0/{feature}.json{query}").json(), meta(feature, query)
        assert tags["og:title"] == f"Feature #{feature} of topk-96, seed 0: {data['bucket']}"
        assert f"{data['n_matched']} of 3 other seeds match at θ = {data['theta']:.2f}" in tags["og:description"]
        image = urlsplit(tags["og:image"])
        assert image.netloc
        answer = client.get(f"{image.path}?{image.query}")
        assert answer.headers["content-type"] == "image/png"
        shown = picture(answer.content)
        assert shown.shape == (SIZE[1], SIZE[0], 3)
        assert n_pixels(shown, COLOURS[data["bucket"]]) > 14 * SIZE[0]


def test_bars_are_as_high_as_cosines_and_solid_where_they_match():
    shown = picture(draw_preview(SharedFeature("Feature #1", "seed 0", "stable", (0.9, 0.5, 0.2), 0.7, "1 of 3", None)))
    bars = [shown[200:400, 70 + 110 * i + 10] for i in range(3)]
    filled = [int((bar != [230, 231, 233]).any(-1).sum()) for bar in bars]
    assert filled[0] == pytest.approx(0.9 * 200, abs=4)
    assert filled[1] == pytest.approx(0.5 * 200, abs=6)  # the dashed line at theta may cross the track
    assert filled[2] == pytest.approx(0.2 * 200, abs=6)
    assert [n_pixels(bar[None], COLOURS["stable"]) > 30 for bar in bars] == [True, False, False]


def test_long_texts_and_many_seeds_stay_inside_the_picture():
    words = "any token after “" + "word " * 80
    plain = SharedFeature("Feature #1", "seed 0", "middle", [0.5] * 95, 0.7, "0 of 95", words)
    shown = picture(draw_preview(plain))
    assert (shown[20:, -40:] == [251, 251, 249]).all()


def test_without_an_explanation_it_names_the_tokens_that_there_are(study_root):
    store = Studies(study_root).get(STUDY)
    few = next(
        row
        for row in map(partial(store.feature, ENSEMBLE, 0), range(96))
        if any(i >= 0 for i in row.top_token_ids) and -1 in row.top_token_ids
    )
    n_tokens = sum(i >= 0 for i in few.top_token_ids)
    assert about(store, replace(few, explanation=None)).count("“") == n_tokens
    assert about(store, replace(few, explanation=None, top_token_ids=[-1] * 5)) is None


def test_the_picture_is_kept_until_the_store_changes(client, address):
    first = client.get(f"{address}/0/5/preview.png")
    assert client.get(f"{address}/0/5/preview.png", headers={"If-None-Match": first.headers["etag"]}).status_code == 304


def test_the_embed_code_frames_the_permalink(client, address):
    page = parsed(client.get(f"{address}/0/5?theta=0.5").text)
    link, frame = page.select_one("[data-copy]")["data-copy"], page.select_one("[data-copy-embed]")["data-copy-embed"]
    assert frame == f"{link}&embed=true"
    assert not parsed(client.get(frame).text).select(".tab-row")
