"""Training settings that an SAE's files record, and those that its folders' names give: what members of an ensemble must share.

Left out is what may differ between seeds of one recipe: seeds, paths, devices, names of runs, times, versions, what is logged,
and what was measured (L0, dead features, norms). The model and hook point are compared on their own.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

# Parts of a config whose names say nothing beyond the settings in them.
_WRAPPERS = ("metadata", "trainer", "sae", "cfg", "training_architecture_details", "activation_fn_kwargs")
# Compared as the SAE's model, hook point, shape and convention, under the names that its library has for them.
_COMPARED_ELSEWHERE = frozenset({
    "model", "model_name", "lm_name", "hook_name", "hook_point", "hookpoint", "hf_hook_point_in", "hf_hook_point_out",
    "hook_point_in", "hook_point_out", "hook_name_out", "submodule_name", "layer_name", "d_in", "d_out", "d_sae",
    "activation_dim", "dict_size",
    "act_size", "k", "top_k", "architecture"
})  # fmt: skip
_LEFT_OUT = re.compile(
    r"""
      (.*_)?seeds?(_.*)?                                        # seeds
    | (?!.*data).*(path|dir|folder|file|url)s? | resume.* | checkpoint.* | save.* | .*checkpoints?  # paths, what is saved
    | (.*_)?devices? | .*_device_.* | cuda.* | num_workers | distribute_modules | n_gpus?           # devices
    | .*(digest|hash|checksum|sha256|fingerprint|uuid) | (.*_)?(remarks?|comments?|description|source)
    | name | (.*_)?(run|wandb|project|experiment|sae|group)_?name | (.*_)?ids? | tags? | notes? | entity | user(name)? | host(name)?
    | (.*_)?(time|timestamp|date|started|finished|created)(_at)? | .*version | git.* | commit
    | wandb.* | log.* | .*_log(ger|ging)?(_.*)? | verbose | eval.* | n_eval.* | hf_.* | .*(secret|password|api_key)
    | (recorded_)?l0 | .*dead.* | sparsity | mse | .*loss | ev | fvu | l2_ratio | .*explained.*  # measured
    | running_.* | (jump_relu_)?threshold | topk_threshold | .*scaling_factor | .*average_activation_norm.* | norm_factor
    | hookpoints | layers | layer_stride                        # of the run that trained this SAE beside others
    """,
    re.VERBOSE | re.IGNORECASE,
)
_KEPT = re.compile(r"dead_(feature_)?window|.*loss_coefficient|.*dead.*threshold", re.IGNORECASE)
_NUMBER = r"(\d+(?:[.p]\d+)?(?:e[+-]?\d+)?)"
_IN_NAMES = {
    name: re.compile(rf"(?<![a-z0-9])(?:{pattern})(?![a-z0-9])", re.IGNORECASE)
    for name, pattern in {
        "L0": r"(?:(?:average|avg|mean|target|tgt)[_-]?)?l0[_=-]?(\d+(?:\.\d+)?|small|medium|big|large)",
        "layer": r"(?:layers?|blocks?)[._=-]?(\d+)|h[._](\d+)|l([2-9]|[1-9]\d{1,2})(?:r|m|a|tc)?(?!\.\d)|l(1)(?!\.\d|[_=-]\d)",
        "site": r"(?:hook_)?(resid_pre|resid_mid|resid_post|attn_out|mlp_out|hook_z|transcoder)(?:_all)?(?:_layer_\d+)?",
        "width": r"width[_=-]?(\d+[km]?)",
        "expansion": r"x(\d+)|(\d+)x|(?:ef|expansion(?:[_-]factor)?)[_=-]?(\d+)",
        "k": r"(?:(?:batch)?top[_-]?)?k[_=-]?(\d+)",
        "l1": rf"l1(?:[_-]?(?:coeff?|coefficient|penalty|alpha|weight))?[_=-]{_NUMBER}|l1(\d+\.\d+(?:e[+-]?\d+)?)",
        "learning rate": rf"(?:lr|learning[_-]?rate)[_=-]?{_NUMBER}",
        "steps": r"steps?[_=-]?(\d+[km]?)|(\d+[km]?)[_-]?steps?(?![_=-]?\d)",
        "tokens": r"(\d+(?:\.\d+)?[kmb]?)[_-]?tokens?(?![_=-]?\d)|tokens?[_=-]?(\d+(?:\.\d+)?[kmb]?)",
        "batch size": r"(?:bs|batch(?:[_-]?size)?)[_=-]?(\d+)",
        "dataset": r"data[_-]?set[_=-]([a-z0-9]+)",
    }.items()
}
_ASSIGNED = re.compile(
    r"(?<![a-z0-9_.])([a-z][a-z0-9_.]*)=([^=,/\s]+?)(?=$|[,/\s]|[_-][a-z][a-z0-9_.]*=)", re.IGNORECASE
)
_LONGEST = 60  # characters of a value that an error shows


def recorded(*configs: Mapping[str, Any]) -> dict[str, str]:
    """{setting: value as text} of the configs of one SAE, later ones over earlier ones, without what may differ between seeds.

    Settings in a part of a config have its name in front, `optimizer.lr`, but for parts that hold all of the SAE's settings.
    """
    settings: dict[str, str] = {}
    for config in configs:
        settings |= dict(_flat(config, ()))
    return settings


def _flat(config: Mapping[str, Any], above: tuple[str, ...]) -> Iterable[tuple[str, str]]:
    for name, value in config.items():
        name = str(name)
        if name in _COMPARED_ELSEWHERE or (_LEFT_OUT.fullmatch(name) and not _KEPT.fullmatch(name)):
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, above if name in _WRAPPERS else (*above, name))
        elif value is None or isinstance(value, str | int | float | list | tuple):
            yield ".".join((*above, name)), _text(value)


def _text(value: Any) -> str:
    """A value as text: numbers by their value, however they were written."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 2] + ".."


def in_names(parts: Iterable[str]) -> dict[str, str]:
    """{setting: value as text} in the names of folders and files, the outermost first: `average_l0_22`, `lr_3e-4`, `k=32`."""
    values: dict[str, list[str]] = {}
    for part in parts:
        for name, pattern in _IN_NAMES.items():
            for match in pattern.finditer(part):
                values.setdefault(name, []).append(_plain(next(group for group in match.groups() if group)))
        for name, value in _ASSIGNED.findall(part):
            if not _LEFT_OUT.fullmatch(name) and not any(
                pattern.search(f"{name}={value}") for pattern in _IN_NAMES.values()
            ):
                values.setdefault(name, []).append(_plain(value))
    return {name: ", ".join(texts) for name, texts in values.items()}


def _plain(text: str) -> str:
    """One spelling of a number in a name: 1e-3, 0.001 and 0p001 are equal."""
    try:
        return f"{float(text.lower().replace('p', '.')):g}" if not text.isdigit() else str(int(text))
    except ValueError:
        return text.lower()
