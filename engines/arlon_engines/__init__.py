"""From a bundle's ONNX graphs to TensorRT engines. Imports TensorRT and arlon_rt; never torch, onnx, arlon_export."""
