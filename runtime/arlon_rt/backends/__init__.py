"""What runs graphs: the session protocols, one folder a backend, and the one place that chooses a backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arlon_rt.lazy import lazily

if TYPE_CHECKING:
    from arlon_rt.backends.device import BACKENDS, compute_capability, usual_device
    from arlon_rt.backends.open import open_session, open_sessions
    from arlon_rt.backends.session import Array, Handle, Looping, Session
else:
    __all__, __getattr__, __dir__ = lazily(__name__, {
        "arlon_rt.backends.device": ("BACKENDS", "compute_capability", "usual_device"),
        "arlon_rt.backends.open": ("open_session", "open_sessions"),
        "arlon_rt.backends.session": ("Array", "Handle", "Looping", "Session"),
    })
