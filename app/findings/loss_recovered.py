"""How much of the next-token loss a reconstruction recovers."""

from seedscope.engine.contract.tables.study import Member


def loss_recovered(member: Member) -> float | None:
    """(zero - spliced) / (zero - own); None where losses were not measured, or where zeros cost nothing."""
    own, spliced, zero = member.loss_own, member.loss_spliced, member.loss_zero
    if own is None or spliced is None or zero is None or zero <= own:
        return None
    return (zero - spliced) / (zero - own)
