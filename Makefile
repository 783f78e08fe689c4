# Set-up needs Python 3.11 or newer and pip. Everything lives in .venv; nothing else on the machine is touched.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
FROM_INDEX = $(if $(strip $(TORCH_INDEX)),--index-url $(strip $(TORCH_INDEX)))
WORKERS ?= 2
TORCH_INDEX ?=  # an index of PyTorch's own, such as https://download.pytorch.org/whl/cpu; pip's otherwise
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

.PHONY: setup test test-all lint types contracts docs package demo check clean

setup: $(VENV)/.ready  ## the library with all that its tests, checks and pages need

$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(FROM_INDEX) torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo]'
	@touch $@

$(VENV)/.ready: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps demosaicnet==0.0.14 wget==3.2  # for its weights; it would pull torchvision
	$(BIN)/python -m pip check
	@touch $@

test: setup  ## the tests, under 15 minutes on two cores
	$(PYTEST) -m "not slow"

test-all: setup  ## the slower checks as well
	$(PYTEST)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyright --pythonpath $(BIN)/python

contracts: setup
	$(BIN)/lint-imports

docs: setup
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

package: setup  ## wheel and sdist, checked, and the wheel in an empty environment that has the core alone
	rm -rf dist build/empty
	$(BIN)/python -m build --quiet --no-isolation
	$(BIN)/python -m twine check --strict dist/*
	$(PYTHON) -m venv build/empty
	build/empty/bin/python -m pip install --quiet --constraint constraints.txt $(FROM_INDEX) torch
	build/empty/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	build/empty/bin/python -m pip check
	cd build/empty && bin/bayesvision info && bin/python -c "import bayesvision as bv; bv.pretrained('lcpfn').condition([1, 2], [0.4, 0.5]).predict([9])"
	rm -rf build/empty

check: lint types contracts docs package test  ## what CI runs

demo: $(VENV)/.demo  ## the main job on real data: demo/fit.png and a table
	$(BIN)/python examples/demo_data.py demo
	$(BIN)/bayesvision predict demo/train.csv --target IBM --test demo/test.csv \
		--out demo/predictions.csv --plot demo/fit.png --compare mean,gp,linear,trees

clean:
	rm -rf $(VENV) build dist demo docs/_build docs/gallery docs/reference/api docs/reference/results docs/reference/pictures .pytest_cache .ruff_cache
