"""Fixtures that all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def reference() -> Path:
    """Inputs and outputs recorded from Open-Sora v1.2's own code; they lie beside the repository, not in it."""
    path = ROOT.parent / "shared" / "reference"
    if not path.is_dir():
        pytest.skip(f"the recorded reference is not there ({path})")
    return path
