"""Tiny models by name, in float and calibrated: what fixtures of encoders and of encoder-decoders have in common."""

from typing import ClassVar


class TaskToys:
    """Checkpoints, model directories and bundles by name, each made when it is first asked for."""

    BUILD: ClassVar[dict[str, int]] = {}  # options of piston.engines.build

    def __init__(self, toys):
        self.toys = toys

    def exported(self, name):
        """The float model directory."""
        raise NotImplementedError

    def calibrated(self, name, scheme):
        """The model directory of another scheme than "fp"."""
        raise NotImplementedError

    def model(self, name, scheme="fp"):
        """The model directory, in float or calibrated."""
        return self.exported(name) if scheme == "fp" else self.calibrated(name, scheme)

    def checkpoint(self, name):
        """The directory of the checkpoint."""
        return self.exported(name).parent / "checkpoint"

    def bundle(self, name, scheme="fp"):
        """The bundle for ort-cpu."""
        return self.toys.built(self.model(name, scheme), **self.BUILD)

    def everywhere(self, name, scheme):
        """The bundle for ort-cpu, and for Piston's own kernels where they run."""
        from own_kernels import why_not

        from piston.runtime import kernels

        targets = ("ort-cpu",) if why_not() else ("ort-cpu", kernels.TARGET)
        return self.toys.built(self.model(name, scheme), targets, **self.BUILD)
