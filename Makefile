# Every target works on a fresh machine that has Python 3.11 or newer, and make.

PYTHON ?= python3
BIN := .venv/bin
IMAGES := manifests/images/.made

.PHONY: setup demo wheel docs test slow chaos simulate gpu scheduling fuzz volume clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	touch $@

$(IMAGES): manifests/make_images.py constraints.txt | .venv/.ready
	mkdir -p build/wheels
	$(BIN)/python -m pip download --quiet --no-deps --only-binary :all: --constraint constraints.txt --dest build/wheels scikit-image
	$(BIN)/python manifests/make_images.py build/wheels manifests/images
	touch $@

demo: .venv/.ready $(IMAGES)
	$(BIN)/batchnst run manifests/demo.csv --out out/demo --size 256
	$(BIN)/batchnst report out/demo
	@echo "Look at $$($(BIN)/python manifests/contact_sheet.py out/demo), and at out/demo/report.html in a browser"

# One folder with all that another machine needs. build/lib is what an earlier build left, and would go into the wheel.
wheel: .venv/.ready
	rm -rf build/dist build/lib build/bdist.*
	$(BIN)/python -m build --wheel --no-isolation --outdir build/dist .
	cp constraints.txt build/dist

docs: .venv/.ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.venv/.chromium: tests/tools/chromium.sh | .venv/.ready
	tests/tools/chromium.sh
	touch $@

.venv/.servers: tests/tools/servers.sh | .venv/.ready
	tests/tools/servers.sh
	touch $@

# Tests start hundreds of processes, which else compile every module anew.
test slow: export PYTHONDONTWRITEBYTECODE =

test: .venv/.ready $(IMAGES) .venv/.chromium .venv/.servers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	BATCHNST_TEST_ALL=1 $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

slow: .venv/.ready $(IMAGES)
	$(BIN)/pytest -m slow

simulate: .venv/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.tools.simulate

chaos: .venv/.ready $(IMAGES)
	$(BIN)/python -m tests.tools.chaos

fuzz: .venv/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.tools.fuzz

volume: .venv/.ready
	$(BIN)/python -m tests.tools.volume
	$(BIN)/python -m tests.tools.volume_plan 1000000
	$(BIN)/python -m tests.tools.volume_plan 10000000

gpu: .venv/.ready
	$(BIN)/python -m tests.tools.gpu

scheduling: .venv/.ready $(IMAGES)
	$(BIN)/python -m tests.tools.scheduling
	$(BIN)/python -m tests.tools.scheduling --slots 4096 --processes 16 --pair-seconds 15

clean:
	rm -rf .venv build out manifests/images *.egg-info
