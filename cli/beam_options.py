"""Options of `piston run` for beam search, with the names of transformers."""

import argparse
from typing import TYPE_CHECKING, Any

from piston.core.errors import MisuseError

if TYPE_CHECKING:
    from piston.runtime.sampling.beam_params import BeamParams

WORDS = {"true": True, "false": False, "never": "never"}


def add_beam_arguments(parser: argparse.ArgumentParser, remark: str = "-n returns several") -> None:
    """Declare them; what is not given keeps its default. `remark` is on what comes of the search."""
    group = parser.add_argument_group("beam search")
    group.add_argument("--num-beams", type=int, metavar="N", help=f"search among N answers at a time; {remark}")
    group.add_argument("--length-penalty", type=float, metavar="X", help="above 0 favours long answers (default 1)")
    group.add_argument("--early-stopping", choices=WORDS, help="when the search ends (default false)")


def beams_from(arguments: argparse.Namespace, recommended: "BeamParams | None" = None) -> "BeamParams | None":
    """The given options on top of the recommended ones; None without beams.

    Takes -n out of the arguments: of a search it is the number of answers returned, of samples that of samples.

    Raises:
        MisuseError: a value is out of range, or an option is without effect, since there are no beams.
    """
    from piston.runtime.sampling.beam_params import BeamParams

    given: dict[str, Any] = {
        name: getattr(arguments, name)
        for name in ("num_beams", "length_penalty")
        if getattr(arguments, name) is not None
    }
    if arguments.early_stopping is not None:
        given["early_stopping"] = WORDS[arguments.early_stopping]
    if recommended is None and "num_beams" not in given:
        if given:
            raise MisuseError(f"--{next(iter(given)).replace('_', '-')} needs --num-beams.")
        return None
    if hasattr(arguments, "n"):
        given["num_return_sequences"] = arguments.n
        del arguments.n
    base = {} if recommended is None else {name: getattr(recommended, name) for name in BeamParams.__slots__}
    return BeamParams(**(base | given))
