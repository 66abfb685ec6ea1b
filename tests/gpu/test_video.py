"""On a GPU: a whole video of the demo bundle, by every backend that is installed, beside ONNX Runtime on the CPU.

Written without a GPU; not executed on one yet. All of it ran on the stand-in (tests/gpu_files_on_stand_in.py).
"""

from __future__ import annotations

import pytest

import gpu_checks
from on_gpu import UnderTest, needs_gpu

pytestmark = needs_gpu


@pytest.mark.parametrize("overlap", [False, True], ids=["in sequence", "overlapped"])
def test_a_video_is_the_one_of_the_cpu(backend: UnderTest, overlap: bool) -> None:
    gpu_checks.check_video_is_the_one_of_the_cpu(backend, overlap=overlap)


def test_a_second_video_is_the_first_to_the_last_bit(backend: UnderTest) -> None:
    gpu_checks.check_second_video_is_the_first(backend)


def test_a_snapshot_goes_on_to_the_last_bit(backend: UnderTest) -> None:
    gpu_checks.check_snapshot_goes_on(backend)
