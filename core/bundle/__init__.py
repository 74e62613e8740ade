"""The contract on disk: manifest, hashes, signature, provenance, and headers of ONNX files and TensorRT plans."""

GRAPH, GRAPH_DATA = "model.onnx", "model.onnx.data"  # of a model directory, and of engines that ONNX Runtime runs
