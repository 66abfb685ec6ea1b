"""Published files, whole: each test gets its own to spoil."""

from __future__ import annotations

from pathlib import Path

import pytest

from published_files import Published, State, random_states


@pytest.fixture(scope="session")
def states() -> dict[str, State]:
    """The state dict of every network under its published keys; the adapters apart from the transformer."""
    return random_states()


@pytest.fixture
def published(tmp_path: Path, states: dict[str, State]) -> Published:
    """All files, without any config.json."""
    made = Published(tmp_path, states)
    for network in states:
        made.save(network)
    (made.paths()["text"] / "spiece.model").write_bytes(b"pieces")
    return made
