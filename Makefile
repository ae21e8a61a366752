# make demo   a photograph, encoded, and decoded four times larger: a picture to look at in about a minute
# make test   every check that CI runs
# Both make .venv on the first call and are quick afterwards.

PYTHON ?= python3
BIN := .venv/bin
PHOTOS ?= ../shared/photos/train
KODAK ?= ../shared/kodak
TAEF2 ?= ../shared/weights/taef2
RUNS ?= runs
BIG ?= ../shared/photos/train/komodo-dragon-7590e0.webp

.PHONY: demo test lint types layers tests test-oldest format bundled-models kodak bench-cpu bench-gpu clean

demo: .venv/demo
	$(BIN)/python examples/demo.py

test: lint types layers tests

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev
	$(BIN)/basedpyright

layers: .venv/dev
	$(BIN)/lint-imports

tests: .venv/dev
	$(BIN)/python -m pytest

# The proof of the pipelines again, on the oldest diffusers and transformers that are supported.
test-oldest: .venv-oldest/dev
	.venv-oldest/bin/python -m pytest tests/integrations

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The two models in the package, made again from photographs (docs/bundled-models.md): hours on two cores.
bundled-models: .venv/dev
	$(BIN)/python -m pixdec.train.autoencoder --photos $(PHOTOS) --teacher $(TAEF2) --folder $(RUNS)/tiny-first
	$(BIN)/python -m pixdec.train.autoencoder --photos $(PHOTOS) --teacher $(TAEF2) --folder $(RUNS)/tiny \
	    --from-run $(RUNS)/tiny-first
	$(BIN)/python -m pixdec.train.export --autoencoder $(RUNS)/tiny
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node 2 -m pixdec train decoder nano --data $(PHOTOS) \
	    -o $(RUNS)/nano --encoder tiny:4 tiny:4 tiny:4 taef2:$(TAEF2)
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node 2 -m pixdec train student nano --data $(PHOTOS) \
	    -o $(RUNS)/nano-student --teacher $(RUNS)/nano --encoder tiny:4
	$(BIN)/python -m pixdec.train.export --decoder $(RUNS)/nano --student $(RUNS)/nano-student

# The quality table of docs/bundled-models.md.
kodak: .venv/dev
	$(BIN)/python -m pixdec.evaluate.kodak --images $(KODAK) --taef2 $(TAEF2) --out docs/benchmarks/kodak

# The figures of the README and of docs/benchmarks, on a CPU: leave the machine alone meanwhile, for half an hour.
bench-cpu: .venv/dev
	$(BIN)/pixdec bench --sides 1024 2048 --runs 3 --warmup 1 --limit 1200 --ours plain eager compiled \
	    --beside vae:flux2+lanczos tiny+lanczos -o docs/benchmarks/nano-cpu
	$(BIN)/pixdec bench --model random:v1 --sides 512 1024 --steps 1 --runs 3 --warmup 1 --limit 1200 \
	    --ours plain eager -o docs/benchmarks/full-size-cpu
	$(BIN)/python -m pixdec.bench.tiles --image $(BIG) --sides 1024 2048 4096 > docs/benchmarks/tiles.md
	$(BIN)/python -m pixdec.bench.memory > docs/benchmarks/memory.md
	$(BIN)/python -m pixdec.bench.shortcuts --images $(KODAK) --runs 3 2 1 --full-size 512 > docs/benchmarks/shortcuts.md

# The same on a GPU, at the released network's size with random weights, by the Python that is there ($(PYTHON), with
# PyTorch for CUDA, diffusers, torchao and matplotlib). Resumes where it was stopped.
bench-gpu:
	PYTHONPATH=src $(PYTHON) -m pixdec bench --model random:v1 --sides 256 512 1024 2048 4096 8192 --device cuda \
	    --ours plain eager compiled graphs --beside vae:flux1 vae:flux1:tiled vae:flux2 vae:flux2:tiled vae:sdxl \
	    vae:sdxl:tiled vae:flux1+lanczos vae:flux1+real-esrgan tiny+lanczos -o docs/benchmarks/full-size-gpu
	PYTHONPATH=src $(PYTHON) -m pixdec.bench.shortcuts --images $(KODAK) --device cuda --dtype bfloat16 --compiled 512 1024 2048 \
	    --full-size 1024 2048 > docs/benchmarks/shortcuts-gpu.md

.venv/bin/python:
	$(PYTHON) -m venv .venv

# A stamp for each set of requirements; they share one virtual environment.
.venv/demo: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[evaluate]'
	touch $@

.venv/dev: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@ .venv/demo

.venv-oldest/dev: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt \
	    -e '.[pipelines,evaluate]' pytest peft
	touch $@

clean:
	rm -rf .venv .venv-oldest build dist
