"""What pages on a text of the user's own ask the live engine, and what they say where there is no answer."""

from seedscope.app.live.asking import Ask
from seedscope.app.live.client import EngineRefusedError
from seedscope.app.live.process import EngineStartingError
from seedscope.app.store.errors import BadValue
from seedscope.app.store.missing import NO_MODEL, Missing
from seedscope.app.store.study import StudyStore
from seedscope.engine.contract.queries import LiveQuery
from seedscope.engine.contract.tables.study import NO_TOKENS, Ensemble

LONGEST_ADDRESS = 8192  # bytes behind the question mark: what browsers, proxies and chat programs carry


def as_forms_send_it(text: str) -> str:
    """A link and the form that it fills mean the same text."""
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")


def why_no_text(store: StudyStore, row: Ensemble) -> Missing | None:
    """Why no text can be tried on an ensemble; None where one can."""
    missing = (
        store.missing(row.ensemble).get("activity") if store.study.model is None or row.hookpoint is None else None
    )
    if store.study.synthetic:
        missing = Missing("a text of your own", NO_MODEL, None)
    if store.study.recorded:
        missing = Missing("a text of your own", f"undefined: {NO_TOKENS}", None)
    if row.control_of is not None:
        missing = Missing("a text of your own", f"its seeds read {store.study.model} with random weights", None)
    return missing


def text_question(store: StudyStore, row: Ensemble, text: str, *, n_bytes: int, span: str = "") -> Ask:
    """The question about a text whose page has an address of `n_bytes`; raises BadValue where that is too long to share."""
    if n_bytes > LONGEST_ADDRESS:
        raise BadValue("text", f"an address of {n_bytes:,} bytes", f"at most {LONGEST_ADDRESS:,}: shorten the text")
    seeds = tuple(member.seed for member in store.members(row.ensemble))
    model = store.study.model_digest or ""
    return Ask(LiveQuery("try", store.study.study, row.ensemble, row.folder, seeds, text=text, model=model, span=span))


def instead(error: Exception) -> tuple[str, bool, int]:
    """(what the page says instead of an answer, whether it asks again by itself, its status)."""
    if isinstance(error, BadValue):
        says = f"the text makes {error.found}, and a link to this page can have {error.expected.replace(': ', '; ')}"
        return says, False, 422
    if isinstance(error, EngineRefusedError):
        again = error.cause in ("late", "busy")
        return str(error), again, 202 if again else 422 if error.cause == "query" else 503
    return str(error), isinstance(error, EngineStartingError), 202 if isinstance(error, EngineStartingError) else 503


def why_cut(store: StudyStore, n_tokens: int) -> str:
    """Why the model did not read all of a text of which `n_tokens` were."""
    room = store.study.n_ctx or 0
    return (
        f"the study reads windows of {room:,}"
        if n_tokens + 1 >= room
        else "more features are active than one answer holds"
    )
