"""Demands of requests: of the published size, and of a size for the tiny model."""

from __future__ import annotations

import dataclasses

from arlon_rt.memory import Demand

PUBLISHED = Demand(
    height=512, width=512, latents=20, guided=True, also_unguided=False, ar_guided=False, inject=True
)
SMALL = dataclasses.replace(PUBLISHED, height=32, width=32)
