"""The generated study is a study and not noise, and `bench serve` measures every page of it; never how fast."""

import sqlite3
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from seedscope.engine.bench import generated_features, generated_spans, generated_study, peer_datasette, serve
from seedscope.engine.bench.generated_study import ENSEMBLE, StudySize, context_groups
from seedscope.engine.bench.generated_texts import N_TOKENS, TokenVocabulary, token_vocabulary
from seedscope.engine.bench.load import Plan, ask_load, carry_out
from seedscope.engine.bench.requests import Requests
from seedscope.engine.contract.names import words
from seedscope.engine.contract.schema import NO_MATCH, TABLES
from seedscope.engine.contract.stability import buckets, count_matches, count_on_grid
from seedscope.engine.contract.tables import explanations, shared_spans
from seedscope.engine.contract.tables.features import Ablation, Context, Feature, Match, NullMatch, Pair
from seedscope.engine.contract.tables.spans import FeatureSpan, SpanCurve, SpanMember, SpanPair, SpanResidual
from seedscope.engine.contract.tables.study import Token
from seedscope.engine.store.database import StoreReader

SIZE = StudySize(n_members=3, d_sae=128)


@pytest.fixture(scope="module")
def vocabulary() -> TokenVocabulary:
    return token_vocabulary()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("generated")


@pytest.fixture(scope="module")
def store(root) -> Path:
    return generated_study.generated_study(root, SIZE)


@pytest.fixture(scope="module")
def reader(store) -> Iterator[StoreReader]:
    with StoreReader(store) as opened:
        yield opened


# -- the generated study -----------------------------------------------------------------------------------------


def test_the_same_settings_find_the_same_store_and_others_make_another(root, store, tmp_path):
    assert generated_study.generated_study(root, SIZE, report=pytest.fail) == store
    again = generated_study.generated_study(tmp_path, SIZE)
    assert again.name == store.name  # a digest of the content
    assert generated_study.generated_study(tmp_path, StudySize(n_members=3, d_sae=128, n_contexts=2)).name != store.name


@pytest.mark.parametrize("size", [StudySize(1, 128), StudySize(3, 8)])
def test_a_study_too_small_for_pages_is_refused(size, tmp_path):
    with pytest.raises(ValueError, match="expected at least 2 members of 32 features"):
        generated_study.generated_study(tmp_path, size)


def test_stability_is_bimodal_and_density_goes_with_it(tmp_path):
    with StoreReader(generated_study.generated_study(tmp_path, StudySize(12, 768, 1, 0))) as reader:
        rows = reader.table(Feature, ("dead", "density", "cosines"))
    cosines = np.stack(rows["cosines"].to_numpy())
    dead = rows["dead"].to_numpy(zero_copy_only=False)
    n_matched = count_matches(cosines)
    names = buckets(n_matched, 11, dead)
    share = {name: (names == name).mean() for name in ("stable", "middle", "unstable", "dead")}
    assert share["stable"] == pytest.approx(1 / 3, abs=0.06)
    assert share["unstable"] == pytest.approx(1 / 2, abs=0.06)
    assert share["dead"] == pytest.approx(0.08, abs=0.02)
    density = rows["density"].to_numpy()
    assert (density[dead] == 0).all()
    assert 1e-6 <= density[~dead].min() < 1e-4 < 1e-2 < density[~dead].max() <= 0.31
    assert np.corrcoef(np.log(density[~dead]), n_matched[~dead])[0, 1] > 0.3
    matched = cosines >= 0.7
    assert np.median(cosines[matched]) == pytest.approx(0.91, abs=0.03)
    assert 0.3 < np.median(cosines[~matched]) < 0.5


def test_cosines_are_what_the_rules_really_give(reader):
    features = {(row.seed, row.feature): row for row in reader.rows(Feature)}
    matches = {(row.seed, row.feature): row for row in reader.rows(Match)}
    n_mutual = 0
    for (seed, feature), match in matches.items():
        others = [other for other in range(3) if other != seed]
        row = features[seed, feature]
        for slot, other in enumerate(others):
            partner = match.partners[slot]
            theirs = matches[other, partner]
            back = theirs.partners[seed - (seed > other)]
            assert row.mutual_cosines[slot] == (row.cosines[slot] if match.mutuals[slot] else NO_MATCH)
            assert row.live_cosines[slot] <= row.cosines[slot]
            assert not features[other, match.live_partners[slot]].dead
            if match.mutuals[slot]:
                n_mutual += 1
                assert back == feature
                assert features[other, partner].cosines[seed - (seed > other)] == row.cosines[slot]
    assert 0.3 < n_mutual / (len(matches) * 2) < 0.8


def test_pairs_count_what_the_features_hold(reader):
    rows = reader.table(Feature, ("dead", "cosines", "live_cosines"), seed=1)
    living = ~rows["dead"].to_numpy(zero_copy_only=False)
    for rule, column in (("argmax", "cosines"), ("live", "live_cosines")):
        cosines = np.stack(rows[column].to_numpy()).T
        for pair, own in zip(reader.rows(Pair, rule=rule, seed=1), cosines, strict=True):
            assert pair.matched == count_on_grid(own).tolist()
            assert pair.matched_living == count_on_grid(own[living]).tolist()
            assert pair.mean_cosine == pytest.approx(own.mean(), abs=1e-6)


def test_members_of_several_blocks_hold_together(tmp_path, monkeypatch):
    for module in (generated_features, generated_spans, generated_study):
        monkeypatch.setattr(module, "BLOCK", 64)
    size = StudySize(n_members=3, d_sae=160, context_features=70)
    with StoreReader(generated_study.generated_study(tmp_path, size)) as reader:
        assert reader.table(Context)["feature"].to_numpy().max() <= 69
        matches = {(row.seed, row.feature): row for row in reader.rows(Match)}
        assert len(matches) == 3 * 160
        for (seed, feature), match in matches.items():
            for slot, other in enumerate(each for each in range(3) if each != seed):
                assert match.partners[slot] // 64 == feature // 64
                if match.mutuals[slot]:
                    assert matches[other, match.partners[slot]].partners[seed - (seed > other)] == feature
        cosines = np.stack(reader.table(Feature, ("cosines",), seed=1)["cosines"].to_numpy()).T
        matched = [row.matched for row in reader.rows(Pair, rule="argmax", seed=1)]
        assert matched == count_on_grid(cosines).tolist()


def test_words_are_those_of_the_explanations(reader):
    texts = reader.rows(explanations.Explanation)
    expected = {(word, row.seed, row.feature) for row in texts if row.text for word in words(row.text)}
    stored = [(row.word, row.seed, row.feature) for row in reader.rows(explanations.Word)]
    assert stored == sorted(expected)
    lengths = [len(row.text.split()) for row in texts if row.text]
    assert 5 <= np.mean(lengths) <= 10
    assert any(row.failure and row.text is None for row in texts)


def test_tokens_are_readable_all_different_and_frequent_ones_come_first(reader, vocabulary):
    assert [row.text for row in reader.rows(Token)] == vocabulary.texts
    assert len(set(vocabulary.texts)) == N_TOKENS
    top = np.concatenate([row.top_token_ids[:1] for row in reader.rows(Feature) if not row.dead])
    assert np.quantile(top, 0.25) < 600  # half of the logarithm of the ranks is far below half of the ranks
    assert all(len(set(ids)) == 5 for row in reader.rows(Feature) if -1 not in (ids := row.top_token_ids))


def test_contexts_show_a_top_token_at_their_peak_and_come_in_groups(reader):
    assert context_groups(50)[0].tolist() == np.repeat(range(7), [20, *[5] * 6]).tolist()
    assert context_groups(8)[1].tolist()[:3] == [0, 1, 2]
    features = {row.feature: row for row in reader.rows(Feature, seed=2)}
    for row in reader.rows(Context, seed=2):
        feature = features[row.feature]
        assert not feature.dead
        if row.group == 6:
            assert max(row.activations) == 0
        else:
            assert row.activations[row.peak] > 0
            assert row.token_ids[row.peak] in feature.top_token_ids


def test_every_table_that_pages_read_has_rows(reader):
    filled = {table for table in TABLES if len(reader.table(table))}
    assert {
        Ablation,
        FeatureSpan,
        SpanCurve,
        SpanPair,
        SpanMember,
        SpanResidual,
        NullMatch,
        explanations.Score,
        *shared_spans.SORT_KEYS,
    } < filled
    assert reader.contradictions() == []
    masks = {row.mask for row in reader.rows(Ablation)}
    assert {"none", "N stable", "4N unstable", "N matched to stable", "stable", "matched to unstable"} < masks
    assert any(row.x is not None for row in reader.rows(FeatureSpan))


# -- the load generator ------------------------------------------------------------------------------------------


def test_addresses_do_not_repeat_and_are_the_same_every_time(vocabulary):
    drawn = [Requests(SIZE, vocabulary) for _ in range(2)]
    paths = [[path for kind in requests.kinds for path in requests.draw(kind, 20)] for requests in drawn]
    assert paths[0] == paths[1]
    assert len(set(paths[0])) == len(paths[0]) > 200
    again = drawn[0].draw("feature", 20)
    assert not set(again) & set(paths[0])


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = b'<a href="/next?x=1&amp;after=2">next</a>' if "next" not in self.path else b"last"
        self.server.asked.append(self.path)
        self.send_response(503 if "busy" in self.path else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def answers() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_every_address_is_asked_once_links_are_followed_and_refusals_counted(answers):
    load = ask_load(Plan("127.0.0.1", answers.server_port, ["/a", "/busy", "/b"], seconds=5, n_next=1))
    assert answers.asked == ["/a", "/next?x=1&after=2", "/busy", "/b", "/next?x=1&after=2"]
    assert (load.failed, load.first_failed, len(load.seconds)) == ({"503": 1}, "/busy", 4)
    assert load.raw_bytes == load.wire_bytes


def test_people_pause_between_clicks(answers):
    plan = Plan("127.0.0.1", answers.server_port, [f"/{i}" for i in range(100)], n_clients=4, pause_s=0.2, seconds=0.5)
    load = carry_out(plan)
    assert 8 <= len(load.seconds) <= 12  # 4 people, 0.5 s, a click in 0.2 s


# -- the measurements --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lines(root, store, tmp_path_factory) -> list[serve.BenchLine]:
    effort = serve.Effort(n_alone=1, alone_s=5, n_people=3, pause_s=0.3, people_s=0.4, n_connections=2, saturated_s=0.3)
    patch = pytest.MonkeyPatch()
    patch.setattr(peer_datasette, "command", lambda: None)
    try:
        return list(serve.lines(SIZE, root=root, peer="datasette", effort=effort))
    finally:
        patch.undo()


def test_every_page_is_measured_and_none_fails(lines, vocabulary):
    work = [line.work for line in lines]
    kinds = Requests(SIZE, vocabulary).kinds
    first = work.index("table, 3 x 128")
    assert [line.split(", 3 x 128")[0] for line in work[first : first + len(kinds)]] == list(kinds)
    assert [line.remark for line in lines if "failed" in line.remark] == []
    assert all(line.ours_s for line in lines if not line.figure)
    table = lines[first]
    assert table.p99_s >= table.ours_s > 0 < table.limit_s


def test_memory_weight_and_rate_are_figures_of_their_own(lines):
    numbers = {name: value for line in lines for name, value in line.numbers.items()}
    assert numbers["resident_bytes"] >= numbers["anonymous_bytes"] > 0
    assert numbers["raw_bytes"] > numbers["gzipped_bytes"] > 0
    assert numbers["pages_per_s"] > 0


def test_publishing_and_disk_are_those_of_the_store_that_was_written(lines, store):
    numbers = {name: value for line in lines for name, value in line.numbers.items()}
    assert numbers["store_bytes"] == store.stat().st_size
    assert numbers["index_bytes"] > 0 < numbers["add_s"]
    assert numbers["publish_s"] > 0 < numbers["peak_bytes"]


def test_a_peer_that_is_not_there_is_said(lines):
    assert [line.peers_s for line in lines if line.peers_s] == [{"datasette": "not installed"}] * 6


def test_another_peer_is_refused():
    with pytest.raises(ValueError, match="expected datasette"):
        next(serve.lines(SIZE, peer="redis"))


def test_the_peer_gets_the_same_rows(store, root, reader):
    file = peer_datasette.sqlite_of(store, SIZE, root)
    connection = sqlite3.connect(file)
    try:
        rows = connection.execute(
            "SELECT seed, feature, n_matched, bucket, trigger FROM features ORDER BY seed, feature"
        ).fetchall()
        # Datasette sends what an address says as text.
        as_text = "SELECT count(*) FROM features WHERE seed = '1' AND density >= '0' AND density <= '1e0'"
        assert connection.execute(as_text).fetchone() == (128,)
    finally:
        connection.close()
    expected = []
    for row in reader.rows(Feature, ensemble=ENSEMBLE):
        n_matched = int(count_matches(row.cosines))
        bucket = str(buckets(np.array(n_matched), 2, np.array(row.dead)))
        expected.append((row.seed, row.feature, n_matched, bucket, row.trigger))
    assert rows == expected
    assert peer_datasette.sqlite_of(store, SIZE, root) == file
