"""The contract on disk: manifest, hashes, signature, provenance, and headers of ONNX files and TensorRT plans."""

from collections.abc import Collection

GRAPH, GRAPH_DATA = "model.onnx", "model.onnx.data"  # of a model directory, and of engines that ONNX Runtime runs


def is_graph_file(name: str) -> bool:
    """Whether a recorded file is a GRAPH or its weights, in a folder or not."""
    return name.rpartition("/")[2] in {GRAPH, GRAPH_DATA}


def graph_dir(graph: str, graphs: Collection[str]) -> str:
    """The folder of a graph's GRAPH in a model directory, and below an engine's: its name where there are several."""
    return graph if len(graphs) > 1 else ""
