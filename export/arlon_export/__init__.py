"""Trained checkpoints to ONNX bundles; the only package that imports PyTorch."""
