"""The contract on disk: manifest, hashes, signature, provenance, and headers of ONNX files and TensorRT plans."""
