"""What export, calibration and engines share of ONNX graphs: small questions, Q/DQ read and written, taps."""
