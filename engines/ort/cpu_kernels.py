"""An engine for ONNX Runtime's CPU becomes one of Piston's own kernels: its nodes are replaced, group by group."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from piston.core.bundle import GRAPH, GRAPH_DATA
from piston.core.errors import EngineError
from piston.engines.lowering.kernels.attention import KernelAttentionPass
from piston.engines.lowering.kernels.bfloat16 import KernelBfloat16Pass
from piston.engines.lowering.kernels.bidirectional import KernelBidirectionalPass
from piston.engines.lowering.kernels.blocks import KernelBlocksPass, KernelGatedBlocksPass, KernelGeluBlocksPass
from piston.engines.lowering.kernels.copies import KernelCopiesPass
from piston.engines.lowering.kernels.cross import KernelCrossAttentionPass
from piston.engines.lowering.kernels.kernel_pass import KernelPass
from piston.engines.lowering.kernels.linear import KernelGatedPass, KernelGeluPass, KernelLinearPass
from piston.engines.lowering.kernels.norm import KernelLayerNormPass, KernelNormPass
from piston.engines.lowering.kernels.pooling import KernelSumTokensPass
from piston.engines.lowering.kernels.sparse import KernelSparsePass
from piston.engines.lowering.kernels.table import KernelTablePass
from piston.engines.ort.cpu_graph import EXTERNAL_FROM, count_operators


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelBuild:
    """A written engine, and what of it runs in piston's kernels."""

    path: Path
    attention: int
    linears: int
    gated: int
    gelu: int
    norms: int
    blocks: int
    tables: int
    bfloat16: int
    packed: int  # linear layers that are stored without the zeros of 2:4 sparsity
    weights_bytes: int

    def replaced(self) -> dict[str, int]:
        """How many groups of nodes of each kind were replaced, for the manifest."""
        names = ("attention", "linears", "gated", "gelu", "norms", "blocks", "tables", "bfloat16")
        return {name: getattr(self, name) for name in names}

    def describe(self, plain: Mapping[str, Any], **checks: Any) -> dict[str, Any]:
        """The engine as the manifest records it: as `plain`, which it was made from, and what differs."""
        sparse = {"sparse": {**plain["sparse"], "packed": self.packed}} if "sparse" in plain else {}
        return {
            **plain,
            **sparse,
            "operators": count_operators(self.path),
            "weights_bytes": self.weights_bytes,
            "own_kernels": {**self.replaced(), **checks},
        }


def build_kernels(
    lowered: Path, engine_dir: Path, *, pack_sparse: bool = False, in_bfloat16: bool = False
) -> KernelBuild:
    """Rewrite the engine at `lowered` and write engine_dir/model.onnx with its weights beside it, in tiles.

    With `pack_sparse` weights that are 2:4 sparse are looked for, and stored without their zeros. With `in_bfloat16`
    products of floats become products of bfloat16.

    Raises:
        EngineError: nothing in it is of a form that the kernels take.
    """
    model = ir.load(lowered)
    attention, texts, cross = KernelAttentionPass(), KernelBidirectionalPass(), KernelCrossAttentionPass()
    gated, gelu = KernelGatedPass(), KernelGeluPass()
    linears, norms, layer_norms = KernelLinearPass(), KernelNormPass(), KernelLayerNormPass()
    tables, gated_blocks, blocks = KernelTablePass(), KernelGatedBlocksPass(), KernelBlocksPass()
    gelu_blocks, sparse, bfloat16 = KernelGeluBlocksPass(), KernelSparsePass(), KernelBfloat16Pass()
    products: list[KernelPass] = [gated, gelu, linears, tables, gated_blocks, gelu_blocks, blocks, KernelCopiesPass()]
    products += [bfloat16] if in_bfloat16 else []
    passes = attention, texts, cross, norms, layer_norms, KernelSumTokensPass(), *products
    ir.passes.Sequential(*passes, *([sparse] if pack_sparse else []))(model)
    if not any(each.fused for each in (attention, texts, cross, *products)):
        raise EngineError("Nothing in this model runs on Piston's own kernels; build it for ort-cpu.")
    engine_dir.mkdir(parents=True)
    path = engine_dir / GRAPH
    ir.save(model, path, external_data=GRAPH_DATA, size_threshold_bytes=EXTERNAL_FROM)
    return KernelBuild(
        path=path,
        attention=attention.fused + texts.fused + cross.fused,
        linears=linears.fused,
        gated=gated.fused + gated_blocks.fused,
        gelu=gelu.fused + gelu_blocks.fused,
        norms=norms.fused + layer_norms.fused,
        blocks=blocks.fused,
        tables=tables.fused,
        bfloat16=bfloat16.fused,
        packed=sparse.packed,
        weights_bytes=(engine_dir / GRAPH_DATA).stat().st_size,
    )
