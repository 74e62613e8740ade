"""Language models: a bundle becomes a LanguageModel.

What computes is imported while files are hashed.
"""

from typing import TYPE_CHECKING

from piston.core.bundle.hashing import Hashing
from piston.core.bundle.manifest import TEXT_GENERATION
from piston.runtime.bundle import Bundle
from piston.runtime.model import LanguageModel
from piston.runtime.process_memory import container_memory

if TYPE_CHECKING:
    from piston.core.bundle.manifest import EngineSpec


def open_model(
    bundle: Bundle,
    *,
    target: str | None = None,
    max_batch: int | None = None,
    max_length: int | None = None,
    threads: int = 0,
    best_only: bool = False,
) -> LanguageModel:
    """Load an engine of a bundle that was opened unverified; arguments and errors as of `piston.runtime.load`.

    With `best_only` the best engine is not replaced either: for callers that report its figures.
    """
    bundle.manifest.require_task(TEXT_GENERATION, bundle.directory)
    hashing = Hashing.begin(bundle.manifest, bundle.directory)
    from piston.runtime.backends.registry import candidates, family_of, open_engine
    from piston.runtime.generate.speculation import Verification, exact_tokens
    from piston.runtime.loading import open_first, open_verified
    from piston.runtime.memory_budget import sizes_for

    def opened(spec: "EngineSpec") -> LanguageModel:
        sizes, remarks = sizes_for(
            bundle.manifest,
            spec,
            max_batch=max_batch,
            max_length=max_length,
            threads=threads,
            memory=container_memory() if family_of(spec.target) == "ort-cpu" else None,
        )
        parts = open_verified(bundle, spec, sizes, hashing, opening=open_engine)
        model = LanguageModel(bundle.manifest, parts.engine, parts.tokenizer, parts.template)
        model.target, model.remarks, model.verification = spec.target, remarks, Verification(exact_tokens(spec))
        return model

    specs = candidates(bundle, target)
    model, passed_over = open_first(specs[:1] if best_only else specs, opened)
    model.remarks = (*passed_over, *model.remarks)
    return model
