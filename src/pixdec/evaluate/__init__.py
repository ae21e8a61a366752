"""How good a decoded image is: `metrics` against a reference, `niqe` without one, `report` for tables of both, `run`
for whole evaluations of decoders and baselines on the same latents."""
