"""The graph of a module of one's own and its lowering on the examples that travel with it.

Where activations are rounded to codes the lowered graph gets the canonical graph's, as in ragged.py.
"""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import onnx_ir as ir

from piston.core.bundle.examples import Example
from piston.core.bundle.manifest import Manifest
from piston.core.errors import ParityError
from piston.engines.equivalence.activation_injection import Tape, injectable
from piston.engines.equivalence.answers import reference_of
from piston.engines.equivalence.ragged import check_activations, inner_session, named_without
from piston.graph.qdq import remainders
from piston.graph.tap import GIVEN, OWN
from piston.runtime.backends.session import OrtOptions


def check_module(canonical: Path, lowered: Path, model: Manifest, examples: Sequence[Example]) -> float:
    """The largest difference of an output over the examples.

    Raises:
        ParityError: an output, or an activation before it is rounded, is further from the canonical graph's than its
            bound.
    """
    worst = 0.0
    with (
        reference_of(canonical, model, lowered.parent) as exposed,
        injectable(lowered) as (forced, names, has_nbits),
        closing(inner_session(exposed, OrtOptions(optimize=True, prepack=False))) as reference,
        closing(inner_session(forced, OrtOptions(prepack=not has_nbits))) as candidate,
    ):
        tape = Tape(names, remainders(ir.load(canonical).graph))
        for example in examples:
            expected = reference.run(example.inputs)
            given = {f"{name}{GIVEN}": expected[f"{name}{GIVEN}"] for name in names}
            found = candidate.run({**example.inputs, **given})
            tape.compare(named_without(expected, names, GIVEN), named_without(found, names, OWN))
            check_activations(tape)
            wanted = Example({}, {name: expected[name] for name in example.outputs})
            for name in wanted.outputs:
                difference, bound = wanted.difference(name, found[name]), wanted.bound(name)
                worst = max(worst, difference)
                if not difference <= bound:
                    raise ParityError(
                        f"The lowered graph differs from the canonical one in {name!r}: by {difference:.3g}, allowed "
                        f"are {bound:.3g}. Nothing was written."
                    )
    return worst
