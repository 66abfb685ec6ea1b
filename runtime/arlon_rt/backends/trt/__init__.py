"""TensorRT and TensorRT for RTX."""

from arlon_rt.backends.trt.session import Gpu

__all__ = ["Gpu"]
