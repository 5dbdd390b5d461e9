"""Dictionaries, SAEs and models that stay on the device, and the answers computed from them.

Answers are nearest features, matched pairs, activations and spans on a text, exact losses, direct logits and projections of sets.

The unit rows of all members lie one below the other in ONE matrix. Neighbours of a feature are a product of that matrix with
one vector, which is worth exactly one read of it; queries that wait together share the read. Scores of a few members exist
at a time, and the k largest of a member lie in the k groups with the largest maxima: two searches among few, none among all.
"""

import math
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from seedscope.engine.activations.model import LanguageModel
from seedscope.engine.activations.model_files import local_folder, n_parameters, weight_files
from seedscope.engine.contract.names import NAME_PATTERN
from seedscope.engine.contract.published import published
from seedscope.engine.contract.queries import LiveAnswer, LiveQuery
from seedscope.engine.contract.schema import PAIR_RULES
from seedscope.engine.geometry.projection import FittedSpans
from seedscope.engine.live import exact_loss, next_tokens, projection, text
from seedscope.engine.live.checks import check, check_ensemble, check_neighbours
from seedscope.engine.live.neighbours import Resident, neighbours
from seedscope.engine.live.projection import answer_feature, spans_of
from seedscope.engine.live.text_spans import TextSpans, read_spans
from seedscope.engine.machine import named_device
from seedscope.engine.matching.cuda import choice
from seedscope.engine.matching.match import PairMatches, dictionaries, match_pair
from seedscope.engine.saes import sae

N_PAIRS = 16  # matched pairs that are kept: another rule or the other direction then costs nothing
T = TypeVar("T")
Loaded = TypeVar("Loaded", bound=Resident | FittedSpans | TextSpans | text.TextReader | sae.SAE)


class Held(NamedTuple):
    """Something on the device: a Resident, a member's SAE, a TextReader, a set's FittedSpans or an ensemble's TextSpans."""

    value: Any
    n_bytes: int


class Residents:
    """Answers queries; holds dictionaries, SAEs and models, bounded in bytes, the least recently used leaves. Thread-safe."""

    def __init__(self, root: Path, device: str = "auto", *, budget: int | None = None) -> None:
        self._root, self._device = root.resolve(), named_device(device)
        self._budget = budget or _half_the_memory(self._device)
        self._held: OrderedDict[tuple, Held] = OrderedDict()  # by (name for the status, what tells it from others)
        self._loading = 0  # bytes
        self._pairs: OrderedDict[tuple, tuple] = OrderedDict()
        self._lock = threading.Lock()

    def version(self, query: LiveQuery) -> str:
        """Name of the published store that the query's study has now; raises ValueError where there is none."""
        if not re.fullmatch(NAME_PATTERN, query.study):
            raise ValueError(f"study is {query.study!r:.80}, expected {NAME_PATTERN}")
        store = published(self._root / query.study)
        if store is None:
            raise ValueError(f"found no published study {query.study!r}")
        return store.name

    def answer(self, queries: list[LiveQuery]) -> list[LiveAnswer]:
        """One answer per query, all of one shared_key; what is wrong with a query stands in its own answer."""
        by_kind = {"neighbours": self._neighbours, "pair": self._pair, "try": self._try, "loss": self._loss,
                   "logits": self._logits, "project": self._project, "project_feature": self._project}  # fmt: skip
        compute = by_kind[queries[0].kind]
        with torch.inference_mode():
            return compute(queries)

    def status(self) -> dict[str, Any]:
        """What is resident where, and which kernel matches pairs. Never waits for a load."""
        resident: dict[str, int] = {}  # bytes by name
        for (name, *_), each in list(self._held.items()):
            resident[name] = resident.get(name, 0) + each.n_bytes
        kernel = ": ".join(choice(self._device))
        return {"device": str(self._device), "kernel": kernel, "budget": self._budget,
                "resident": resident, "bytes": sum(resident.values())}  # fmt: skip

    def _neighbours(self, queries: list[LiveQuery]) -> list[LiveAnswer]:
        try:
            check_ensemble(queries[0])
            resident = self._resident(queries[0])
        except ValueError as error:
            return [LiveAnswer(error=str(error), cause="query")] * len(queries)
        answers: list[LiveAnswer | None] = []
        for query in queries:
            try:
                check_neighbours(query, resident)
                answers.append(None)
            except ValueError as error:
                answers.append(LiveAnswer(error=str(error), cause="query"))
        valid = [query for query, answer in zip(queries, answers, strict=True) if answer is None]
        computed = iter(neighbours(resident, valid) if valid else [])
        return [answer or next(computed) for answer in answers]

    def _resident(self, query: LiveQuery) -> Resident:
        """The query's ensemble; a newly published study is loaded anew."""
        name = f"{query.study}/{query.folder} {query.by}"
        files = [_file(self._root, query, seed) for seed in query.seeds]
        return self._hold(
            (name, query.study, query.folder, query.seeds, self.version(query), query.by),
            lambda: _readable(lambda: len(files) * _n_bytes(files[0], "W_dec" if query.by == "decoder" else "W_enc")),
            lambda: _readable(lambda: self._load(query, files)),
        )

    def _hold(self, key: tuple, size: Callable[[], int], load: Callable[[], Loaded]) -> Loaded:
        """What is resident under a key, loaded if need be; the least recently used makes room for its `size` in bytes.

        A lane of the engine asks for its own kind of things, one at a time, and does not wait while another lane loads.
        Raises ValueError for what is larger than all that may be held.
        """
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key].value
            n_bytes = size()
            if n_bytes > self._budget:
                raise ValueError(f"{key[0]} would take {n_bytes:,} bytes, the engine may hold {self._budget:,}")
            self._loading += n_bytes
            self._make_room()
        try:
            with torch.inference_mode(False), torch.no_grad():  # modules made in inference mode cannot be converted
                value = load()
        finally:
            with self._lock:
                self._loading -= n_bytes
        with self._lock:
            self._held[key] = Held(value, _bytes_of(value))
            self._make_room()
        return value

    def _make_room(self) -> None:
        """What was used last stays, alone if need be: only a model can be larger than all that may be held."""
        while self._loading + sum(each.n_bytes for each in self._held.values()) > self._budget:
            if not self._held or (len(self._held) == 1 and not self._loading):
                return
            self._held.popitem(last=False)

    def _use(self, key: tuple) -> None:
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)

    def _load(self, query: LiveQuery, files: list[Path]) -> Resident:
        """Memory-mapped, a member at a time, into one matrix on the device."""
        with safe_open(files[0], "pt") as first:
            d_sae, d_out = first.get_slice("W_dec").get_shape()
            width = d_out if query.by == "decoder" else first.get_slice("W_enc").get_shape()[0]
        rows = torch.empty(len(files) * d_sae, width, device=self._device)
        without = []
        for file, target in zip(files, rows.split(d_sae), strict=True):
            with safe_open(file, "pt") as opened:
                decoder = opened.get_tensor("W_dec").float()
                directed = sae.directed(decoder)
                target.copy_(decoder if query.by == "decoder" else opened.get_tensor("W_enc").T)
            directed &= sae.directed(target).cpu()
            target.div_(target.norm(dim=1, keepdim=True))
            target[~directed.to(target.device)] = 0
            without.append(~directed)
        return Resident(query.seeds, rows, torch.cat(without).nonzero()[:, 0].numpy())

    def _try(self, queries: list[LiveQuery]) -> list[LiveAnswer]:
        query = queries[0]
        try:
            check_ensemble(query)
            files = {seed: _file(self._root, query, seed) for seed in query.seeds}
            place = text.find_place(self._root / query.study, query)
            reader, use = self._reader(place, query)
            spans = self._spans(query).spans if any(each.span for each in queries) else []

            def member(seed: int) -> sae.SAE:
                use()  # where not all SAEs find room, they make it for each other
                return self._member(query, files[seed])

            return text.answer(queries, reader, place, member, spans)
        except ValueError as error:
            return [LiveAnswer(error=str(error), cause="query")] * len(queries)

    def _spans(self, query: LiveQuery) -> TextSpans:
        """The kept shared spans of the query's ensemble; a newly published study is read anew."""
        version = self.version(query)
        key = (f"{query.study}/{query.folder} shared spans", query.study, query.ensemble, version)
        # How many there are is known when they are read: at most a few thousand vectors.
        return self._hold(key, lambda: 0, lambda: read_spans(self._root / query.study / version, query.ensemble))

    def _reader(self, place: text.TextHook, query: LiveQuery) -> tuple[text.TextReader, Callable[[], None]]:
        """The study's model, and what says that it is used."""
        key = (place.model, query.model)
        load = partial(text.load_reader, place.model, digest=query.model, device=self._device)
        return self._hold(key, lambda: min(_model_bytes(place.model), self._budget), load), lambda: self._use(key)

    def _loss(self, queries: list[LiveQuery]) -> list[LiveAnswer]:
        (query,) = queries
        try:
            study = self._root / query.study
            model, place, member = self._model_and_member(query)
            other = None
            if query.stand_in >= 0:
                check(
                    "other", query.other, query.other in query.seeds, f"one of {', '.join(map(str, query.seeds)):.200}"
                )
                other = self._member(query, _file(self._root, query, query.other))
            return [exact_loss.answer(query, model, place, study, member, other)]
        except ValueError as error:
            return [LiveAnswer(error=str(error), cause="query")]

    def _logits(self, queries: list[LiveQuery]) -> list[LiveAnswer]:
        (query,) = queries
        try:
            return [next_tokens.answer(query, *self._model_and_member(query))]
        except ValueError as error:
            return [LiveAnswer(error=str(error), cause="query")]

    def _model_and_member(self, query: LiveQuery) -> tuple[LanguageModel, text.TextHook, sae.SAE]:
        """The study's model, where its texts are read, and the SAE of the query's seed; raises ValueError without them."""
        check_ensemble(query)
        check("seed", query.seed, query.seed in query.seeds, f"one of {', '.join(map(str, query.seeds)):.200}")
        place = text.find_place(self._root / query.study, query)
        reader, _ = self._reader(place, query)
        return reader.model, place, self._member(query, _file(self._root, query, query.seed))

    def _project(self, queries: list[LiveQuery]) -> list[LiveAnswer]:
        (query,) = queries
        try:
            check_ensemble(query)
            resident = self._resident(query)
            if query.kind == "project":
                return [projection.answer(query, *resident)]
            # A set's spans take seconds, a feature's energies in them none: the next feature finds them here.
            name, members = f"{query.study}/{query.folder} spans", query.members or query.seeds
            spans = self._hold(
                (name, query.study, query.folder, query.seeds, self.version(query), query.by, members, query.rows),
                lambda: 4 * len(members) * resident.rows.shape[1] ** 2,
                lambda: spans_of(query, *resident),
            )
            return [answer_feature(query, *resident, spans)]
        except ValueError as error:
            return [LiveAnswer(error=str(error), cause="query")]

    def _member(self, query: LiveQuery, file: Path) -> sae.SAE:
        """One SAE of the query's ensemble."""
        name = f"{query.study}/{query.folder} SAEs"
        seed = int(file.stem.removeprefix("seed-"))
        return self._hold(
            (name, query.study, query.folder, seed, self.version(query)),
            lambda: _readable(lambda: 4 * n_parameters([file])),
            lambda: _readable(lambda: sae.load(file.parent, (seed,)).float().to(self._device)),
        )

    def _pair(self, queries: list[LiveQuery]) -> list[LiveAnswer]:
        query = queries[0]
        try:
            check_ensemble(query)
            matches, gap = self._matched(query)
        except ValueError as error:
            return [LiveAnswer(error=str(error), cause="query")] * len(queries)
        partner = matches.rule_partner(query.rule).astype(np.int32)
        arrays = {
            "partner": partner,
            "cosine": matches.rule_cosine(query.rule).astype(np.float32),
            "runner_up": matches.runner_up,
            "mutual": matches.mutual & (partner == matches.partner),
        }
        return [LiveAnswer(arrays, gap)] * len(queries)

    def _matched(self, query: LiveQuery) -> tuple[PairMatches, float | None]:
        """The pair from `seed` to `other` and the gap of its one-to-one matching; both directions are kept."""
        for name, seed in (("seed", query.seed), ("other", query.other)):
            check(name, seed, seed in query.seeds, f"one of {', '.join(map(str, query.seeds)):.200}")
        check("other", query.other, query.other != query.seed, "another seed than the anchor's")
        check("rule", query.rule, query.rule in PAIR_RULES, f"one of {', '.join(PAIR_RULES)}")
        assign = query.rule in ("hungarian", "both")
        seeds = tuple(sorted((query.seed, query.other)))
        key = (query.study, query.folder, self.version(query), query.absolute, seeds)
        with self._lock:
            pair = self._pairs.get(key)
        if pair is None or (assign and pair[2] is None):
            folder = _file(self._root, query, seeds[0]).parent
            a, b = dictionaries(_readable(lambda: sae.load(folder, seeds)), device=self._device)
            pair = match_pair(a, b, assign=assign, absolute=query.absolute)
            with self._lock:
                self._pairs[key] = pair
                while len(self._pairs) > N_PAIRS:
                    self._pairs.popitem(last=False)
        return pair[seeds.index(query.seed)], pair[2].gap if assign and pair[2] else None


def _n_bytes(file: Path, tensor: str) -> int:
    """What a tensor of a file takes in float32."""
    with safe_open(file, "pt") as opened:
        return 4 * math.prod(opened.get_slice(tensor).get_shape())


def _model_bytes(path: str) -> int:
    """What a model takes in float32; 0 where that is known only when it is loaded."""
    folder = local_folder(path)
    return 4 * n_parameters(weight_files(folder)) if folder else 0


def _bytes_of(value: Resident | FittedSpans | TextSpans | text.TextReader | sae.SAE) -> int:
    if isinstance(value, Resident):
        return value.rows.nbytes
    if isinstance(value, FittedSpans):
        return sum(one.vectors.nbytes for one in value.bases)
    if isinstance(value, TextSpans):
        return value.n_bytes
    module = value.model.network if isinstance(value, text.TextReader) else value
    return sum(parameter.nbytes for parameter in module.parameters())


def _file(root: Path, query: LiveQuery, seed: int) -> Path:
    """Where a member lies; raises ValueError for a folder outside the study."""
    study = (root / query.study).resolve()
    folder = (study / query.folder).resolve()
    check("folder", query.folder, folder.is_relative_to(study), "a folder inside the study")
    return folder / f"seed-{seed}.safetensors"


def _readable(load: Callable[[], T]) -> T:
    """What a loader returns; raises ValueError where the files are missing or damaged."""
    try:
        return load()
    except (OSError, KeyError, SafetensorError) as error:
        raise ValueError(
            f"the ensemble's SAE files cannot be read ({type(error).__name__}); build the study again"
        ) from None


def _half_the_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory // 2
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
