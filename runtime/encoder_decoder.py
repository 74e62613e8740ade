"""How a bundle of an encoder-decoder is opened, whatever its task."""

from typing import TYPE_CHECKING, Protocol, TypeVar

from piston.core.bundle.hashing import Hashing
from piston.runtime.bundle import Bundle
from piston.runtime.process_memory import container_memory

if TYPE_CHECKING:
    from piston.core.bundle.manifest import EngineSpec, Manifest
    from piston.runtime.backends.engine import EncoderDecoderEngine
    from piston.runtime.text.tokenizer import Tokenizer


class EncoderDecoderModel(Protocol):
    """What `load` returns for such a bundle."""

    TASK: str
    target: str
    remarks: tuple[str, ...]

    def __init__(self, manifest: "Manifest", engine: "EncoderDecoderEngine", tokenizer: "Tokenizer") -> None: ...


Model = TypeVar("Model", bound=EncoderDecoderModel)


def open_encoder_decoder(
    model_class: type[Model],
    bundle: Bundle,
    *,
    target: str | None = None,
    max_batch: int | None = None,
    max_length: int | None = None,
    threads: int = 0,
) -> Model:
    """Load an engine of a bundle that was opened unverified; arguments and errors as of `piston.runtime.load`."""
    bundle.manifest.require_task(model_class.TASK, bundle.directory)
    hashing = Hashing.begin(bundle.manifest, bundle.directory)
    from piston.runtime.backends.engine import EncoderDecoderEngine
    from piston.runtime.backends.registry import candidates, family_of, open_engine
    from piston.runtime.loading import open_first, open_verified
    from piston.runtime.memory_budget import sizes_for

    def opened(spec: "EngineSpec") -> Model:
        sizes, remarks = sizes_for(
            bundle.manifest,
            spec,
            max_batch=max_batch,
            max_length=max_length,
            threads=threads,
            memory=container_memory() if family_of(spec.target) == "ort-cpu" else None,
        )
        parts = open_verified(bundle, spec, sizes, hashing, opening=open_engine)
        assert isinstance(parts.engine, EncoderDecoderEngine)
        model = model_class(bundle.manifest, parts.engine, parts.tokenizer)
        model.target, model.remarks = spec.target, remarks
        return model

    model, passed_over = open_first(candidates(bundle, target), opened)
    model.remarks = (*passed_over, *model.remarks)
    return model
