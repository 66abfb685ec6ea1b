"""The GPU benchmark: ``cd benchmarks && python -m gpu --help``."""
