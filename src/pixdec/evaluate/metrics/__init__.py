"""Metrics: `fidelity` against a reference, `niqe` without one, perceptual distances, scorers of other libraries and
language models; `table` has all of them by name."""
