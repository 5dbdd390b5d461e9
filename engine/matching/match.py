"""Partners of all features in all other members under every matching rule, and the same against random dictionaries.

Rules: *argmax* of paper A (the feature with the largest signed cosine, one-directional, many-to-one), *mutual* (each is
the other's argmax), *hungarian* (one to one, largest summed cosine; paper B), *both* (decoder and encoder assignments
agree; Paulo and Belrose 2025). Cosines are signed, or absolute with `absolute`. No threshold is applied: cosines are kept, so
that theta can change without matching again.
"""

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seedscope.engine.contract.schema import NO_MATCH, RULES
from seedscope.engine.machine import free_memory
from seedscope.engine.matching.assignment import Assignment, hungarian
from seedscope.engine.matching.cuda import best as best_cosines
from seedscope.engine.matching.kernels import Best
from seedscope.engine.saes.sae import directed, unit_rows
from seedscope.engine.saes.stored import MemberRows

NULL_KINDS = ("haar", "second_moment")
NULL_ANCHORS = 2048  # anchor features per member for the nulls: enough for match rates within 0.1 percentage points
# Of the device's free memory, for members' directions; cosines, candidates and whatever else runs take the rest. Members beyond
# it are read again for every group of anchors, which costs little beside their products.
HELD_SHARE = 0.25
HUNGARIAN_UP_TO = 2e11  # most pairs * d_sae^2 * d_in multiply-adds done without being asked: minutes on two cores


class Matches(NamedTuple):
    """Partners of every anchor feature in every other member; comparisons in seed order, the anchor left out.

    All arrays are (members, d_sae, comparisons) but two: `other` (members, comparisons) names the comparison's member
    index, `gap` (members, comparisons) the `Assignment.gap` of its one-to-one matching. Rows without a
    direction (zero or not finite) match nothing: partner -1, cosine NO_MATCH. Without one-to-one matching the last four,
    and without known activity the live ones, have no comparisons: (members, d_sae, 0).
    """

    other: np.ndarray
    gap: np.ndarray
    partner: np.ndarray
    cosine: np.ndarray
    runner_up: np.ndarray
    mutual: np.ndarray
    encoder_cosine: np.ndarray  # cosine of the two encoder columns, at the decoder's partner
    live_partner: np.ndarray  # best partner among the comparison's living features
    live_cosine: np.ndarray
    hungarian_partner: np.ndarray  # -1: none
    hungarian_cosine: np.ndarray
    hungarian_encoder_cosine: np.ndarray
    encoder_partner: np.ndarray  # partner under the assignment of the encoders


class PairMatches(NamedTuple):
    """One direction of one pair: the fields of Matches, each (d_sae of the anchor,).

    The last four are None without one-to-one matching, the live ones where activity is not known.
    """

    partner: np.ndarray
    cosine: np.ndarray
    runner_up: np.ndarray
    mutual: np.ndarray
    encoder_cosine: np.ndarray
    live_partner: np.ndarray | None
    live_cosine: np.ndarray | None
    hungarian_partner: np.ndarray | None = None
    hungarian_cosine: np.ndarray | None = None
    hungarian_encoder_cosine: np.ndarray | None = None
    encoder_partner: np.ndarray | None = None

    def rule_cosine(self, rule: str) -> Float[np.ndarray, " d_sae"]:
        """The cosine that theta is compared with under a rule; see the function `rule_cosine`."""
        return rule_cosine(rule, self)

    def rule_partner(self, rule: str) -> np.ndarray:
        """The partner that a rule forms; -1 where it forms none. Raises ValueError for a rule that was not computed."""
        if rule == "live":
            return _computed(self.live_partner, rule)
        partner = _computed(self.hungarian_partner, rule) if rule in ("hungarian", "both") else self.partner
        return np.where(self.rule_cosine(rule) > NO_MATCH, partner, -1)


ONE_TO_ONE = ("hungarian_partner", "hungarian_cosine", "hungarian_encoder_cosine", "encoder_partner")
LIVE = ("live_partner", "live_cosine")
FIELD_TYPES = {
    name: np.dtype(np.int32 if name.endswith("partner") else np.bool_ if name == "mutual" else np.float32)
    for name in PairMatches._fields
}


class Dictionary(NamedTuple):
    """Unit decoder rows and encoder columns of one member, float32; `valid` and `live` are ascending feature indices."""

    decoder: Float[Tensor, "d_sae d_in"]
    encoder: Float[Tensor, "d_sae d_in"]
    valid: Tensor  # features whose decoder row has a direction
    live: Tensor  # those of them that are active on some evaluation token


def dictionary(
    members: MemberRows,
    member: int,
    live: Bool[np.ndarray, "members d_sae"] | None = None,
    *,
    device: torch.device | str = "cpu",
) -> Dictionary:
    """One member's Dictionary on the device; `live` says which features fired, all of them if it is None."""
    decoder = members.decoder_rows(member).float()
    valid = directed(decoder).nonzero()[:, 0]
    fired = torch.ones(members.d_sae, dtype=torch.bool) if live is None else torch.from_numpy(live[member])
    encoder = members.encoder_rows(member).float()
    directions = Dictionary(unit_rows(decoder), unit_rows(encoder), valid, valid[fired[valid]])
    return Dictionary(*(tensor.to(device) for tensor in directions))


def dictionaries(
    members: MemberRows, live: Bool[np.ndarray, "members d_sae"] | None = None, *, device: torch.device | str = "cpu"
) -> list[Dictionary]:
    """Every member's Dictionary."""
    return [dictionary(members, member, live, device=device) for member in range(members.n_members)]


def match_pair(
    a: Dictionary, b: Dictionary, *, assign: bool = True, absolute: bool = False
) -> tuple[PairMatches, PairMatches, Assignment | None]:
    """Matches from `a` to `b`, from `b` to `a`, and the one-to-one matching of the decoders, None without `assign`.

    Costs one product for argmax (two if `absolute`), one more per side with dead features, and two assignments if `assign`.
    Raises ValueError where the widths d_in differ.
    """
    if a.decoder.shape[1] != b.decoder.shape[1]:
        raise ValueError(
            f"d_in is {a.decoder.shape[1]} and {b.decoder.shape[1]}, expected the same: the SAEs read different activations"
        )
    ab, ba = _best(a.decoder, a.valid, b.decoder, b.valid, absolute)
    live_ab, live_ba = ab, ba
    if len(b.live) < len(b.valid):
        live_ab = _best(a.decoder, a.valid, b.decoder, b.live, absolute)[0]
    if len(a.live) < len(a.valid):
        live_ba = _best(b.decoder, b.valid, a.decoder, a.live, absolute)[0]
    forward = _direction(a, b, ab, ba, live_ab)
    backward = _direction(b, a, ba, ab, live_ba)
    decoders = None
    if assign and len(a.valid) and len(b.valid):
        decoders = hungarian(a.decoder[a.valid], b.decoder[b.valid], absolute=absolute)
        encoders = hungarian(a.encoder[a.valid], b.encoder[b.valid], absolute=absolute)
        forward = forward._replace(**_one_to_one(a, b, decoders, encoders, reverse=False))
        backward = backward._replace(**_one_to_one(b, a, decoders, encoders, reverse=True))
    if absolute:
        forward, backward = _without_sign(forward), _without_sign(backward)
    return forward, backward, decoders


def _best(rows_a: Tensor, of_a: Tensor, rows_b: Tensor, of_b: Tensor, absolute: bool = False) -> tuple[Best, Best]:
    """best_cosines between rows `of_a` and `of_b`, as arrays over all rows: the others get partner -1 and NO_MATCH."""
    if not len(of_a) or not len(of_b):
        return _none(rows_a), _none(rows_b)
    whole = len(of_a) == len(rows_a) and len(of_b) == len(rows_b)
    a, b = (rows_a, rows_b) if whole else (rows_a[of_a], rows_b[of_b])
    forward, backward = best_cosines(a, b)
    if absolute:
        negated_forward, negated_backward = best_cosines(a, -b)
        forward, backward = _larger(forward, negated_forward), _larger(backward, negated_backward)
    return _full_size(forward, rows_a, of_a, of_b), _full_size(backward, rows_b, of_b, of_a)


def _full_size(best: Best, rows: Tensor, mine: Tensor, theirs: Tensor) -> Best:
    """The best of the rows `mine`, with partners counted among `theirs`, as arrays over all `rows`."""
    full = _none(rows)
    full.cosine[mine] = best.cosine.clamp(-1, 1)
    full.partner[mine] = theirs[best.partner]
    full.runner_up[mine] = best.runner_up.clamp(-1, 1)
    return full


def _without_sign(matches: PairMatches) -> PairMatches:
    """The encoder cosines at the partners, absolute as all else; NO_MATCH stays."""

    def absolute(cosine: np.ndarray, partner: np.ndarray) -> np.ndarray:
        return np.where(partner >= 0, np.abs(cosine), cosine)

    matches = matches._replace(encoder_cosine=absolute(matches.encoder_cosine, matches.partner))
    if matches.hungarian_partner is None or matches.hungarian_encoder_cosine is None:
        return matches
    return matches._replace(
        hungarian_encoder_cosine=absolute(matches.hungarian_encoder_cosine, matches.hungarian_partner)
    )


def _larger(signed: Best, negated: Best) -> Best:
    """The best by absolute cosine, from the best in b (`signed`) and in -b (`negated`); on a tie the signed one."""
    flip = negated.cosine > signed.cosine
    won = [torch.where(flip, n, s) for s, n in zip(signed, negated, strict=True)]
    lost = [torch.where(flip, s, n) for s, n in zip(signed, negated, strict=True)]
    loser = torch.where(lost[1] == won[1], lost[2], lost[0])  # a feature is not its own runner-up
    return Best(won[0], won[1], torch.maximum(won[2], loser))


def _none(rows: Tensor) -> Best:
    """Rows without any partner."""
    worst = rows.new_full((len(rows),), NO_MATCH)
    return Best(worst, torch.full_like(worst, -1, dtype=torch.long), worst.clone())


def _direction(a: Dictionary, b: Dictionary, best: Best, back: Best, live: Best) -> PairMatches:
    """The fields of PairMatches from `a` to `b` that come from best cosines; `back` are those from `b` to `a`."""
    paired = best.partner >= 0
    mutual = paired & (back.partner[best.partner] == torch.arange(len(best.partner), device=paired.device))
    encoder_cosine = torch.where(paired, (a.encoder * b.encoder[best.partner]).sum(-1).clamp(-1, 1), NO_MATCH)
    return PairMatches(
        partner=best.partner.int().cpu().numpy(),
        cosine=best.cosine.cpu().numpy(),
        runner_up=best.runner_up.cpu().numpy(),
        mutual=mutual.cpu().numpy(),
        encoder_cosine=encoder_cosine.cpu().numpy(),
        live_partner=live.partner.int().cpu().numpy(),
        live_cosine=live.cosine.cpu().numpy(),
    )


def _one_to_one(
    a: Dictionary, b: Dictionary, decoders: Assignment, encoders: Assignment, *, reverse: bool
) -> dict[str, np.ndarray]:
    """The fields of PairMatches that come from the assignments; `reverse`: they were made from b to a."""
    partner, cosine = _assigned(decoders, a, b, reverse)
    to = torch.from_numpy(partner).to(a.encoder.device)
    at_partner = torch.where(to >= 0, (a.encoder * b.encoder[to]).sum(-1).clamp(-1, 1), NO_MATCH)
    return {
        "hungarian_partner": partner.astype(np.int32),
        "hungarian_cosine": cosine.astype(np.float32),
        "hungarian_encoder_cosine": at_partner.cpu().numpy(),
        "encoder_partner": _assigned(encoders, a, b, reverse)[0].astype(np.int32),
    }


def _assigned(assignment: Assignment, a: Dictionary, b: Dictionary, reverse: bool) -> tuple[np.ndarray, np.ndarray]:
    """An assignment of the valid rows as full-size partner and cosine arrays of `a`."""
    partner, cosine = np.full(len(a.decoder), -1), np.full(len(a.decoder), NO_MATCH)
    mine, theirs = a.valid.cpu().numpy(), b.valid.cpu().numpy()
    matched = assignment.partner >= 0
    left, right = np.flatnonzero(matched), assignment.partner[matched]
    at, to = (mine[right], theirs[left]) if reverse else (mine[left], theirs[right])
    partner[at], cosine[at] = to, np.clip(assignment.cosine[matched], -1, 1)
    return partner, cosine


def rule_cosine(rule: str, matches: Matches | PairMatches) -> np.ndarray:
    """The cosine that theta is compared with under a rule, shaped like the matches' arrays; NO_MATCH without a pair.

    `live` is argmax among the comparison's living features. `both` needs the two assignments to agree and both cosines
    to reach theta: the smaller of them decides. Raises ValueError for an unknown rule and for one that was not computed.
    """
    if rule == "argmax":
        return matches.cosine
    if rule == "live":
        return _computed(matches.live_cosine, rule)
    if rule == "mutual":
        return np.where(matches.mutual, matches.cosine, np.float32(NO_MATCH))
    if rule == "hungarian":
        return _computed(matches.hungarian_cosine, rule)
    if rule == "both":
        partner = _computed(matches.hungarian_partner, rule)
        agree = (partner >= 0) & (partner == _computed(matches.encoder_partner, rule))
        smaller = np.minimum(
            _computed(matches.hungarian_cosine, rule), _computed(matches.hungarian_encoder_cosine, rule)
        )
        return np.where(agree, smaller, np.float32(NO_MATCH))
    raise ValueError(f"rule is {rule!r}, expected one of {', '.join(RULES)}")


def _computed(values: np.ndarray | None, rule: str) -> np.ndarray:
    if values is None:
        raise ValueError(f"rule {rule} was not computed for this pair")
    return values


def affordable(n_members: int, d_sae: int, d_in: int) -> bool:
    """Whether one-to-one matching of all pairs costs at most HUNGARIAN_UP_TO, so that it is done by default."""
    return n_members * (n_members - 1) / 2 * d_sae**2 * d_in <= HUNGARIAN_UP_TO


class MatchedPair(NamedTuple):
    """Two members matched in both directions."""

    first: int
    second: int
    forward: PairMatches  # from `first` to `second`
    backward: PairMatches
    gap: float  # of the one-to-one matching; 0 without it

    def directions(self) -> Iterator[tuple[int, int, PairMatches]]:
        """(anchor, the comparison's place among the anchor's, matches) of both."""
        yield self.first, self.second - 1, self.forward  # `first` is left out before it
        yield self.second, self.first, self.backward


def matched_pairs(
    members: MemberRows,
    live: Bool[np.ndarray, "members d_sae"] | None,
    *,
    assign: bool,
    device: torch.device | str = "cpu",
    at_once: int | None = None,
    tile: tuple[range, range] | None = None,
) -> Iterator[MatchedPair]:
    """Match every pair of members, or those of a tile (anchors, comparisons); one product serves both directions.

    At most `at_once` members' directions are in memory, at least 2 and by default those that take HELD_SHARE of what is free:
    all but one are anchors, and the other members are read one after the other for each group of anchors. The order of pairs
    depends on it, no number does. `live` as for `match_ensemble`. Raises ValueError for fewer than two members.
    """
    n = members.n_members
    own, theirs = tile or (range(n), range(n))
    if n < 2:
        raise ValueError(f"found {n} member, expected at least 2: stability compares independently trained SAEs")
    at_once = members_at_once(members, device) if at_once is None else max(at_once, 2)
    step = n if at_once >= n else at_once - 1

    def matched(first: int, a: Dictionary, second: int, b: Dictionary) -> MatchedPair:
        forward, backward, assignment = match_pair(a, b, assign=assign)
        if live is None:
            forward, backward = (each._replace(live_partner=None, live_cosine=None) for each in (forward, backward))
        return MatchedPair(first, second, forward, backward, assignment.gap if assignment else 0)

    for start in range(own.start, own.stop, step):
        anchors = {i: dictionary(members, i, live, device=device) for i in own if start <= i < start + step}
        for i, j in combinations(anchors, 2):
            if j in theirs:
                yield matched(i, anchors[i], j, anchors[j])
        for j in range(max(start + len(anchors), theirs.start), theirs.stop):
            comparison = dictionary(members, j, live, device=device)
            for i in anchors:
                yield matched(i, anchors[i], j, comparison)
            del comparison  # before the next one is read
        del anchors


def members_at_once(members: MemberRows, device: torch.device | str) -> int:
    """How many Dictionaries take HELD_SHARE of the device's free memory, at least 2."""
    size = 4 * members.d_sae * (members.d_in + members.d_out)
    return max(int(HELD_SHARE * free_memory(torch.device(device)) / size), 2)


def computed_fields(*, assign: bool, live: bool) -> list[str]:
    """Fields of PairMatches that are computed; `live`: whether activity is known."""
    missing = (() if assign else ONE_TO_ONE) + (() if live else LIVE)
    return [name for name in PairMatches._fields if name not in missing]


def unmatched(field: str, *shape: int) -> np.ndarray:
    """An array of a field of PairMatches that says everywhere: no partner, no match."""
    return np.full(shape, False if field == "mutual" else -1, FIELD_TYPES[field])


def others(n_members: int) -> Int[np.ndarray, "members comparisons"]:
    """The indices of every anchor's comparisons."""
    return np.array([[j for j in range(n_members) if j != i] for i in range(n_members)])


def match_ensemble(
    sae: MemberRows,
    live: Bool[np.ndarray, "members d_sae"] | None,
    *,
    assign: bool | None = None,
    device: torch.device | str = "cpu",
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Matches:
    """Match every member with every other, with all results in memory; `engine.matching.spool` keeps them on disk.

    `live` says which features are active on the evaluation tokens; with None, which means not known, there are no live
    partners. `assign` asks for one-to-one matching; by default it is done where `affordable`. `report` gets (pairs done, all
    pairs). Cost: members^2 / 2 * d_sae^2 * d_in multiply-adds, twice that where dead features exist. Memory: 25 bytes per
    (anchor feature, comparison), 13 more with one-to-one matching. Raises ValueError for fewer than two members.
    """
    n, d_sae = sae.n_members, sae.d_sae
    assign = affordable(n, d_sae, sae.d_in) if assign is None else assign
    computed, total = computed_fields(assign=assign, live=live is not None), n * (n - 1) // 2
    arrays = {name: unmatched(name, n, d_sae, n - 1 if name in computed else 0) for name in PairMatches._fields}
    gap = np.zeros((n, n - 1))
    for done, pair in enumerate(matched_pairs(sae, live, assign=assign, device=device)):
        for anchor, slot, matches in pair.directions():
            gap[anchor, slot] = pair.gap
            for name, values in matches._asdict().items():
                if values is not None:
                    arrays[name][anchor, :, slot] = values
        report(done + 1, total)
    return Matches(others(n), gap, **arrays)


def no_matches(d_sae: int) -> Matches:
    """Matches of one SAE alone: it has no comparisons, so every array has none."""
    empty = {name: unmatched(name, 1, d_sae, 0) for name in PairMatches._fields}
    return Matches(np.zeros((1, 0), int), np.zeros((1, 0)), **empty)


class Chance(NamedTuple):
    """Best cosines of some features of every member in random dictionaries."""

    feature: Int[np.ndarray, " anchors"]  # the same for all members, ascending
    cosine: Float[np.ndarray, "members anchors comparisons"]


def null_cosines(
    sae: MemberRows, kind: str, *, seed: int = 0, n_anchors: int = NULL_ANCHORS, device: torch.device | str = "cpu"
) -> Chance:
    """Match against chance: every comparison dictionary is replaced by a random one.

    `haar` rotates it by a random orthogonal matrix, which keeps all angles within it but not its orientation. `second_moment`
    draws unit rows with its own uncentred second moment S (S^(1/2) times Gaussian, normalised): a mean direction and
    anisotropy that the members share stay, which `haar` destroys. Definitions of this project (the first is also used by
    re-implementations of paper A). Of more than `n_anchors` features a random choice is matched. Anchor rows without a
    direction get NO_MATCH. Memory: all members' anchor rows, one decoder at a time. Raises ValueError for an unknown kind.
    """
    generator = torch.Generator().manual_seed(seed)
    n = sae.n_members
    chosen = torch.randperm(sae.d_sae, generator=generator)[:n_anchors].sort().values
    anchors = [unit_rows(sae.decoder_rows(member).float())[chosen].to(device) for member in range(n)]
    cosines = np.zeros((n, len(chosen), n - 1), np.float32)
    for comparison in range(n):
        decoder = sae.decoder_rows(comparison).float()
        rows = unit_rows(decoder)[directed(decoder)].to(device)
        for anchor in (member for member in range(n) if member != comparison):
            random = random_dictionary(rows, kind, generator)
            inside = anchors[anchor].any(-1).nonzero()[:, 0]
            best, _ = _best(anchors[anchor], inside, random, torch.arange(len(random), device=rows.device))
            cosines[anchor, :, comparison - (comparison > anchor)] = best.cosine.cpu()
    return Chance(chosen.numpy(), cosines)


def random_dictionary(rows: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Random unit rows, as many as `rows` has, of a kind that `null_cosines` explains. Raises ValueError for another kind."""
    d_sae, d_in = rows.shape

    def gaussian(n_rows: int) -> Tensor:
        return torch.randn(n_rows, d_in, generator=generator).to(rows)

    if kind == "haar":
        q, r = torch.linalg.qr(gaussian(d_in))
        rotation: Tensor = q * r.diagonal().sign()  # the sign makes the distribution exactly Haar (Mezzadri 2007)
        return rows @ rotation
    if kind == "second_moment":
        values, vectors = torch.linalg.eigh(rows.T @ rows / max(d_sae, 1))
        root = vectors * values.clamp_min(0).sqrt()
        return torch.nn.functional.normalize(gaussian(d_sae) @ root.T, dim=-1)
    raise ValueError(f"null kind is {kind!r}, expected one of {', '.join(NULL_KINDS)}")
