"""GPU memory: how much a request needs, and which graphs are resident, offloaded or streamed."""

from arlon_rt.memory.activations import BASE, remember, widest
from arlon_rt.memory.demand import Budget, Demand
from arlon_rt.memory.footprint import ITEM_BYTES, moved_bytes
from arlon_rt.memory.plan import CONTEXT, MemoryPlan
from arlon_rt.memory.planning import GRAPH, STATED, built_engines, check_fits, plan_for
