"""A model on disk: its manifest, its files and its engines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arlon_rt.bundle.bundle import ENGINES, Bundle, Finding, demo_bundle_path, write_manifest
from arlon_rt.bundle.engine_file import (
    ANY_SIZE,
    FLAVOURS,
    HEADER_BYTES,
    MODULES,
    EngineHeader,
    Flavour,
    Identity,
    encode_header,
    read_header,
    read_plan,
)
from arlon_rt.bundle.limits import MAX_TOP_K, check_model
from arlon_rt.bundle.manifest import MAX_BYTES, GraphEntry
from arlon_rt.bundle.schema import from_json
from arlon_rt.lazy import lazily

if TYPE_CHECKING:
    from arlon_rt.bundle.engines import (
        EngineEntry,
        EngineProfile,
        EngineStore,
        build_command,
        engine_stores,
        find_engine,
        find_entry,
        source_hash,
        store_to_build_in,
    )
    from arlon_rt.bundle.summary import NetworkSummary, Summary, describe
    from arlon_rt.bundle.trust import record
else:   # what few commands use, loaded by them alone
    __all__, __getattr__, __dir__ = lazily(__name__, {
        "arlon_rt.bundle.engines": (
            "EngineEntry", "EngineProfile", "EngineStore", "build_command", "engine_stores", "find_engine",
            "find_entry", "source_hash", "store_to_build_in",
        ),
        "arlon_rt.bundle.summary": ("NetworkSummary", "Summary", "describe"),
        "arlon_rt.bundle.trust": ("record",),
    })
