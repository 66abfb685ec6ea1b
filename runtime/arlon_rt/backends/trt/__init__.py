"""TensorRT and TensorRT for RTX."""

from arlon_rt.backends.trt.library import TYPES
from arlon_rt.backends.trt.session import Gpu
