"""GPU memory: what a request needs, and which graphs stay resident, are offloaded or streamed."""

from arlon_rt.memory.activations import BASE, remember, widest
from arlon_rt.memory.demand import Budget, Demand
from arlon_rt.memory.footprint import ITEM_BYTES, tensor_bytes
from arlon_rt.memory.plan import CONTEXT, GraphMemory, MemoryPlan
from arlon_rt.memory.planning import GRAPH, TOLD, built_engines, check_fits, plan_for

__all__ = [
    "BASE", "CONTEXT", "GRAPH", "ITEM_BYTES", "TOLD", "Budget", "Demand", "GraphMemory", "MemoryPlan", "built_engines",
    "check_fits", "plan_for", "remember", "tensor_bytes", "widest",
]
