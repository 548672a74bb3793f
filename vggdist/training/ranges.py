"""Names for the parts of a training step, under which a profile shows them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch.profiler import record_function

STEP = "ProfilerStep#"
"""A whole step, followed by its number; TensorBoard's plugin knows steps by this name."""
RANGES = ("input", "forward", "backward", "exchange", "update")
"""What the thread of the step does, one after the other; the rest of a step has no name."""
SEND = "send"
"""Within backward or exchange: a gradient is made ready and its collective is started."""

_NOTHING = nullcontext()
_openers: list[Callable[[str], AbstractContextManager[object]]] = [lambda _: _NOTHING]


def named(name: str) -> AbstractContextManager[object]:
    """A range of the profile, or nothing where none is being recorded."""
    return _openers[-1](name)


@contextmanager
def recorded() -> Iterator[None]:
    """Within the block, ranges are recorded.

    Not always: `record_function` takes ten microseconds of the host even without a profiler.
    """
    _openers.append(record_function)
    try:
        yield
    finally:
        _openers.pop()
