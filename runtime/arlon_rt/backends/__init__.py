"""What runs graphs: the session protocols, one folder a backend, and the one place that chooses a backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arlon_rt.lazy import lazily

if TYPE_CHECKING:
    from arlon_rt.backends.device import BACKENDS as BACKENDS
    from arlon_rt.backends.device import compute_capability as compute_capability
    from arlon_rt.backends.device import usual_device as usual_device
    from arlon_rt.backends.open import open_session as open_session
    from arlon_rt.backends.open import open_sessions as open_sessions
    from arlon_rt.backends.session import Array as Array
    from arlon_rt.backends.session import Handle as Handle
    from arlon_rt.backends.session import Looping as Looping
    from arlon_rt.backends.session import Session as Session
else:
    __all__, __getattr__, __dir__ = lazily(__name__, {
        "arlon_rt.backends.device": ("BACKENDS", "compute_capability", "usual_device"),
        "arlon_rt.backends.open": ("open_session", "open_sessions"),
        "arlon_rt.backends.session": ("Array", "Handle", "Looping", "Session"),
    })
