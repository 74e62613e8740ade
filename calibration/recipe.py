"""What was decided about a quantization: everything that, with the same data, gives the same model again."""

import dataclasses
import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

from piston.calibration.graph.convolutions import Convolution
from piston.calibration.graph.linears import Linear
from piston.calibration.graph.names import module_of
from piston.calibration.observe.observers import Method
from piston.core.errors import MisuseError
from piston.graph.rounding import Grid
from piston.graph.sparsity import GROUP

Scheme = Literal["w8a8", "w8", "w4", "fp"]
Rounding = Literal["nearest", "gptq", "awq"]
Storage = Literal["float", "int8"]
CacheKind = Literal["float", "int8"]
Granularity = Literal["tensor", "channel"]
SCHEMES: tuple[Scheme, ...] = ("w8a8", "w8", "w4", "fp")
Sparsity = Literal["", "2:4"]
Pruning = Literal["sparsegpt", "magnitude"]
PRUNINGS: tuple[Pruning, ...] = ("sparsegpt", "magnitude")
ROUNDINGS: tuple[Rounding, ...] = ("nearest", "gptq", "awq")
GRANULARITIES: tuple[Granularity, ...] = ("channel", "tensor")
FORMER_NAMES = {"spared": "kept_in_float"}  # of fields, in recipes that were written before
NARROW = 3  # times as many inputs as outputs
COPIES, WHOLE, FEWEST = 16, 64, 32
# Of the tables. For a 135M Llama 32, 64 and 128 cost 0.15, 0.37 and 0.73 % of perplexity, activations rounded by the
# kernel included, and their scales 12, 6 and 3 % of the tables' size: w4 has the less for it and the more to lose.
TABLE_BLOCK, W4_TABLE_BLOCK = 32, 64
SHOWN = 3  # names in a warning


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to quantize.

    Args:
        scheme: w8a8 quantizes weights and activations to INT8, w8 and w4 weights alone, fp nothing but the cache.
        block: inputs that share a scale; 0 for whole output channels.
        rounding: of weights.
        method: how the range of an activation is found (w8a8).
        smooth: move activation outliers into the weights (w8a8).
        outliers: input channels of each linear behind an activation function that stay in float (w8a8).
        remainder: where it pays, what an activation's scale leaves over is rounded once more, in linears behind an
            activation function (w8a8); see `piston.calibration.schemes.residual`.
        keep: linears that stay in float, by module path or pattern; nothing else reckons with their rounding.
        kept_in_float: linears that stay in float too, by module path, where all others are rounded as if they did not:
            what a budget or a ranking found once everything was rounded.
        kept: how the weights of both are stored: float, or int8 in blocks (what None is for w8a8, and for it alone).
        int8: linears that get eight bits where the others get four, by module path or pattern (w4); None for those that
            `usual_int8` names once there is a model, and in a settled recipe, which is from before that, for the narrow
            ones alone, see `is_narrow`.
        split: copies of large inputs that linears behind a norm read beside the inputs (gptq); None for as many as make
            whole blocks, see `copies_beside`.
        embedding: how the table of embeddings is stored.
        head: how the lm_head's matrix is stored.
        kv: what keys and values are rounded to before they are cached.
        kv_granularity: whether each channel of each head has a scale, or all of a layer's keys, or values, have one.
        kv_scales: of each cache by name; found by calibration where it is empty.
        sparsity: "2:4" for weights of which two of every four inputs are zero; empty for none.
        dense: linears that are not made sparse, by module path or pattern.
        pruning: which weights become zero: sparsegpt makes up for them, magnitude does not.
        trained: SHA-256 of the scales that a distillation trained with the model's weights; weights and activations are
            rounded by them, see `piston.graph.trained_scales`; empty for none.
        model: SHA-256 of the files of the model that the recipe was made for; empty for any.
        data: SHA-256 of each file that its values were found on, by name; empty for any.
    """

    scheme: Scheme
    block: int = 0
    rounding: Rounding = "nearest"
    method: Method = "minmax"
    smooth: bool = True
    outliers: int = 0
    remainder: bool = True
    keep: tuple[str, ...] = ()
    kept_in_float: tuple[str, ...] = ()
    kept: Storage | None = None
    int8: tuple[str, ...] | None = None
    split: int | None = None
    embedding: Storage = "float"
    head: Storage = "float"
    kv: CacheKind = "float"
    kv_granularity: Granularity = "channel"
    kv_scales: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    sparsity: Sparsity = ""
    dense: tuple[str, ...] = ()
    pruning: Pruning = "sparsegpt"
    trained: str = ""
    model: str = ""
    data: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES or self.rounding not in ROUNDINGS:
            known = f"schemes: {', '.join(SCHEMES)}; roundings: {', '.join(ROUNDINGS)}"
            raise MisuseError(f"No scheme {self.scheme!r} with rounding {self.rounding!r}; {known}.")
        if self.scheme == "w8a8" and self.block:
            raise MisuseError(f"w8a8 has one scale for each output channel; --block {self.block} is for w8 and w4.")
        if self.scheme == "w8a8" and self.rounding != "nearest":
            raise MisuseError(f"w8a8 rounds weights to nearest; --rounding {self.rounding} is for w8 and w4.")
        if self.scheme == "w4" and not self.block:
            raise MisuseError("w4 needs --block 32, 64 or 128: four bits are too few for one scale a channel.")
        if self.int8 and self.scheme != "w4":
            raise MisuseError(f"--int8 gives linears of w4 eight bits; {self.scheme} has no others.")
        if self.split is not None and (self.split < 0 or self.split % COPIES or self.rounding != "gptq"):
            raise MisuseError(
                f"--split {self.split}: gptq splits inputs, into multiples of {COPIES} copies, or 0 for none."
            )
        if self.trained and (self.scheme == "fp" or self.rounding != "nearest" or self.outliers):
            raise MisuseError("Trained scales round weights to nearest; leave --rounding and --outliers out.")
        self._check_sparsity()
        self._check_activations()
        self._check_storage()
        self._check_cache()
        _ = self.grid

    def _check_sparsity(self) -> None:
        if self.sparsity not in get_args(Sparsity) or self.pruning not in PRUNINGS:
            raise MisuseError(f"No sparsity {self.sparsity!r} by {self.pruning!r}; 2:4 by {' or '.join(PRUNINGS)}.")
        if not self.sparsity and (self.dense or self.pruning != "sparsegpt"):
            raise MisuseError("--dense and --pruning are about sparse weights; add --sparsity 2:4.")
        if self.sparsity and self.split:
            raise MisuseError(f"--split {self.split} would break 2:4 sparsity with its copies; leave it out.")
        if self.sparsity and (self.trained or self.rounding == "awq"):
            raise MisuseError("--sparsity is for weights rounded to nearest or by gptq; leave --rounding awq out.")

    def _check_activations(self) -> None:
        if self.scheme != "w8a8" and not self.smooth:
            raise MisuseError(f"--no-smooth is about activations, which {self.scheme} leaves in float.")
        if self.outliers < 0 or (self.outliers and self.scheme != "w8a8"):
            raise MisuseError(f"--outliers {self.outliers}: w8a8 leaves so many activations in float, or 0 for none.")
        if self.scheme != "w8a8" and not self.remainder:
            raise MisuseError(f"--no-remainder is about activations, which {self.scheme} leaves in float.")
        if self.scheme != "w8a8" and self.method != "minmax":
            raise MisuseError(f"--method {self.method} is about activations, which {self.scheme} leaves in float.")

    def _check_storage(self) -> None:
        if self.kept == "int8" and self.scheme != "w8a8":
            raise MisuseError(f"--kept int8 is of w8a8, where activations hurt and weights do not; not {self.scheme}.")
        for part in (self.embedding, self.head, self.kept or "float"):
            if part not in get_args(Storage):
                raise MisuseError(
                    f"No embedding, lm_head or kept linear in {part!r}; {' or '.join(get_args(Storage))}."
                )

    def _check_cache(self) -> None:
        if self.kv not in get_args(CacheKind) or self.kv_granularity not in GRANULARITIES:
            raise MisuseError(f"No cache {self.kv!r} by {self.kv_granularity!r}; int8 by {' or '.join(GRANULARITIES)}.")
        if self.kv_scales and self.kv == "float":
            raise MisuseError("The recipe has scales of an INT8 cache, and leaves the cache in float.")
        if self.scheme != "fp":
            return
        if self.kv == "float" and not self.sparsity:
            raise MisuseError(
                "fp leaves everything in float: add --kv int8 or --sparsity 2:4, or choose another scheme."
            )
        if self.block or self.rounding != "nearest" or self.keep or self.kept_in_float:
            raise MisuseError("fp rounds no weights: --block, --rounding and --keep are for the other schemes.")

    @property
    def shown_scheme(self) -> str:
        """As manifests and people call it: w8a8, w8a8+kv8."""
        return f"{self.scheme}+kv8" if self.kv == "int8" else self.scheme

    @property
    def described(self) -> str:
        """The scheme and the rounding, for messages."""
        return f"{self.shown_scheme} rounded {'to nearest' if self.rounding == 'nearest' else f'by {self.rounding}'}"

    @property
    def reads_text(self) -> bool:
        """Whether it needs calibration rows."""
        has_cache_to_measure = self.kv == "int8" and not self.kv_scales
        observes = self.scheme == "w8a8" and not self.trained
        observes = observes or (bool(self.sparsity) and self.pruning == "sparsegpt")
        return observes or self.rounding != "nearest" or has_cache_to_measure

    @property
    def grid(self) -> Grid:
        """Of the weights."""
        return Grid(4 if self.scheme == "w4" else 8, self.block)

    @property
    def stores_kept(self) -> Storage:
        """How the weights of linears that are kept are stored."""
        return self.kept or ("int8" if self.scheme == "w8a8" else "float")

    def grid_of(self, linear: Linear) -> Grid:
        """Of one linear's weights."""
        is_int8 = is_narrow(linear) if self.int8 is None else _is_named(linear, self.int8)
        return Grid(8, self.block) if is_int8 else self.grid

    def copies_beside(self, inputs: int, group: Iterable[Linear] = ()) -> int:
        """Copies of large inputs that the linears of a group read beside the inputs themselves.

        Unless told: what fills the last block, or the last `WHOLE` inputs that tile registers take, with another of
        them where that would be fewer than a `FEWEST`-th of the inputs. ONNX Runtime stores and multiplies whole blocks
        in any case. None for linears of w4 that have eight bits, and what reads the same, where the tables are in INT8:
        their weights take the most bytes for a copy, and scales and copies are more than a tenth of such a model.
        """
        if self.sparsity:  # copies would stand next to one another, whatever weights of theirs are zero
            return 0
        if self.split is not None:
            return self.split
        if self.has_small_tables and any(self.grid_of(linear) != self.grid for linear in group):
            return 0
        unit = max(self.block, WHOLE)
        return -(-(inputs + -(-inputs // FEWEST)) // unit) * unit - inputs

    @property
    def has_small_tables(self) -> bool:
        """Whether embedding and lm_head are both in INT8."""
        return self.embedding == self.head == "int8"

    @property
    def table_block(self) -> int:
        """Values of the embedding and the lm_head that share a scale."""
        return W4_TABLE_BLOCK if self.scheme == "w4" else TABLE_BLOCK

    def chosen(self, linears: Iterable[Linear], convolutions: Iterable[Convolution] = ()) -> list[Linear]:
        """The linears to quantize; `convolutions` are what patterns may name besides.

        Raises:
            MisuseError: a pattern of `keep` names nothing.
        """
        linears = [] if self.scheme == "fp" else list(linears)
        known: list[Linear | Convolution] = [*linears, *convolutions]
        for option, patterns in (("keep", self.keep), ("int8", self.int8 or ())):
            for pattern in patterns:
                if not any(_is_named(each, (pattern,)) for each in known):
                    example = f"; they are called as {known[0].name}" if known else ""
                    raise MisuseError(f"--{option} {pattern!r} names no linear{example}.")
        # The lm_head reads the model's last, least redundant values.
        layers = [linear for linear in linears if not linear.is_transposed and not linear.is_head]
        return [linear for linear in layers if not _is_named(linear, self.keep)]

    def chosen_convolutions(self, convolutions: Iterable[Convolution]) -> list[Convolution]:
        """The convolutions to quantize."""
        return [] if self.scheme == "fp" else [each for each in convolutions if not _is_named(each, self.keep)]

    def sparse(self, linears: Iterable[Linear]) -> list[Linear]:
        """The linears to make sparse: those whose inputs divide by four, but for the lm_head and `dense` ones.

        Raises:
            MisuseError: a pattern of `dense` names no linear.
        """
        linears = list(linears) if self.sparsity else []
        for pattern in self.dense if linears else ():
            if not any(_is_named(linear, (pattern,)) for linear in linears):
                raise MisuseError(f"--dense {pattern!r} names no linear; they are called as {linears[0].name}.")
        return [
            linear
            for linear in linears
            if not linear.is_transposed
            and not linear.is_head
            and not linear.shape[0] % GROUP
            and not _is_named(linear, self.dense)
        ]

    def data_warning(self, data: Mapping[str, str]) -> str | None:
        """One line if the recipe was made with other files than `data`, SHA-256 by name."""
        others = [name for name in {**self.data, **data} if self.data.get(name) != data.get(name)]
        if not self.data or not others:
            return None
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        return (
            f"warning: the recipe was made with other calibration data, so the result may differ: "
            f"{'; '.join(others[:SHOWN])}{more}."
        )

    def to_json(self) -> dict[str, Any]:
        """For a file and the manifest."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what to_json wrote; raises MisuseError for names it does not know."""
        data = {FORMER_NAMES.get(name, name): value for name, value in data.items()}
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - known):
            raise MisuseError(f"A recipe has no {unknown[0]!r}; it has {', '.join(sorted(known))}.")
        try:
            # What was settled before there were remainders was settled without.
            is_settled = data.get("scheme") == "w8a8" and bool(data.get("model"))
            values = ({"remainder": False} if is_settled else {}) | dict(data)
            values |= {
                name: tuple(data[name])
                for name in ("keep", "kept_in_float", "int8", "dense")
                if data.get(name) is not None
            }
            if "kv_scales" in data:
                values["kv_scales"] = {name: tuple(map(float, scales)) for name, scales in data["kv_scales"].items()}
            return cls(**values)
        except (TypeError, AttributeError, ValueError) as problem:
            if isinstance(problem, MisuseError):
                raise
            raise MisuseError(f"The recipe is not complete: {problem}.") from None


def is_narrow(linear: Linear) -> bool:
    """Whether it has few outputs for its inputs, as keys and values have that several query heads share.

    Their errors count several times and they have few weights: 6 % of a 135M Llama's.
    """
    inputs, outputs = linear.shape
    return NARROW * outputs <= inputs


def _is_named(linear: Linear | Convolution, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(module_of(linear.name), pattern) for pattern in patterns)
