"""The compiler's phases as our progress bar, and the way to stop it."""

from typing import Any, Protocol

from piston.core.console import Progress


class Monitor(Protocol):
    """What `build_monitor` returns."""

    def cancel(self) -> None:
        """Let the compiler stop after its present step."""


def build_monitor(module: Any, progress: Progress) -> Any:
    """A progress monitor of the module's own class; the outermost phase that is under way has the bar."""

    class BuildMonitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()  # a pybind11 base refuses to be used without
            self.phases: dict[str, tuple[int, int]] = {}  # name -> depth, steps
            self.is_cancelled = False

        def cancel(self) -> None:
            self.is_cancelled = True

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            depth = self.phases[parent_phase][0] + 1 if parent_phase in self.phases else 0
            self.phases[phase_name] = depth, num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            if not self.is_cancelled and phase_name in self.phases:
                progress.step(phase_name.lower(), step + 1, self.phases[phase_name][1])
            return not self.is_cancelled

        def phase_finish(self, phase_name: str) -> None:
            self.phases.pop(phase_name, None)

    return BuildMonitor()
