"""Which sources are URLs, and that no secret in one gets anywhere."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedscope.engine.contract.urls import hidden, on_this_machine, url_in, whole_source

SECRETS = [
    "s3://AKIAKEY:sEcReT@bucket/sae", "s3://sEcReT@bucket", "gs://bucket/x.npy?X-Goog-Signature=sEcReT",
    "s3://bucket/x?a=b&sig=sEcReT", "https://u:sEcReT@host/x", "ftp://host/x?sEcReT",
]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "url"),
    [
        ("s3://bucket/runs/seed0/", "s3://bucket/runs/seed0"), ("gs://b", "gs://b"), ("memory://a/*.txt", "memory://a/*.txt"),
        (Path("s3://bucket/x"), "s3://bucket/x"), ("runs/seed0", None), ("/runs/seed0", None), ("hf:owner/repo/x", None),
        ("hf://owner/repo", None), ("public:name/x", None), ("file:///x", None), (Path("s3:x"), None),
    ],
)  # fmt: skip
def test_urls_are_told_from_paths_and_names_on_a_hub(source, url):
    assert url_in(source) == url


@pytest.mark.parametrize("source", ["ftp://host/x", "zip://a::s3://b/c.zip", "s3://", "s3:///"])
def test_what_cannot_be_fetched_is_refused_with_what_can(source):
    with pytest.raises(ValueError, match="expected"):
        url_in(source)


@pytest.mark.parametrize("source", SECRETS)
def test_a_url_with_a_secret_is_refused_without_repeating_it(source):
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the whole text is looked at
        url_in(source)
    assert "sEcReT" not in str(refused.value)
    assert "sEcReT" not in hidden(f'[[x]] source = ["{source}", 1] and {source}')


@given(
    user=st.from_regex(r"[A-Za-z0-9:+._-]{1,30}", fullmatch=True),
    query=st.from_regex(r"[\w=&%.+/-]{1,40}", fullmatch=True),
)
def test_nothing_of_user_and_query_stays_in_a_text(user, query):
    text = hidden(f"see s3://{user}@bucket/file?{query} there")
    assert text == "see s3://***@bucket/file?*** there"


def test_a_relative_source_stands_below_its_folder_and_a_file_url_is_its_path():
    assert whole_source("corpus/*.txt", Path("/here")) == "/here/corpus/*.txt"
    assert [whole_source(each, Path("/here")) for each in ("s3://b/x", "hf:n", "/x", "~/x", "file:///x")] == [
        "s3://b/x", "hf:n", "/x", "~/x", "/x",
    ]  # fmt: skip
    assert on_this_machine("file:///a/b") == "/a/b"
