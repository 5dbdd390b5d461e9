"""Time and quality at equal L0 of training in lockstep, against other programs that train the seeds one after another."""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from seedscope.engine.activations.harvest import LanguageModel, harvest, load_model, tokenize
from seedscope.engine.bench.harvest import Report
from seedscope.engine.bench.outside import ask_peers, seconds_or_reason
from seedscope.engine.bench.report import BenchLine, interleaved
from seedscope.engine.bench.trainers import load_optimizers
from seedscope.engine.contract.recipe import VARIANTS, TrainConfig
from seedscope.engine.demo import stdlib
from seedscope.engine.saes.sae import SAE
from seedscope.engine.training.ensemble import train_ensemble

PEERS = {"dictionary_learning": "dictionary_learning", "sae_lens": "SAELens", "overcomplete": "overcomplete"}
GOAL = "a sixth of the faster peer's time; at least its EV at its L0"
QUICK_TOKENS, HELD_TOKENS = 2**18, 2**16
QUALITY_TOKENS = 204_800
QUALITY_SEEDS = (0, 1)  # that variants are compared with, and EV at other sparsities is measured on
ROUNDS = 3  # in which TopK is timed in turns with its peers; the other variants are there for their EV
SHORT_ENCODER = 0.1  # as SAELens' TopK begins
STEPS_OF_SPARSITY = (0.7, 1.0, 1.5)  # of k or l1: EV at a peer's L0 is read between them


class BenchRows(NamedTuple):
    """Activations at the embedded study's hook point."""

    train: np.ndarray
    held: np.ndarray


class Quality(NamedTuple):
    """What members reach on held-out rows, on average."""

    l0: float
    ev: float


def lines(*, full: bool, report: Report) -> Iterator[BenchLine]:
    """TopK at the demo's size, and every variant with two seeds; with `full` all of them at the demo's size and tokens."""
    n_tokens = stdlib.STUDY.train.n_tokens if full else QUICK_TOKENS
    rows = activations(load_model(str(stdlib.MODEL_DIR)), n_tokens)
    wanted = recipes(n_tokens, stdlib.STUDY.train.seeds)
    if not full:
        wanted = [wanted[0], *recipes(QUALITY_TOKENS, QUALITY_SEEDS)]
    wanted.append(replace(wanted[1 - full], encoder_scale=SHORT_ENCODER))
    for done, config in enumerate(wanted):
        yield line(config, rows, rounds=1 if done else ROUNDS)
        report(done + 1, len(wanted))


def recipes(n_tokens: int, seeds: tuple[int, ...]) -> list[TrainConfig]:
    """The demo's recipe for every variant; peers are given the same rate and sparsity."""
    changes: dict[str, dict[str, Any]] = {
        "batchtopk": {"lr": 8e-3},
        "matryoshka": {"lr": 8e-3},
        "relu": {"l1": 0.1, "lr": 8e-3},
        "gated": {"l1": 0.1},
    }
    demos = replace(stdlib.STUDY.train, n_tokens=n_tokens, seeds=seeds)
    return [replace(demos, variant=variant, **changes.get(variant, {})) for variant in VARIANTS]


def activations(model: LanguageModel, n_tokens: int) -> BenchRows:
    """BenchRows to train on and rows that no training sees, as float32."""
    corpus = stdlib.load_corpus()
    rows = []
    for texts, wanted in ((corpus.train, n_tokens), (corpus.held_out, HELD_TOKENS)):
        tokens = tokenize(texts, model, n_ctx=stdlib.STUDY.n_ctx, n_tokens=int(1.02 * wanted))
        with tempfile.TemporaryDirectory() as folder:
            rows.append(np.array(harvest(model, tokens, stdlib.STUDY.hookpoint, Path(folder)), np.float32))
    return BenchRows(*rows)


def line(config: TrainConfig, rows: BenchRows, *, rounds: int = 1) -> BenchLine:
    """One variant: ours, the bare encoder products, and every peer that has it; medians of rounds, in turns."""
    load_optimizers()
    taken, answers = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        members = train_ensemble(rows.train, config)
        taken.append(time.perf_counter() - began)
        answers.append(_peers(config, rows))
    ours_s, peers = float(np.median(taken)), answers[-1]
    for name, answer in peers.items():
        if "seconds" in answer:
            answer["seconds"] = float(np.median([each[name]["seconds"] for each in answers if "seconds" in each[name]]))
    trained = {name: answer for name, answer in peers.items() if "seconds" in answer}
    n = len(config.seeds) * (config.n_tokens // config.batch) * config.batch
    own = quality(members, rows.held)
    remarks = [f"{n / ours_s:,.0f} member-tokens/s, EV {own.ev:.4f} at L0 {own.l0:.2f}"]
    others = _sparsities(config, rows, own) if trained else []
    for name, answer in trained.items():
        theirs = Quality(float(np.mean(answer["l0"])), float(np.mean(answer["ev"])))
        ours_ev = at_l0(others, theirs.l0)
        remarks.append(
            f"{PEERS[name]} {answer['version']}: {n / answer['seconds']:,.0f} member-tokens/s, EV {theirs.ev:.4f} at L0 "
            f"{theirs.l0:.2f}, where ours has {ours_ev:.4f}; {answer['seconds'] / ours_s:.1f} x our time"
        )
    scaled = "" if config.encoder_scale == 1 else f", encoder from {config.encoder_scale:g}"
    return BenchLine(
        work=f"training {len(config.seeds)} x {config.d_sae:,} {config.variant}{scaled}, d_in {rows.train.shape[1]}, "
        f"{config.n_tokens:,} tokens each, batch {config.batch}",
        ours_s=ours_s,
        limit="the encoder's product alone",
        limit_s=_limit(config, rows),
        peers_s={PEERS[name]: seconds_or_reason(answer) for name, answer in peers.items()},
        goal=GOAL,
        remark="; ".join(remarks),
    )


@torch.no_grad()
def quality(members: SAE, held: np.ndarray) -> Quality:
    """L0 and explained variance as the SAEs stand for inference, means over members."""
    left, active = torch.zeros((), dtype=torch.float64), 0.0
    x = torch.from_numpy(held)
    for part in x.split(8192):
        codes = members.encode(part)
        left += (part[:, None] - members.decode(codes)).double().pow(2).sum()
        active += float((codes.values > 0).sum())
    whole = (x - x.mean(0)).double().pow(2).sum() * members.n_members
    return Quality(active / len(x) / members.n_members, float(1 - left / whole))


def at_l0(measured: list[Quality], l0: float) -> float:
    """EV at an L0 between those that were measured, linear in log L0; at the nearest beyond them."""
    ordered = sorted(measured)
    return float(np.interp(np.log(l0), np.log([each.l0 for each in ordered]), [each.ev for each in ordered]))


def _sparsities(config: TrainConfig, rows: BenchRows, own: Quality) -> list[Quality]:
    """The same recipe on either side of its sparsity."""
    name = "k" if "k" in config.uses else "l1"
    measured = [own]
    for factor in STEPS_OF_SPARSITY:
        value = getattr(config, name) * factor
        changed = replace(config, seeds=QUALITY_SEEDS, **{name: round(value) if name == "k" else value})
        if getattr(changed, name) != getattr(config, name):
            measured.append(quality(train_ensemble(rows.train, changed), rows.held))
    return measured


def _limit(config: TrainConfig, rows: BenchRows) -> float:
    """Seconds that the encoder's product takes over all steps, measured on some: no step can do without it."""
    x = torch.from_numpy(rows.train[: config.batch])
    encoder = torch.randn(len(config.seeds) * config.d_sae, x.shape[1])
    taken = interleaved({"limit": partial(torch.nn.functional.linear, x, encoder)}, rounds=40)
    return taken["limit"] * (config.n_tokens // config.batch)


def _peers(config: TrainConfig, rows: BenchRows) -> dict[str, dict[str, Any]]:
    """Each peer's answer, one after the other, each in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        spec = asdict(config) | {"group_sizes": config.group_sizes, "threads": torch.get_num_threads()}
        for name, values in rows._asdict().items():
            np.save(folder / f"{name}.npy", values)
            spec[{"train": "rows"}.get(name, name)] = str(folder / f"{name}.npy")
        return ask_peers("trainers.py", PEERS, spec, folder)
