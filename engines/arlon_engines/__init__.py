"""Builds TensorRT engines of a bundle's graphs. It imports TensorRT and arlon_rt, never torch, onnx or arlon_export."""
