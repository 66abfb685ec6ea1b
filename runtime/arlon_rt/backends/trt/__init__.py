"""TensorRT and TensorRT for RTX."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arlon_rt.lazy import lazily

if TYPE_CHECKING:
    from arlon_rt.backends.trt.library import TYPES
    from arlon_rt.backends.trt.session import Gpu
else:
    __all__, __getattr__, __dir__ = lazily(__name__, {
        "arlon_rt.backends.trt.library": ("TYPES",), "arlon_rt.backends.trt.session": ("Gpu",),
    })
