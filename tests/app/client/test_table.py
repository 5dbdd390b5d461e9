"""The feature table of a notebook: what it asks the store, from the side of the kernel."""

import sys

import pytest
import traitlets

import seedscope
from support.studies import ENSEMBLE, STUDY, members_that_agree, publish_study


@pytest.fixture
def ensemble(study_root):
    return seedscope.open(study_root)[STUDY][ENSEMBLE]


def places(rows: list[dict]) -> list[tuple[int, int]]:
    return [(row["seed"], row["feature"]) for row in rows]


def test_pages_are_those_of_the_table_in_its_order(ensemble):
    asked = {"theta": 0.6, "epsilon": 0.2}
    widget = ensemble.table(**asked, page_size=50)
    for bucket, sort, descending in (
        (None, "stability", True),
        ("unstable", "density", False),
        ("dead", "feature", True),
    ):
        widget.bucket, widget.sort, widget.descending = bucket, sort, descending
        filters = {"bucket": bucket} if bucket else {}
        whole = ensemble.features(**asked, **filters, sort=sort, descending=descending).to_pylist()
        assert widget.total == len(whole)
        shown = []
        for page in range(-(-len(whole) // 50)):
            widget.page = page
            shown += widget.rows
        assert places(shown) == places(whole)
        for row, expected in zip(shown, whole, strict=True):
            same = ("bucket", "stability", "n_matched", "n_comparisons", "density", "explanation")
            assert {name: row[name] for name in same} == {name: expected[name] for name in same}
            feature = ensemble.feature(row["seed"], row["feature"], **asked) if row is shown[0] else None
            assert feature is None or (row["low"], row["high"]) == pytest.approx(
                (feature.stability_low, feature.stability_high)
            )


def test_another_bucket_begins_at_its_first_page_and_counts_stay(ensemble):
    widget = ensemble.table(page_size=10)
    counts = dict(widget.counts)
    assert sum(counts.values()) == widget.total == 4 * 96
    widget.page = 10**6
    assert (widget.page, len(widget.rows)) == (38, 4)
    widget.bucket = "stable"
    assert (widget.page, widget.total, widget.counts) == (0, counts["stable"], counts)


def test_what_is_not_there_is_refused(ensemble, tmp_path):
    widget = ensemble.table(page_size=10)
    for name, value in (("bucket", "stabel"), ("sort", "colour"), ("page", -1)):
        with pytest.raises(traitlets.TraitError):
            setattr(widget, name, value)
    with pytest.raises(ValueError, match="page_size is 0"):
        ensemble.table(page_size=0)
    with pytest.raises(ValueError, match="filters are colour"):
        ensemble.table(colour="red")
    members = members_that_agree()
    publish_study(tmp_path, "mixed", {"five": (members, {}), "alone": (members.only(1), {})})
    study = seedscope.open(tmp_path)["mixed"]
    plain = study["five"].table(seed=1)
    assert plain.sorts == ["stability", "feature"]  # the others need activity
    assert {row["seed"] for row in plain.rows} == {1}
    assert {row["density"] for row in plain.rows} == {None}
    alone = study["alone"].table().rows[0]
    assert (alone["stability"], alone["low"], alone["strip"]) == (None, None, "")


def test_without_anywidget_the_way_out_is_told(ensemble, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "seedscope.widget", raising=False)
    with pytest.raises(
        ImportError, match=r"the table needs anywidget; install it with: pip install 'seedscope\[notebook\]'"
    ):
        ensemble.table()
