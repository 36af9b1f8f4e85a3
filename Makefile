# Two commands do everything: `make demo` and `make test`. Each makes its own virtual environment.
# `make quick` is for while you work: the linters, the core's tests, and one file of each other part.
# `make parity` compares with PEFT in PyTorch, in an environment of its own.
# `make lowest` tests with the lowest version of every dependency that pyproject.toml admits.
# `make wheel` builds the distributions, and uses the wheel without any extra.
# `make coverage` says which lines the tests run, `make fuzz` feeds the readers random files.
# `make bench` measures what a step costs, and writes docs/benchmarks.md (benchmarks/).
# `make compat` runs the libraries that people have models in, in an environment each (compat/).
# `make tpu` compiles small steps for TPUs, with no TPU; `make plan` writes benchmarks/results/plan.json so.
# `make docs` builds the site, `make docs-serve` shows it, `make docs-check` reads it in Chromium.
# Another Python: make test PYTHON=python3.12 VENV=.venv312

# The newest that is supported and runs.
IS_SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3 python; do \
	$$python -c '$(IS_SUPPORTED)' 2>/dev/null && echo $$python && break; done)
# The oldest: `make lowest` and `make parity` take it.
IS_OLDEST := import sys; sys.exit(sys.version_info[:2] != (3, 11))
OLDEST ?= python3.11
VENV ?= .venv
# Test workers: one for each processor, four at most, and one for each 4 GB (a million pages).
WORKERS ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN); room=$$(getconf _PHYS_PAGES 2>/dev/null || echo 2000000); \
	room=$$((room / 1000000)); count=$$((cores < room ? cores : room)); count=$$((count < 4 ? count : 4)); \
	echo $$((count < 1 ? 1 : count)))
# Which environments of compat/: make compat NAMES="tunix keras"
NAMES ?=
# Seconds for each reader under `make fuzz`.
SECONDS ?= 60
# More words for pytest: make test TESTS='-m "not long"'
TESTS ?=
BIN := $(VENV)/bin
# The slowest tests are listed at the end; what a run found lies in .ci/out as XML.
PYTEST = -m pytest -n $(WORKERS) --dist worksteal --durations=25 --junitxml=.ci/out/$@.xml
# One thread of XLA and BLAS for each test worker: they would only get in each other's way.
TEST_ENV := JAX_PLATFORMS=cpu XLA_FLAGS=--xla_cpu_multi_thread_eigen=false OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1

# What `make quick` runs, without the tests marked long: the core, and a smoke test of the rest.
# 200 seconds of processor time together, and 360 at most: what is added here must be quick.
QUICK := test_config.py test_imports.py test_partition.py test_public.py test_sharding.py names selection storage \
	$(patsubst %,training/test_%.py,checkpoint optimizer precision step_counts training warnings) \
	adapters/test_adapter.py bank/test_bank.py cli/test_help.py trainer/test_fit.py discovery/test_discover_forms.py \
	models/families/test_bert_refusals.py peft/test_peft_reference.py sources/test_source_nnx.py

# What `make lowest` runs beside these: where a library's version shows. Every model once, the
# classes of transformers' configs, the files of other libraries, and a whole run.
LOWEST := $(patsubst %,models/families/test_%.py,bert decoders llama) \
	$(patsubst %,models/loading/test_%.py,gguf gguf_tokenizer hub_files weights) \
	models/families/test_decoders_behaviour.py::test_remat_changes_nothing_but_what_is_stored \
	models/decoding/test_stop_tokens.py cli/test_train.py

# Modules whose doctests need PyTorch: `make parity` runs them.
NEED_TORCH := $(wildcard lntune_jax/integrations/torchax/*.py)
# Modules whose doctests need a package of `make compat`.
NEED_COMPAT := lntune_jax/integrations/keras.py

# The readers that `make fuzz` feeds: the names in fuzz/targets.py.
FUZZED := config metadata bank safetensors index model_config gguf pattern names merge

# Benchmarks that take minutes together, and those of them that need PyTorch and PEFT.
BENCH := import_time start step partition adapter_io fingerprint adapter_live residuals remat depth decoder_memory \
	mixed_batches collectives bfloat16_step dispatch
BENCH_TORCH := peft_step bfloat16_parity products
# Each of these takes many minutes: many programs to compile, or gigabytes to compute on.
BENCH_LONG := accuracy memory_by_length longest_sequence scan_layers many_adapters memory_estimate paper_plan quantised_bases \
	loading_shards
BENCH_LONG_TORCH := torchax_step torchax_types torchax_ways generation

.PHONY: demo test test-core test-models doctests quick coverage fuzz parity lowest compat tpu plan wheel lint types bench bench-long page clean
.PHONY: $(addprefix measure-,$(BENCH) $(BENCH_TORCH) $(BENCH_LONG) $(BENCH_LONG_TORCH))
# What measures time has the machine to itself, whatever -j says.
.NOTPARALLEL:

demo: $(VENV)/.demo
	$(BIN)/lntune-jax demo

test: $(VENV)/.test lint types doctests
	$(TEST_ENV) $(BIN)/python $(PYTEST) $(TESTS) tests benchmarks/tests

# The same in two halves, for machines side by side.
test-core: $(VENV)/.test doctests
	$(TEST_ENV) $(BIN)/python $(PYTEST) $(TESTS) --ignore=tests/models tests benchmarks/tests

test-models: $(VENV)/.test
	$(TEST_ENV) $(BIN)/python $(PYTEST) $(TESTS) tests/models

doctests: $(VENV)/.test
	$(TEST_ENV) $(BIN)/python $(PYTEST) --doctest-modules lntune_jax $(patsubst %,--ignore=%,$(NEED_TORCH) $(NEED_COMPAT))

quick: $(VENV)/.test lint
	$(TEST_ENV) $(BIN)/python $(PYTEST) -m "not long" $(addprefix tests/,$(QUICK))

coverage: $(VENV)/.test
	$(TEST_ENV) $(BIN)/python $(PYTEST) --cov=lntune_jax --cov-report=term:skip-covered --cov-report=xml:.ci/out/coverage.xml tests benchmarks/tests

# Files of strangers, made at random: by hypothesis, then under the guidance of coverage.
fuzz: $(VENV)/.fuzz
	LNTUNE_EXAMPLES=750 $(TEST_ENV) $(BIN)/python $(PYTEST) tests/test_fuzz.py
	cd .ci/out && for target in $(FUZZED); do \
		$(TEST_ENV) $(abspath $(BIN))/python ../../fuzz/run.py $$target $(SECONDS) || exit 1; done

parity: $(VENV)-parity/.parity
	$(TEST_ENV) $(VENV)-parity/bin/python -m pytest -n $(WORKERS) --doctest-modules $(NEED_TORCH)
	$(TEST_ENV) $(VENV)-parity/bin/python $(PYTEST) tests/parity

compat:
	@$(PYTHON) -c '$(IS_SUPPORTED)' || { echo 'needs Python 3.11 to 3.13: make ... PYTHON=python3.12' >&2; exit 1; }
	$(PYTHON) compat/run.py --folder $(VENV)-compat $(NAMES)

# One test at a time: compilers for TPUs take all processors. PLAN_ROWS=2 writes the quick rows alone.
PLAN_ROWS ?= 100
tpu: $(VENV)-plan/.plan
	$(TEST_ENV) $(VENV)-plan/bin/python -m pytest --junitxml=.ci/out/$@.xml tests/models/planning/test_tpu.py

plan: $(VENV)-plan/.plan
	$(VENV)-plan/bin/python benchmarks/plan_table.py --first $(PLAN_ROWS)

lowest: $(VENV)-lowest/.lowest
	$(TEST_ENV) $(VENV)-lowest/bin/python $(PYTEST) -W ignore::DeprecationWarning -m "not long" $(addprefix tests/,$(QUICK) $(LOWEST))

# The wheel and the sdist, and the wheel alone in an environment of its own.
wheel:
	@$(PYTHON) -c '$(IS_SUPPORTED)' || { echo 'needs Python 3.11 to 3.13: make ... PYTHON=python3.12' >&2; exit 1; }
	.ci/wheel $(PYTHON) $(VENV)-wheel

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.test
	$(BIN)/basedpyright --pythonpath $(BIN)/python

# make -k bench goes on where a script fails; make measure-step runs one.
bench: $(addprefix measure-,$(BENCH) $(BENCH_TORCH))
	$(PYTHON) benchmarks/page.py

bench-long: $(addprefix measure-,$(BENCH_LONG) $(BENCH_LONG_TORCH))
	$(BIN)/python benchmarks/many_adapters.py --at-once 8
	$(VENV)-parity/bin/python benchmarks/peft_step.py --larger
	$(PYTHON) benchmarks/page.py

$(addprefix measure-,$(BENCH) $(BENCH_LONG)): measure-%: $(VENV)/.test
	$(BIN)/python benchmarks/$*.py

$(addprefix measure-,$(BENCH_TORCH) $(BENCH_LONG_TORCH)): measure-%: $(VENV)-parity/.parity
	$(VENV)-parity/bin/python benchmarks/$*.py

page: $(VENV)/.test
	$(PYTHON) benchmarks/page.py
	$(BIN)/python benchmarks/figures.py
	$(BIN)/python docs/models_table.py
	$(BIN)/python docs/extras_table.py

$(VENV)/.demo: pyproject.toml requirements-demo.txt
	@$(PYTHON) -c '$(IS_SUPPORTED)' || { echo 'needs Python 3.11 to 3.13: make ... PYTHON=python3.12' >&2; exit 1; }
	@# One that another Python made is made anew.
	@test "$$($(BIN)/python -V 2>&1)" = "$$($(PYTHON) -V)" || rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-demo.txt
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/.fuzz: $(VENV)/.test
	$(BIN)/python -m pip install --quiet atheris
	touch $@

$(VENV)-parity/.parity: pyproject.toml requirements-parity.txt
	@$(OLDEST) -c '$(IS_OLDEST)' || { echo 'needs Python 3.11: make ... OLDEST=python3.11' >&2; exit 1; }
	$(OLDEST) -m venv $(VENV)-parity
	$(VENV)-parity/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-parity/bin/python -m pip install --quiet --requirement requirements-parity.txt
	$(VENV)-parity/bin/python -m pip install --quiet --editable '.[torchax,test]' --requirement requirements-parity.txt
	touch $@

$(VENV)-plan/.plan: pyproject.toml
	@$(PYTHON) -c '$(IS_SUPPORTED)' || { echo 'needs Python 3.11 to 3.13: make ... PYTHON=python3.12' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)-plan
	$(VENV)-plan/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-plan/bin/python -m pip install --quiet --editable '.[plan]' 'pytest>=8' 'hypothesis>=6.100'
	touch $@

$(VENV)-lowest/.lowest: pyproject.toml requirements-demo.txt .ci/lowest.py
	@$(OLDEST) -c '$(IS_OLDEST)' || { echo 'needs Python 3.11: make ... OLDEST=python3.11' >&2; exit 1; }
	$(OLDEST) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-lowest/bin/python .ci/lowest.py > $(VENV)-lowest/constraints.txt
	$(VENV)-lowest/bin/python -m pip install --quiet --editable '.[test]' --constraint $(VENV)-lowest/constraints.txt
	$(VENV)-lowest/bin/python -m pip install --quiet --no-deps --requirement requirements-demo.txt
	touch $@

# The site, in build/site. Links, anchors and docstrings that are missing are failures.
.PHONY: docs docs-serve docs-check
docs: $(VENV)-docs/.docs
	$(TEST_ENV) $(VENV)-docs/bin/python docs/builder/make_site.py

docs-serve: docs
	$(VENV)-docs/bin/python docs/builder/make_site.py --serve

# Reads the site in a headless Chromium, which the system must have.
docs-check: docs
	$(VENV)-docs/bin/python -m pytest --confcutdir tests/docs_site tests/docs_site

$(VENV)-docs/.docs: pyproject.toml requirements-demo.txt
	@$(PYTHON) -c '$(IS_SUPPORTED)' || { echo 'needs Python 3.11 to 3.13: make ... PYTHON=python3.12' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-docs/bin/python -m pip install --quiet --editable '.[docs]'
	$(VENV)-docs/bin/python -m pip install --quiet --no-deps --requirement requirements-demo.txt
	touch $@

clean:
	rm -rf build $(VENV) $(VENV)-docs $(VENV)-lowest $(VENV)-parity $(VENV)-compat $(VENV)-plan $(VENV)-wheel .ci/out .pytest_cache .ruff_cache .hypothesis
