"""Exports trained checkpoints to ONNX bundles. No other shipped package imports PyTorch."""
