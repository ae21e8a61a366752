"""Outside the wheel: training of the bundled models, and tables of the docs."""
