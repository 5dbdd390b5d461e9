"""What features do on the evaluation tokens, kept as a part."""

from typing import Any


def _flat(activity) -> dict[str, Any]:
    """Activity as named arrays, its contexts, triggers and examples among them."""
    held = activity._asdict()
    inside = {name: held.pop(f"{name}s")._asdict() for name in ("context", "trigger", "example")}
    inside["trigger"]["what"] = inside["trigger"]["what"].astype(str)  # text of fixed width: no pickle
    return held | {f"{kind}_{name}": array for kind, each in inside.items() for name, array in each.items()}
