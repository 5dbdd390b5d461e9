"""Time of the activity pass, from tokens to contexts, against the bare model and encoder product and against other programs."""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from seedscope.engine.activations.harvest import TokenSet, harvest, load_model, stream, token_texts, tokenize
from seedscope.engine.activations.model import LanguageModel
from seedscope.engine.bench.outside import ask_peers, seconds_or_reason
from seedscope.engine.bench.report import BenchLine, interleaved
from seedscope.engine.demo import stdlib
from seedscope.engine.features.activity import ActivityPass
from seedscope.engine.features.triggers import TokenClasses
from seedscope.engine.saes.encode import encoded
from seedscope.engine.saes.sae import SAE
from seedscope.engine.saes.saelens import save

PEERS = {"sae_dashboard": "SAEDashboard", "delphi": "delphi's cache alone"}
GOAL = "within 1.5 x of the limit"
DASHBOARD_FEATURES = 256  # that SAEDashboard is timed on; all of them would take an hour


Report = Callable[[int, int], None]


class _HarvestWork(NamedTuple):
    model: LanguageModel
    tokens: TokenSet
    hookpoint: str
    saes: SAE
    vocabulary: TokenClasses


def lines(*, report: Report) -> Iterator[BenchLine]:
    """The embedded study's shape, one wide SAE on a model of GPT-2's size, and one SAE that others measure as well."""
    model = load_model(str(stdlib.MODEL_DIR))
    held_out = stdlib.load_corpus().held_out
    tokens = tokenize(held_out, model, n_ctx=stdlib.STUDY.n_ctx, n_tokens=2**17)
    place = stdlib.STUDY.hookpoint
    train = stdlib.STUDY.train
    work = _prepared(model, tokens, place, len(train.seeds), train.d_sae, train.k)
    yield _line(work, "the embedded study")
    report(1, 4)
    large = LanguageModel(GPT2LMHeadModel(GPT2Config(n_layer=8)).eval(), None, "gpt2", "0" * 16, True)
    ids = np.random.default_rng(0).integers(0, large.vocabulary, (64, 128)).astype(np.int32)
    windows = np.arange(len(ids), dtype=np.int32)
    random = TokenSet(ids, windows, np.zeros_like(windows), [str(i) for i in windows], None)
    yield _line(_prepared(large, random, "blocks.7.hook_resid_pre", 1, 16_384, 32), "GPT-2's shape, random weights")
    report(2, 4)
    whole = tokens.only(np.flatnonzero(tokens.counted.sum(1) == tokens.ids.shape[1] - 1)[:512])
    yield _peers_line(_prepared(model, whole, place, 1, 2048, 32), report)


def _prepared(model: LanguageModel, tokens: TokenSet, hookpoint: str, members: int, d_sae: int, k: int) -> _HarvestWork:
    """Members whose rows are activations of the model, so that features fire as trained ones do, more or less."""
    rows = torch.cat(
        [batch.rows for batch in stream(model, tokens.only(np.arange(min(len(tokens.ids), 256))), hookpoint)]
    )
    rng = np.random.default_rng(0)
    mean, decoders = rows.mean(0), []
    for _ in range(members):
        chosen = rows[torch.from_numpy(rng.choice(len(rows), d_sae, replace=len(rows) < d_sae))] - mean
        chosen = chosen + 0.1 * chosen.norm(dim=1, keepdim=True) / rows.shape[1] ** 0.5 * torch.randn(chosen.shape)
        decoders.append(torch.nn.functional.normalize(chosen, dim=1))
    decoder = torch.stack(decoders)
    saes = SAE(
        decoder.transpose(1, 2).contiguous(), torch.zeros(members, d_sae), decoder, mean.expand(members, -1).clone(), k=k,
        seeds=tuple(range(members)),
    )  # fmt: skip
    texts = token_texts(model) if model.tokenizer is not None else [f"<{i}>" for i in range(model.vocabulary)]
    return _HarvestWork(
        model, tokens, hookpoint, saes.requires_grad_(False), TokenClasses(texts, tokens.ids[tokens.counted])
    )


def _ours(work: _HarvestWork) -> None:
    """The work of `seedscope analyze` for activity: activations to disk, codes, firings, contexts and triggers."""
    with tempfile.TemporaryDirectory() as folder:
        rows = harvest(work.model, work.tokens, work.hookpoint, Path(folder))
        activity, positions = ActivityPass(work.saes), np.flatnonzero(work.tokens.counted)
        for first, batch, codes in encoded(work.saes, rows, torch.device("cpu")):
            activity.add(codes, positions[first : first + len(batch)])
        for _ in activity.summaries(work.tokens, vocabulary=work.vocabulary):
            pass


def _limit(work: _HarvestWork) -> None:
    encoder = work.saes.W_enc.transpose(1, 2).reshape(-1, work.saes.d_in)
    for batch in stream(work.model, work.tokens, work.hookpoint):
        torch.nn.functional.linear(batch.rows, encoder)


def _line(work: _HarvestWork, name: str) -> BenchLine:
    taken = interleaved({"ours": partial(_ours, work), "limit": partial(_limit, work)}, rounds=3)
    n, saes = int(work.tokens.counted.sum()), work.saes
    return BenchLine(
        work=f"activity of {saes.n_members} x {saes.d_sae:,} features, d_in {saes.d_in}, k {saes.k}, on {n:,} tokens ({name})",
        ours_s=taken["ours"],
        limit="the bare model up to the hook point and the encoder's product",
        limit_s=taken["limit"],
        goal=GOAL,
        remark=f"{n / taken['ours']:,.0f} tokens/s against {n / taken['limit']:,.0f}",
    )


def _peers_line(work: _HarvestWork, report: Report) -> BenchLine:
    """One SAE, the same windows, by everybody; compared per feature."""
    taken = interleaved({"ours": partial(_ours, work), "limit": partial(_limit, work)}, rounds=3)
    each = taken["ours"] / work.saes.d_sae
    answers = _peers(work)
    report(4, 4)
    remarks = [
        f"{PEERS[name]} {answer['version']}: {answer['seconds'] / answer['features'] / each:.1f} x ours per feature"
        for name, answer in answers.items()
        if "seconds" in answer
    ]
    n = int(work.tokens.counted.sum())
    return BenchLine(
        work=f"activity of one SAE of {work.saes.d_sae:,} features, d_in {work.saes.d_in}, k {work.saes.k}, on {n:,} tokens",
        ours_s=taken["ours"],
        limit="the bare model up to the hook point and the encoder's product",
        limit_s=taken["limit"],
        peers_s={
            f"{PEERS[name]}, {answer.get('features', 0):,} features": seconds_or_reason(answer)
            for name, answer in answers.items()
        },
        goal="a fifth of a peer's time per feature",
        remark="; ".join(remarks),
    )


def _peers(work: _HarvestWork) -> dict[str, dict]:
    """Each peer's answer, one after the other, each in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        work.model.pretrained.save_pretrained(folder / "model")
        save(work.saes, folder / "sae", {"hook_name": work.hookpoint, "model_name": "embedded"})
        np.save(folder / "tokens.npy", work.tokens.ids)
        block = int(work.hookpoint.split(".")[1])
        spec = {
            "model": str(folder / "model"), "tokenizer": str(stdlib.MODEL_DIR / "tokenizer.json"),
            "sae": str(folder / "sae"), "tokens": str(folder / "tokens.npy"),
            "scratch": str(folder / "cache"), "hookpoint": work.hookpoint, "module": f"model.layers.{block}.self_attn",
            "dashboard_features": DASHBOARD_FEATURES,
        }  # fmt: skip
        return ask_peers("peers.py", PEERS, spec, folder)
