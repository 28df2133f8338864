# make demo    an environment, a real slide, a heatmap: prints where the pictures are
# make check   the same environment, linters and fast tests: before every commit
# make test    all tests, notebooks and commands of the docs; the window needs a screen or xvfb-run

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: install demo check test test-core test-gui test-notebooks test-docs test-dist test-lowest docs lint format dist clean
.DEFAULT_GOAL := demo

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt --editable . --group dev
	# It asks for a dask older than the pinned one, for parts of it that the tests do not use.
	$(BIN)/python -m pip install --quiet --no-deps spatialdata==0.7.3
	@touch $@

demo: $(READY)
	$(BIN)/atlas-wsi predict "$$($(BIN)/atlas-wsi sample --quiet cmu-1-small-region)" --out demo --overwrite
	@echo "Look at demo/CMU-1-Small-Region/heatmap.png"

# Processes that run tests, one thread each.
JOBS ?= 2
PYTEST := $(BIN)/python -m pytest
# in the order of tests/conftest.py: xdist's own ends with the files of few, long tests
PARALLEL := -n $(JOBS) --dist loadfile --no-loadscope-reorder

check: lint
	$(PYTEST) $(PARALLEL) -q -m "not slow and not gui"

test: test-core test-gui test-notebooks test-docs

test-core: $(READY)
	$(PYTEST) $(PARALLEL) -m "not gui"

# In a process of their own: a crash in a driver must not take the other tests with it.
SCREEN := $(if $(DISPLAY),,xvfb-run -a -s "-screen 0 1600x1000x24 -nolisten tcp")

test-gui: $(READY)
	@test -n "$(DISPLAY)" || command -v xvfb-run > /dev/null || \
		{ echo "The tests of the napari window need a screen; CONTRIBUTING.md names the packages."; exit 1; }
	$(SCREEN) $(PYTEST) -m gui -p pytest-qt tests/napari

NOTEBOOKS := notebooks

test-notebooks: $(READY)
	OMP_NUM_THREADS=1 $(PYTEST) -n $(JOBS) --dist load --nbmake --nbmake-timeout=600 $(NOTEBOOKS)

# Pages have folders of their own, and two are run at a time.
test-docs: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore scripts/run_doc_commands.py $(PAGES)

# build/site; every warning is an error
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_docstrings.py

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The wheel in an environment of its own: no compiler, no Qt, no network once it is installed.
test-dist: $(READY)
	$(BIN)/python scripts/try_wheel.py

# The oldest versions that pyproject.toml allows, but for torch and triton.
LOWEST := .venv-lowest
TESTED_WITH := easydict flask flask-cors geopandas hypothesis jsonschema 'moto[s3]' onnx playwright pytest \
	pytest-xdist rio-cogeo s3fs scikit-learn sniffio
# ome-zarr-py, its models and spatialdata ask for newer zarr.
NEED_NEWER := $(addprefix tests/atlas_wsi/,heatmap/test_omezarr.py interop/test_export.py interop/test_inspect.py)

test-lowest: $(READY)
	$(BIN)/python scripts/lowest.py > lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet -c lowest.txt --editable '.[cluster,embed,hub,onnx,timm,train]' \
		$$(grep -E '^torch(vision)?==' constraints.txt) $(TESTED_WITH)
	$(LOWEST)/bin/python -m pytest $(PARALLEL) -m "not gui" tests/atlas_wsi tests/kernels $(NEED_NEWER:%=--ignore %)

dist: $(READY)
	$(BIN)/hatchling build -d dist

clean:
	rm -rf $(VENV) dist demo
