"""Time and memory of decoding, measured: `python -m benchmarks --help`, from the repository; see docs/bench.md."""
