"""How good decoded images are: `run` measures decoders and baselines on the same latents, `metrics` are what it
measures, `statistics` what it says of them, `report` how it is shown."""
