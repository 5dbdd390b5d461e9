"""An SAE's forward pass in the form that training here ends with, exactly: so that it can stand beside SAEs trained here."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from seedscope.engine.saes import sae as saes
from seedscope.engine.saes.convention import Convention
from seedscope.engine.saes.sae import SAE

ONE_NORM = 1e-4  # decoder norms that differ by less are one, and so are those near 1
AGREES = 1e-9  # largest difference between outputs, of the largest output, in float64
FORMS = ("topk", "jumprelu", "relu", "gated")  # in which training here ends


class Folded(NamedTuple):
    """The same SAE in another form."""

    sae: SAE  # float64
    remarks: tuple[str, ...]  # what was folded into its tensors


@torch.no_grad()
def fold(given: SAE) -> Folded:
    """Write an SAE with b_dec subtracted from inputs as they are, and unit decoder rows where codes allow it.

    Reconstructions stay as they were; codes are multiplied by the norms that decoder rows had. TopK ranks its codes, so rows of
    different norms stay as they are unless the SAE ranks by codes times norms. Raises ValueError for what no fixed weights can do.
    """
    c, remarks = given.convention, []
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
    t = {name: getattr(given, name).detach().double() for name in c.tensors}
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
        if c.inclusive:  # pre >= threshold, between numbers of the precision that it is computed in
            held = t["threshold"].to(given.W_dec.dtype)
            t["threshold"] = torch.nextafter(held, torch.full_like(held, -torch.inf)).double()
        t["threshold"] = t["threshold"].clamp_min(0)  # below zero the ReLU decides
    return Folded(saes.assemble(t, Convention(c.architecture, k=c.k), given.seeds), tuple(remarks))


def _unit_rows(t: dict[str, Tensor], c: Convention, remarks: list[str]) -> None:
    """Divide decoder rows by their norms, in place, and multiply what their codes are made of."""
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
def largest_difference(given: SAE, folded: SAE, rows: Float[Tensor, "tokens d_in"]) -> float:
    """How far reconstructions of some rows lie apart, as a share of their largest entry; in float64."""
    names = given.convention.tensors
    exact = saes.assemble(
        {name: getattr(given, name).detach().double() for name in names}, given.convention, given.seeds
    )
    before, after = exact(rows.double()), folded(rows.double())
    return float((before - after).abs().max() / before.abs().max().clamp_min(torch.finfo(torch.float64).tiny))
