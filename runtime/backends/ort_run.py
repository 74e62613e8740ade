"""What may be done around a run of an ONNX Runtime session: more inputs bound, more outputs fetched."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from piston.core.bundle.interface import StateSpec
from piston.runtime.backends.kv_cache import KVCache

Values = dict[str, NDArray[Any]]


class Run:
    """One run that is about to be made, with the inputs, outputs and states of its step bound.

    A hook may `inject`, must `fetch` once, which makes the run, and may then read `states`.

    Args:
        binding: an onnxruntime.IOBinding; outputs are bound in the order logits, states.
        execute: makes the run.
        cache: what the states are rows of.
    """

    def __init__(self, binding: Any, execute: Callable[[Any], None], cache: KVCache) -> None:
        self.binding = binding
        self.cache = cache
        self._execute = execute

    def inject(self, values: Mapping[str, NDArray[Any]], ending: str = "") -> None:
        """Bind more inputs, each `<name><ending>`; the arrays must not change before the run is over."""
        for name, array in values.items():
            self.binding.bind_cpu_input(f"{name}{ending}", array)

    def fetch(self, names: Sequence[str] = (), ending: str = "") -> Values:
        """Make the run; copies of the outputs `<name><ending>`, by name.

        Raises:
            EngineError: ONNX Runtime fails.
        """
        found = fetch(self._execute, self.binding, [f"{name}{ending}" for name in names])
        return {name: array.copy() for name, array in zip(names, found, strict=True)}

    def states(self) -> Values:
        """After the run: copies of the rows of the cache that it was bound to, by the names of outputs."""
        names = [state.output for state in self.cache.spec.states]
        arrays = self.binding.get_outputs()[1 : 1 + len(names)]  # bound after the logits
        return {name: array.numpy().copy() for name, array in zip(names, arrays, strict=True)}


RunHook = Callable[[Run], None]


def fetch(execute: Callable[[Any], None], binding: Any, names: Sequence[str]) -> list[NDArray[Any]]:
    """Bind these outputs behind all others, run, and return their arrays."""
    for name in names:
        binding.bind_output(name, "cpu")
    execute(binding)
    return [value.numpy() for value in binding.get_outputs()[-len(names) :]] if names else []


def bind_state(binding: Any, state: StateSpec, memory: NDArray[Any]) -> None:
    """Bind `memory`, contiguous, as past and as present: written in place."""
    bound = ("cpu", 0, memory.dtype.type, list(memory.shape), memory.ctypes.data)
    binding.bind_input(state.input, *bound)
    binding.bind_output(state.output, *bound)
