"""Rewriting an SAE exactly in the form of SAEs trained by SeedScope: input scales, centring and norms go into its tensors."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from seedscope.engine.saes import sae as saes
from seedscope.engine.saes.convention import Convention
from seedscope.engine.saes.sae import SAE

ONE_NORM = 1e-4  # decoder norms that differ by less, relative, count as equal; so do norms that are so close to 1
AGREES = 1e-9  # largest difference of outputs in float64, relative to the largest output, that counts as agreement
FORMS = ("topk", "jumprelu", "relu", "gated")  # architectures that SeedScope trains


class Folded(NamedTuple):
    """An SAE after folding."""

    sae: SAE  # float64
    remarks: tuple[str, ...]  # one sentence on every change of its tensors


@torch.no_grad()
def fold(original: SAE) -> Folded:
    """Rewrite an SAE so that b_dec is subtracted from unscaled inputs and, where possible, decoder rows have norm 1.

    Reconstructions do not change; codes are multiplied by the norms that decoder rows had. TopK ranks its codes, so decoder rows
    of different norms keep them, unless the SAE ranks by codes times norms. Raises ValueError where inputs are normalized token
    by token, which no fixed weights can do, and for architectures that SeedScope does not train.
    """
    c, remarks = original.convention, []
    if c.transcoder:
        raise ValueError(
            "it is a transcoder, and SAEs are trained here, not transcoders, so it cannot be compared with them; expected an SAE. "
            "Import transcoders that were trained like it: seedscope import"
        )
    if c.normalize == "centre":
        raise ValueError(
            "normalize is centre: it was trained on a model with centred writing weights, so it cannot be compared with SAEs "
            "trained here; expected none. Import seeds that were trained like it: seedscope import"
        )
    if c.normalize != "none":
        raise ValueError(
            f"normalize is {c.normalize}: every token is divided by a length of its own, which no fixed weights do, so it cannot "
            "be compared with SAEs trained here; expected none. Import seeds that were trained like it: seedscope import"
        )
    if c.architecture not in FORMS:
        raise ValueError(
            f"architecture is {c.architecture}, expected one that can be trained here ({', '.join(FORMS)}); import seeds that were "
            "trained like it: seedscope import"
        )
    t = {name: getattr(original, name).detach().double() for name in c.tensors}
    if c.input_scale != 1:
        t["W_enc"] = t["W_enc"] * c.input_scale
        t["W_dec"], t["b_dec"] = t["W_dec"] / c.input_scale, t["b_dec"] / c.input_scale
        remarks.append(f"input scale {c.input_scale:.6g} folded into the weights")
    if not c.subtract_b_dec and bool(t["b_dec"].any()):
        shift = torch.einsum("mi,mis->ms", t["b_dec"], t["W_enc"])
        t["b_enc"] = t["b_enc"] + shift
        if "b_mag" in t:
            t["b_mag"] = t["b_mag"] + shift * t["r_mag"].exp()
        remarks.append("its inputs are not centred at b_dec: folded into the encoder's bias")
    _unit_rows(t, c, remarks)
    if "threshold" in t:
        if c.inclusive:  # pre >= threshold is pre > the next smaller number, in the precision of pre
            threshold = t["threshold"].to(original.W_dec.dtype)
            t["threshold"] = torch.nextafter(threshold, torch.full_like(threshold, -torch.inf)).double()
        t["threshold"] = t["threshold"].clamp_min(0)  # below zero the ReLU decides anyway
    return Folded(saes.assemble(t, Convention(c.architecture, k=c.k), original.seeds), tuple(remarks))


def _unit_rows(t: dict[str, Tensor], c: Convention, remarks: list[str]) -> None:
    """Divide decoder rows by their norms, in place, and multiply the tensors that their codes are computed from."""
    norms = t["W_dec"].norm(dim=-1)
    usable = saes.directed(t["W_dec"])
    low, high = (float(each) for each in norms[usable].aminmax()) if bool(usable.any()) else (1.0, 1.0)
    if c.rescale_by_decoder_norm:
        t["W_enc"], t["b_enc"] = t["W_enc"] * norms[:, None], t["b_enc"] * norms
        t["W_dec"] = t["W_dec"] / torch.where(usable, norms, 1)[..., None]
        remarks.append("codes ranked by their decoder rows' norms: folded into the encoder")
        return
    factor = torch.where(usable, norms, 1)
    if c.architecture == "topk":
        if high > low * (1 + ONE_NORM):
            remarks.append(
                f"decoder rows keep their norms, {low:.3g} to {high:.3g}: its codes are ranked before they are scaled"
            )
            return
        factor = torch.full_like(norms, low)
    if max(abs(low - 1), abs(high - 1)) > ONE_NORM:
        remarks.append(f"decoder rows divided by their norms, {low:.3g} to {high:.3g}, codes multiplied by them")
    t["W_enc"], t["W_dec"] = t["W_enc"] * factor[:, None], t["W_dec"] / factor[..., None]
    for name in ("b_enc", "threshold", "b_mag"):
        if name in t:
            t[name] = t[name] * factor


@torch.no_grad()
def largest_difference(original: SAE, folded: SAE, rows: Float[Tensor, "tokens d_in"]) -> float:
    """Largest difference between two SAEs' reconstructions of some rows, relative to their largest entry; in float64."""
    names = original.convention.tensors
    exact = saes.assemble(
        {name: getattr(original, name).detach().double() for name in names}, original.convention, original.seeds
    )
    before, after = exact(rows.double()), folded(rows.double())
    return float((before - after).abs().max() / before.abs().max().clamp_min(torch.finfo(torch.float64).tiny))
