"""Every error arlon-rt raises on purpose.

ArlonError
├── OptionsError (ValueError)            a request option or an input value cannot be used
├── BundleError (ValueError)             a bundle's manifest or files are damaged, hostile or do not fit together
│   └── BundleNotFoundError (FileNotFoundError)
├── BackendError (RuntimeError)          a graph could not be opened or run
│   ├── MissingExtraError (ImportError)  an optional dependency is not installed; names the pip command
│   ├── EngineError                      an engine does not fit, is damaged or was built by another user
│   │   └── EngineNotFoundError (FileNotFoundError)
│   └── BudgetError (MemoryError)        a budget of GPU memory does not hold the model at this size
├── OutputError (OSError)                the video could not be written
└── Cancelled                            the request was cancelled by its caller
"""

from __future__ import annotations


class ArlonError(Exception):
    """Root of the tree; the command prints its message and exits with 2."""


class OptionsError(ArlonError, ValueError):
    """A request option or an input value cannot be used."""


class BundleError(ArlonError, ValueError):
    """A bundle's manifest or files are damaged, hostile or do not fit together."""


class BundleNotFoundError(BundleError, FileNotFoundError):
    """There is no bundle at that path."""


class BackendError(ArlonError, RuntimeError):
    """A graph could not be opened or run."""


class MissingExtraError(BackendError, ImportError):
    """An optional dependency is not installed."""


class EngineError(BackendError):
    """An engine does not fit, is damaged, or was built by another user."""


class EngineNotFoundError(EngineError, FileNotFoundError):
    """There is no engine of this graph at all."""


class BudgetError(BackendError, MemoryError):
    """A budget of GPU memory does not hold the model at this size."""


class OutputError(ArlonError, OSError):
    """The video could not be written."""


class Cancelled(ArlonError):
    """The request was cancelled by its caller."""


class RemovedOptionWarning(DeprecationWarning):
    """A request has a value for an option that was removed. The command prints the message as one line."""
