"""Best cosines, nearest rows, one-to-one matching and live neighbours on a device, against its products and its bandwidth."""

import os
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from seedscope.engine.bench.gpu_sizes import GpuSizes
from seedscope.engine.bench.gpu_work import GpuSlot, Limit, Result, Work, WrongResultError, double, same, within
from seedscope.engine.bench.products import dictionaries
from seedscope.engine.bench.report import BenchLine
from seedscope.engine.contract.queries import LiveQuery
from seedscope.engine.live.neighbours import Resident, neighbours
from seedscope.engine.machine import free_memory
from seedscope.engine.matching import cuda
from seedscope.engine.matching.assignment import hungarian
from seedscope.engine.matching.kernels import Best, best_cosines
from seedscope.engine.matching.nearest import nearest

COSINE = 1e-6  # allowed error of a cosine of float32 rows
CHUNK = 1_024  # rows whose float64 cosines with all others exist at once
ANCHORED = 32  # rows whose float64 cosines are computed by NumPy as well: the device does not vouch for itself alone
RATES = {
    "bf16": (torch.bfloat16, 5e-3),
    "float16": (torch.float16, 2e-3),
    "float32": (torch.float32, COSINE),
}  # allowed error
BF16, F16 = "torch.mm of the same product in bf16", "torch.mm of the same product in float16"
COPY = "reading the same bytes at the rate of a copy"


def rates(sizes: GpuSizes, slot: GpuSlot) -> Iterator[Work]:
    """What this device reaches: products in every precision, and a copy. All other steps are read against these."""
    device = slot.device
    a, b = dictionaries(sizes.rows, sizes.d_in, device.type)
    for name, (dtype, allowed) in RATES.items():
        yield _product(name, a.to(dtype), b.to(dtype), allowed)
    source = torch.arange(sizes.rows * sizes.d_in * 8, dtype=torch.float32, device=device)
    target = torch.zeros_like(source)
    yield Work(
        name=f"copy of {source.nbytes / 1e6:,.0f} MB on the device (bytes read and written)",
        ours=lambda: {"copied": target.copy_(source)},
        check=lambda found: same("copied", found["copied"], np.arange(len(source), dtype=np.float32)),
        n_bytes=2.0 * source.nbytes,
    )


def _product(name: str, a: Tensor, b: Tensor, allowed: float) -> Work:
    out = a.new_empty(len(a), len(b))

    def multiply() -> Result:
        return {"product": torch.mm(a, b.T, out=out)[:ANCHORED]}

    def check(found: Result) -> float:
        return within("product", found["product"], double(a[:ANCHORED]) @ double(b).T, allowed)

    return Work(
        name=f"product {len(a):,} x {len(b):,} rows of {a.shape[1]}, {name}",
        ours=multiply,
        check=check,
        flops=2.0 * len(a) * len(b) * a.shape[1],
    )


def best(sizes: GpuSizes, slot: GpuSlot) -> Iterator[Work | BenchLine]:
    """The fused kernel where it runs, the plain one, nearest rows of a version, and one-to-one matching."""
    device = slot.device
    a, b = dictionaries(sizes.rows, sizes.d_in, device.type)
    size = f"{sizes.rows:,} x {sizes.rows:,} rows of {sizes.d_in}"
    yield fused(a, b, sizes, size)
    out, halves = torch.empty(len(a), len(b), dtype=torch.bfloat16, device=device), (a.bfloat16(), b.bfloat16())
    product = {BF16: Limit(partial(torch.mm, halves[0], halves[1].T, out=out))}
    plain = {"torch.mm of the same product in float32": Limit(partial(torch.mm, a, b.T))}
    yield Work(
        name=f"best partner, cosine and runner-up both ways, plain kernel, {size}",
        ours=lambda: named_best(best_cosines(a, b)),
        check=partial(check_best, a, b),
        limit=next(iter(plain)),
        limits=plain | product,
        flops=2.0 * sizes.rows**2 * sizes.d_in,
    )
    tuned = torch.nn.functional.normalize(a + 0.2 * b.roll(7, 0), dim=1)  # a version: every row has one near partner
    yield Work(
        name=f"nearest rows of a version, both ways, {size}",
        ours=lambda: _named_nearest(a, tuned),
        check=partial(check_best, a, tuned),
        limit=next(iter(plain)),
        limits=plain,
    )
    few_a, few_b = a[: sizes.assigned_rows], b[: sizes.assigned_rows]
    yield Work(
        name=f"one to one, {len(few_a):,} x {len(few_b):,} rows of {sizes.d_in}",
        ours=lambda: _assigned(few_a, few_b),
        check=partial(_check_assigned, few_a, few_b),
        limit="torch.mm of the same product in float32",
        limits={"torch.mm of the same product in float32": Limit(partial(torch.mm, few_a, few_b.T))},
        remark="prices are found on the processor",
    )


def fused(a: Tensor, b: Tensor, sizes: GpuSizes, size: str) -> Work | BenchLine:
    """Pair after pair by the fused kernel; a line that says why where it cannot run, a failed one where it should have run."""
    work = f"fused Triton kernel, pair after pair, {size}"
    goal = "70 % of the measured half-precision product rate, the float32 partners"
    if a.device.type == "cuda":
        name, reason = cuda.choice(a.device)
        if name != "fused":
            should = cuda.HAS_TRITON and torch.cuda.get_device_capability(a.device) >= cuda.CAPABILITY
            return BenchLine(work, None, goal=goal, remark=f"not measured: {reason}", failed=should)
    elif not cuda.HAS_TRITON:
        return BenchLine(work, None, goal=goal, remark="not measured: triton is not installed")
    elif os.environ.get("TRITON_INTERPRET") != "1":
        reason = "on a CPU its kernels run in Triton's interpreter alone: TRITON_INTERPRET=1"
        return BenchLine(work, None, goal=goal, remark=f"not measured: {reason}")
    here, there = cuda.prepare(a), cuda.prepare(b)
    halves = a.bfloat16(), b.bfloat16()
    out = {
        dtype: torch.empty(len(a), len(b), dtype=dtype, device=a.device) for dtype in (torch.bfloat16, torch.float16)
    }

    def pairs() -> None:
        pending = cuda.launch(here, there)
        for _ in range(sizes.pairs - 1):  # the next pair is queued before the answer of this one is read
            following = cuda.launch(here, there)
            cuda.finish(pending)
            pending = following
        cuda.finish(pending)

    def one() -> Result:
        forward, backward, certificate = cuda.finish(cuda.launch(here, there))
        return named_best((forward, backward)) | {"certified": np.array(certificate.share)}

    n, m = len(a), len(b)
    return Work(
        name=f"{work}: {sizes.pairs} pairs",
        ours=pairs,
        checked=one,
        check=partial(_check_fused, a, b),
        limit=BF16,
        limits={
            BF16: Limit(partial(torch.mm, halves[0], halves[1].T, out=out[torch.bfloat16]), sizes.pairs),
            F16: Limit(partial(torch.mm, here.half[:n], there.half[:m].T, out=out[torch.float16]), sizes.pairs),
        },
        flops=2.0 * n * m * a.shape[1] * sizes.pairs,
        goal=goal,
        remark="all 4,560 pairs of 96 members are " + f"{4560 / sizes.pairs:.0f} times that",
    )


def named_best(both: tuple[Best, Best]) -> Result:
    """Both directions by name."""
    return {
        f"{field}_{side}": value for side, one in zip("ab", both, strict=True) for field, value in one._asdict().items()
    }


def _named_nearest(a: Tensor, b: Tensor) -> Result:
    both = zip("ab", nearest(a, b), strict=True)
    return {f"{field}_{side}": value for side, one in both for field, value in one._asdict().items()}


def _check_fused(a: Tensor, b: Tensor, found: Result) -> float:
    share = float(found["certified"])
    if not 0 <= share <= 1:
        raise WrongResultError(f"certified is {share}, expected a share from 0 to 1")
    return check_best(a, b, {name: value for name, value in found.items() if name != "certified"})


def check_best(a: Tensor, b: Tensor, found: Result) -> float:
    """All rows against float64 cosines on the same device, some of those against NumPy's. Partners may be tied in float32."""
    worst = 0.0
    for side, rows, others in (("a", a, b), ("b", b, a)):
        first, second, chosen = [], [], []
        partners = torch.as_tensor(found[f"partner_{side}"]).to(rows.device)
        if partners.min() < 0 or partners.max() >= len(others):
            raise WrongResultError(f"partner_{side} names rows that do not exist")
        every = others.double()
        for part, partner in zip(rows.split(CHUNK), partners.split(CHUNK), strict=True):
            cosines = part.double() @ every.T
            largest = cosines.topk(min(2, len(others)), dim=1).values
            first.append(largest[:, 0])
            second.append(largest[:, -1])
            chosen.append(cosines.gather(1, partner[:, None])[:, 0])
        right = torch.cat(first)
        anchored = (double(rows[:ANCHORED]) @ double(others).T).max(1)
        worst = max(
            worst,
            within(f"the device's own float64 cosines of {side}", right[:ANCHORED], anchored, 1e-9) * 0,
            within(f"cosine_{side}", found[f"cosine_{side}"], right, COSINE),
            within(f"cosine at partner_{side}", torch.cat(chosen), right, COSINE),
        )
        if f"runner_up_{side}" in found:
            worst = max(worst, within(f"runner_up_{side}", found[f"runner_up_{side}"], torch.cat(second), COSINE))
    return worst


def _assigned(a: Tensor, b: Tensor) -> Result:
    made = hungarian(a, b)
    return {
        "partner": made.partner,
        "cosine": made.cosine,
        "value": np.array(made.value),
        "bound": np.array(made.bound),
    }


def _check_assigned(a: Tensor, b: Tensor, found: Result) -> float:
    """Against SciPy's optimum of the float64 cosines; whatever is claimed as a bound has to be one."""
    cosines = double(a) @ double(b).T
    partner = np.asarray(found["partner"])
    if not np.array_equal(np.sort(partner), np.arange(len(b))):
        raise WrongResultError("partner is no one-to-one matching")
    own = cosines[np.arange(len(a)), partner]
    best_value = float(cosines[linear_sum_assignment(cosines, maximize=True)].sum())
    allowed = COSINE * len(a)
    if not best_value - allowed <= float(found["bound"]) <= best_value * (1 + 1e-3):
        raise WrongResultError(f"bound is {float(found['bound']):.6f}, the optimum in float64 is {best_value:.6f}")
    return max(
        within("cosine", found["cosine"], own, COSINE),
        within("value", found["value"], np.array(own.sum()), allowed),
        within("value of the optimum", np.array(own.sum()), np.array(best_value), 1e-4 * best_value),
    )


# -- neighbours ------------------------------------------------------------------------------------------------------

K = 5


def live(sizes: GpuSizes, slot: GpuSlot) -> Iterator[Work]:
    """Neighbours of one feature, and of many at once, in rows that are resident: against reading them once."""
    device = slot.device
    n_bytes = 4 * sizes.rows * sizes.d_in
    fits = int(free_memory(device) // 2 // n_bytes)
    n_members = max(min(sizes.resident_members, fits), 2)
    rows = torch.empty(n_members * sizes.rows, sizes.d_in, device=device)
    generator = torch.Generator(device=device).manual_seed(0)
    for member in rows.split(sizes.rows):
        member.normal_(generator=generator)
        member.div_(member.norm(dim=1, keepdim=True))
    resident = Resident(tuple(range(n_members)), rows, np.array([], np.int64))
    queries = [
        LiveQuery("neighbours", seeds=resident.seeds, k=K, seed=i % n_members, feature=17 * i % sizes.rows)
        for i in range(sizes.queries)
    ]
    remark = (
        ""
        if n_members == sizes.resident_members
        else f"{n_members} members because half of the free memory holds no more"
    )
    spare = torch.empty_like(rows[: len(rows) // 2])
    read = {
        COPY: Limit(
            lambda: spare.copy_(rows[: len(spare)])
        ),  # reads one half and writes another: as many bytes as the rows are
        "torch.sum of the same rows": Limit(rows.sum),
    }
    size = f"the {K} nearest in each of {n_members} members of {sizes.rows:,} rows of {sizes.d_in}"
    yield Work(
        name=f"neighbours of one feature, {size}",
        ours=lambda: _answered(resident, queries[:1]),
        check=partial(_check_neighbours, resident, queries[:1]),
        limit=COPY,
        limits=read,
        n_bytes=float(rows.nbytes),
        goal="60 % of the measured bandwidth",
        remark=remark,
    )
    columns = rows[: sizes.queries].T.contiguous()
    product = "torch.mm of the same product in float32"
    yield Work(
        name=f"neighbours of {sizes.queries} features at once, {size}",
        ours=lambda: _answered(resident, queries),
        check=partial(_check_neighbours, resident, queries),
        limit=product,
        limits={product: Limit(partial(torch.mm, rows[: sizes.rows], columns), n_members)} | read,
        flops=2.0 * sizes.queries * rows.numel(),
        goal="less than 3 x one",
        remark=remark,
    )


def _answered(resident: Resident, queries: list[LiveQuery]) -> Result:
    arrays = [answer.arrays for answer in neighbours(resident, queries)]
    return {name: np.stack([np.asarray(each[name]) for each in arrays]) for name in ("seed", "feature", "cosine")}


def _check_neighbours(resident: Resident, queries: list[LiveQuery], found: Result) -> float:
    """Some of the queries, in every member, against float64 on the same device; a feature is not its own neighbour."""
    worst, d_sae = 0.0, resident.d_sae
    seeds = np.repeat(np.array(resident.seeds), K)
    same("seed", found["seed"], np.broadcast_to(seeds, np.asarray(found["seed"]).shape))
    for at in sorted({0, len(queries) // 2, len(queries) - 1}):
        query = queries[at]
        anchor = resident.rows[query.seed * d_sae + query.feature].double()
        feature, cosine = (np.asarray(found[name])[at].reshape(-1, K) for name in ("feature", "cosine"))
        if feature.min() < 0 or feature.max() >= d_sae:
            raise WrongResultError("feature names rows that do not exist")
        for member, rows in enumerate(resident.rows.split(d_sae)):
            right = double(rows.double() @ anchor)
            if member == query.seed:
                right[query.feature] = -np.inf
            largest = np.sort(right)[: -K - 1 : -1]
            worst = max(
                worst,
                within("cosine", cosine[member], largest, COSINE),
                within("cosine at feature", right[feature[member]], largest, COSINE),
            )
    return worst
