"""Lower a model directory for TensorRT and hand it to Polygraphy: graph, a form that ONNX Runtime runs, inputs, flags.

    python scripts/to_polygraphy.py MODEL_DIR OUT [--max-batch 2] [--max-length 256] [--dtype float16]

Writes OUT/file/model.onnx (what the compiler gets), OUT/file/executable.onnx (the same with TRT_Attention as a
function), OUT/inputs.json (one decode step) and OUT/shapes.txt (the profiles as options), and prints commands.
"""

import argparse
from pathlib import Path

import numpy as np
import onnx_ir as ir
from polygraphy.json import save_json

from piston.core.bundle import GRAPH
from piston.core.bundle.manifest import Manifest
from piston.engines.tensorrt.build import write_lowered
from piston.engines.tensorrt.equivalence.attention_function import write_executable
from piston.engines.tensorrt.profiles import profiles_of

POSITION = 5


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--max-batch", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--dtype", choices=["float16", "bfloat16"], default="float16")
    arguments = parser.parse_args()
    asked = {"dtype": arguments.dtype, "max_batch": arguments.max_batch, "max_length": arguments.max_length}
    arguments.out.mkdir(parents=True)
    model = Manifest.read(arguments.model_dir)
    lowered = write_lowered(arguments.model_dir / GRAPH, model, arguments.out, asked)
    executable = write_executable(lowered.path, lowered.path.with_name("executable.onnx"))
    graph = ir.load(lowered.path).graph
    profiles = profiles_of(graph, lowered.sizes)
    flags = [
        f"--trt-{bound}-shapes " + " ".join(f"{name}:{dims[index]}".replace(" ", "") for name, dims in shapes.items())
        for shapes in profiles.values()
        for index, bound in enumerate(("min", "opt", "max"))
    ]
    (arguments.out / "shapes.txt").write_text("\n".join(flags) + "\n", encoding="utf-8")
    save_json([decode_step(graph, arguments.max_batch)], str(arguments.out / "inputs.json"))
    shapes = f"$(cat {arguments.out}/shapes.txt)"
    print("export POLYGRAPHY_USE_TENSORRT_RTX=1   # leave out for TensorRT")
    print(f"polygraphy inspect capability {lowered.path}")
    print(f"polygraphy convert {lowered.path} -o engine.plan --compute-capabilities 8.9 {shapes}")
    print(f"polygraphy run {executable} --onnxrt --load-inputs {arguments.out}/inputs.json --save-outputs cpu.json")
    print(
        f"polygraphy run {lowered.path} --trt --optimization-profile 1 --load-inputs {arguments.out}/inputs.json "
        f"--load-outputs cpu.json {shapes}"
    )


def decode_step(graph: ir.Graph, batch: int) -> dict[str, np.ndarray]:
    """One token for each row at the same position, after random keys and values; greedy."""
    rng = np.random.default_rng(0)
    fixed = {
        "position_ids": POSITION, "write_indices": POSITION, "kv_lengths": POSITION + 1, "top_k": 1, "top_p": 1,
        "temperature": 0,
    }  # fmt: skip
    step = {}
    for value in graph.inputs:
        shape = [dim if isinstance(dim, int) else {"batch": batch}.get(str(dim), 1) for dim in value.shape]
        dtype = value.dtype.numpy()
        if value.name in fixed:
            step[value.name] = np.full(shape, fixed[value.name], dtype)
        elif value.name.startswith("past."):
            step[value.name] = rng.normal(0, 0.5, shape).astype(dtype)
        else:
            step[value.name] = rng.random(shape).astype(dtype) if value.name == "uniforms" else np.ones(shape, dtype)
        if value.name == "logits_positions":
            step[value.name][:] = 0
    return step


if __name__ == "__main__":
    main()
