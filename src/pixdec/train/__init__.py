"""Training: `pixdec.train.build.train(recipe, data, output)` yields the steps of a run."""
