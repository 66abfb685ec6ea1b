"""GPU memory: how much a request needs, and which graphs are resident, offloaded or streamed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arlon_rt.lazy import lazily
from arlon_rt.memory.demand import Budget, Demand

if TYPE_CHECKING:
    from arlon_rt.memory.activations import BASE, remember, widest
    from arlon_rt.memory.footprint import ITEM_BYTES, moved_bytes
    from arlon_rt.memory.plan import CONTEXT, MemoryPlan
    from arlon_rt.memory.planning import GRAPH, STATED, built_engines, check_fits, plan_for
else:   # what few commands use, loaded by them alone
    __all__, __getattr__, __dir__ = lazily(__name__, {
        "arlon_rt.memory.activations": ("BASE", "remember", "widest"),
        "arlon_rt.memory.footprint": ("ITEM_BYTES", "moved_bytes"),
        "arlon_rt.memory.plan": ("CONTEXT", "MemoryPlan"),
        "arlon_rt.memory.planning": ("GRAPH", "STATED", "built_engines", "check_fits", "plan_for"),
    })
