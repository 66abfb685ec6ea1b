"""On a GPU: caches are written where they are, and a pipeline that is closed gives its memory back.

Written without a GPU; not executed on one yet. All of it ran on the stand-in (tests/gpu_files_on_stand_in.py), which
counts its own memory: `on_gpu.gpu_used_bytes` never ran.
"""

from __future__ import annotations

import gpu_checks
from on_gpu import UnderTest, needs_gpu

pytestmark = needs_gpu


def test_a_held_cache_that_is_fed_comes_back_itself_and_an_array_stays_as_it_was(backend: UnderTest) -> None:
    gpu_checks.check_caches_are_updated_in_place(backend)


def test_nothing_is_left_of_pipelines_that_were_closed(backend: UnderTest) -> None:
    gpu_checks.check_memory_comes_back(backend)
