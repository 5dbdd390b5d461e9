"""What the search for small shared spans says, in sentences: what was kept, what it holds, and why the rest is unexplained."""

from collections.abc import Sequence
from typing import Protocol

from seedscope.app.formats import counted, percent
from seedscope.engine.contract.tables.shared_spans import NULL_SETS, SharedSpan, SharedSpanSummary

# {reason: what is said of candidates that fail by it}
FAILURE_SAYS = {
    "living": "random living features explain it as well",
    "density": "random living features of about equal density explain it as well",
    "rotated": "a rotated dictionary gives as much",
    "second_moment": "random rows of the same second moment give as much",
    "not_found_again": "it is not found again without single seeds",
}
_SEVERAL = {
    "living": "are explained as well by random living features",
    "density": "are explained as well by random living features of about equal density",
    "rotated": "are reached by a rotated dictionary as well",
    "second_moment": "are reached by random rows of the same second moment as well",
    "not_found_again": "are not found again when single seeds are left out",
}
_ONE = {
    "living": "is explained as well by random living features",
    "density": "is explained as well by random living features of about equal density",
    "rotated": "is reached by a rotated dictionary as well",
    "second_moment": "is reached by random rows of the same second moment as well",
    "not_found_again": "is not found again when single seeds are left out",
}
_NUMBERS = {2: "two", 3: "three", 4: "four"}


def spans_sentence(summary: SharedSpanSummary, spans: Sequence[SharedSpan]) -> str:
    """Whether small shared spans exist, from a search's summary, all that it kept and at least one candidate if there are any."""
    if summary.remark is not None:
        return f"No small shared spans were searched for: {summary.remark}."
    if not summary.n_candidates:
        return (
            f"No candidate was found: among {counted(summary.n_features, 'unstable feature')} {summary.n_edges:,} pairs of two "
            "seeds write each other, and no group of at least four of them spreads over three seeds."
        )
    kept = [span for span in spans if span.kept]
    failures = _failures(summary)
    if not kept:
        return (
            f"None of the {counted(summary.n_candidates, 'candidate')} beats all {_n_nulls(spans)} nulls: {failures}."
        )
    ranks, sharing = [span.rank for span in kept], [span.n_sharing for span in kept]
    n_tested = max(span.n_left_out for span in kept)
    are = "is" if len(kept) == 1 else "are"
    text = f"{counted(len(kept), 'small span')} of rank {_range(ranks)} {are} shared by {_range(sharing)} of {n_tested} seeds"
    if summary.shared is not None:
        text += f"; {'it holds' if len(kept) == 1 else 'they hold'} {share_says(summary)}"
    return f"{text}." + (f" Of the other candidates {failures}." if failures else "")


def question_sentence(summary: SharedSpanSummary) -> str | None:
    """The paper's question: of the energy that unstable features carry, which share lies in shared spans; None where unknown."""
    if summary.remark is not None or summary.shared is None:
        return None
    if not summary.n_kept:
        return (
            "Of the energy that unstable features carry no part is shown to lie in small shared spans: as far as this search can "
            "tell, all of it lies in nothing shared."
        )
    rest = percent(1 - summary.shared, 0)
    text = f"{_interval(summary)} of the {_energy(summary)} lies in small shared spans, {rest} in nothing shared."
    if summary.chance_share is not None and summary.shared_low is not None:
        beside = "more than" if summary.shared_low > summary.chance_share else "no more, within the interval, than"
        text += f" That is {beside} the {percent(summary.chance_share)} that random spans of the same ranks hold."
    return text


def control_sentence(control: SharedSpanSummary) -> str:
    """What the same search finds on the model with random weights, to stand beside what it finds on the trained one."""
    if control.remark is not None:
        return f"On the model with random weights nothing was searched: {control.remark}."
    if not control.n_candidates:
        return "On the model with random weights the same search finds no candidate."
    text = f"On the model with random weights the same search finds {counted(control.n_candidates, 'candidate')} and keeps "
    if not control.n_kept:
        return f"{text}none."
    return (
        text + f"{control.n_kept:,}" + (f", which hold {share_says(control)}." if control.shared is not None else ".")
    )


def share_says(summary: SharedSpanSummary) -> str:
    """The share of unstable features' energy inside kept spans, with its interval and what chance gives."""
    chance = ""
    if summary.chance_share is not None:
        chance = f"; random spans of the same ranks hold {percent(summary.chance_share)}"
    return f"{_interval(summary)} of the {_energy(summary)}{chance}"


class Membership(Protocol):
    """The span or candidate that a feature is in, as far as it is told in words."""

    @property
    def number(self) -> int: ...
    @property
    def kept(self) -> bool: ...
    @property
    def n_sharing(self) -> int: ...
    @property
    def n_left_out(self) -> int: ...


def membership_says(span: Membership) -> str:
    """A feature's span in a few words."""
    if span.kept:
        return f"part of span #{span.number}, which {span.n_sharing} of {span.n_left_out} seeds share"
    return f"in candidate #{span.number}, which nothing keeps apart from chance"


def _energy(summary: SharedSpanSummary) -> str:
    return "energy that unstable features carry" if summary.weighted else "energy of unstable features’ decoder rows"


def _interval(summary: SharedSpanSummary) -> str:
    shared = summary.shared or 0.0
    digits = 0 if shared >= 0.1 else 1
    text = percent(shared, digits)
    if summary.shared_low is None or summary.shared_high is None:
        return text
    return f"{text} [{100 * summary.shared_low:.{digits}f}, {100 * summary.shared_high:.{digits}f}]"


def _failures(summary: SharedSpanSummary) -> str:
    parts = [
        f"{count} {(_ONE if count == 1 else _SEVERAL)[reason]}"
        for reason, count in zip(summary.failures, summary.failure_counts, strict=True)
    ]
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else "".join(parts)


def _n_nulls(spans: Sequence[SharedSpan]) -> str:
    """How many nulls were drawn: one of them needs densities."""
    n = sum(any(getattr(span, f"p_{name}") is not None for span in spans) for name in NULL_SETS)
    return _NUMBERS.get(n, str(n))


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"


# -- one span ----------------------------------------------------------------------------------------------------


def span_sentence(span: SharedSpan) -> str:
    """What a candidate is, and what speaks for or against it."""
    who = f"{counted(span.n_features, 'unstable feature')} of {counted(span.n_seeds, 'seed')} lie in {_directions(span.rank)}"
    if span.kept:
        says = f"Shared by {span.n_sharing} of {span.n_left_out} seeds: {who}."
    else:
        says = f"Unexplained: {who}, but {FAILURE_SAYS.get(span.failed or '', 'it does not beat every null')}."
    if span.energy is None:
        return f"{says} Without any one of {span.n_left_out} seeds it is not found again, so that nothing is measured of it."
    nulls = {name: value for name in NULL_SETS if (value := getattr(span, f"{name}_energy")) is not None}
    beside = ""
    if nulls:
        name = max(nulls, key=lambda each: nulls[each])
        beside = f"; of the nulls, {_NULL_SAYS[name]} capture most, {percent(nulls[name], 0)} on average"
    return f"{says} As found without a seed, it captures {percent(span.energy, 0)} of that seed’s nearest features{beside}."


def ablation_sentence(span: SharedSpan, n_loss_tokens: int | None) -> str | None:
    """What masking a span's members costs, beside as many others; None where it was not measured.

    `n_loss_tokens` are those that the loss is a mean over.
    """
    if span.ev is None or span.ev_whole is None:
        return None
    text = (
        f"With all {span.n_features} members masked, explained variance is {span.ev:.3f} instead of {span.ev_whole:.3f}, mean over "
        "seeds"
    )
    if span.ev_control is not None:
        spread = f" ± {span.ev_control_sd:.3f}" if span.ev_control_sd is not None else ""
        text += (
            f"; with as many living features of about the same densities masked it is {span.ev_control:.3f}{spread}: the span "
            f"costs {_beside(span.ev_control - span.ev, span.ev_control_sd)}"
        )
    text += "."
    return f"{text} {loss}" if (loss := loss_sentence(span, n_loss_tokens)) else text


def loss_sentence(span: SharedSpan, n_tokens: int | None) -> str | None:
    """What masking a span's members adds to the next-token loss, beside as many others; None where it was not measured."""
    if span.loss is None or span.loss_whole is None:
        return None
    text = f"The next-token loss is then {span.loss:.3f} nats instead of {span.loss_whole:.3f}"
    if n_tokens is not None:
        text += f", on {counted(n_tokens, 'token')}"
    if span.loss_control is None:
        return f"{text}."
    spread = f" ± {span.loss_control_sd:.3f}" if span.loss_control_sd is not None else ""
    says = _beside(span.loss - span.loss_control, span.loss_control_sd)
    return f"{text}; with the same others masked it is {span.loss_control:.3f}{spread}: the span costs {says}."


_NULL_SAYS = {
    "living": "random living features",
    "density": "random living features of about equal density",
    "rotated": "rotated dictionaries",
    "second_moment": "random rows of the same second moment",
}


def _directions(rank: int) -> str:
    return "one direction" if rank == 1 else f"a span of {rank} directions"


def _beside(difference: float, spread: float | None) -> str:
    """More or less than its controls, where they differ by more than two of their standard deviations."""
    if abs(difference) <= 2 * (spread or 0.0):
        return "about as much as they do"
    return "more than they do" if difference > 0 else "less than they do"
