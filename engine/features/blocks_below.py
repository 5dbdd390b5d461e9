"""The blocks of a model below a hook point, whose output is kept so that further passes over the same tokens skip them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from seedscope.engine.activations import hookpoints
from seedscope.engine.activations.thread_hooks import in_this_thread

if TYPE_CHECKING:
    import transformers


class BlocksBelow:
    """All blocks in front of the first that holds one of some modules; none where a module is in no block.

    Not for a model that several threads run: while blocks are skipped, a second thread that skips them too would undo it.
    """

    def __init__(self, network: "transformers.PreTrainedModel", modules: list[nn.Module]) -> None:
        _, blocks = hookpoints.block_list(network)
        inside = [{id(each) for each in block.modules()} for block in blocks]
        first = [next((i for i, ids in enumerate(inside) if id(module) in ids), 0) for module in modules]
        self._blocks = blocks[: min(first, default=0)]
        self._outputs: list[Any] = []  # of the last of them, batch by batch

    def __len__(self) -> int:
        return len(self._blocks)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Passes whose outputs of the last block are kept, one per batch."""
        self._outputs = []

        def keep(_module: object, _inputs: object, output: Any) -> None:
            self._outputs.append(_copied(output))

        handle = self._blocks[-1].register_forward_hook(in_this_thread(keep))
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def skipped(self, batch: int) -> Iterator[None]:
        """Passes of one batch in which every block below gives at once what the last of them gave before."""
        own, output = threading.get_ident(), self._outputs[batch]

        def giving(forward: Callable[..., Any]) -> Callable[..., Any]:
            def give(*inputs: Any, **named: Any) -> Any:
                # A copy: what comes behind may add to it in place.
                return _copied(output) if threading.get_ident() == own else forward(*inputs, **named)

            return give

        for block in self._blocks:
            block.forward = giving(block.forward)
        try:
            yield
        finally:
            for block in self._blocks:
                del block.forward  # the class's own shows again


def _copied(output: Any) -> Any:
    """The output of a block with its first tensor, the residual stream, copied."""
    if isinstance(output, Tensor):
        return output.detach().clone()
    return (output[0].detach().clone(), *output[1:])
