"""The GPU benchmark: see ``python -m gpu --help``, from benchmarks/."""
