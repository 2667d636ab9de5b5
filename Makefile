# make demo | make test | make results SCANS=folder | make soak [PART=name] | make trees | make lint | make venv
# PIP_FLAGS goes to pip as it is, to choose another build of torch, for example
#   make venv PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
PIP_FLAGS ?=
VENV ?= .venv
PY := $(VENV)/bin/python

.PHONY: venv demo test results soak trees lint clean

venv: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python: expected 3.10 or newer, found " + sys.version.split()[0] + ". Pass another one: make venv PYTHON=python3.11")'
	@echo "Installing Python packages into $(VENV): 2 to 3 minutes and about 2 GB with a CPU build of torch, once."
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet $(PIP_FLAGS) --constraint constraints.txt --editable ".[fast,demo,dicom,notebook,tune,dev]"
	touch $@

demo: venv
	$(PY) -m vqvae2 demo-scans --out demo/scans --subjects 12 > /dev/null
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PY) -m vqvae2 run --preset demo --scans demo/scans --out demo

test: venv
	$(PY) -m pytest -n 2 --dist worksteal --durations 10

# Every figure, picture and model card of the documentation, from the weights in pretrained/ and your scans.
results: venv
	@test -n "$(SCANS)" || { echo "SCANS: expected a folder of scans, found nothing. make results SCANS=folder" >&2; exit 2; }
	$(PY) -m tools.make_results --scans "$(SCANS)"

# Thousands of hostile inputs, kills and full disks, and what became of each; at most three hours, and again: goes on.
soak: venv
	$(PY) tests/hostile/soak.py $(if $(PART),--part $(PART))

# No made-up person in two splits: 10,000 folders of scans made at random, where `make test` makes 300.
trees: venv
	VQVAE2_RANDOM_TREES=10000 $(PY) -m pytest -n 2 tests/scans/test_archives.py

lint: venv
	$(PY) -m ruff check .
	$(PY) -m mkdocs build --quiet --strict
	$(VENV)/bin/hadolint Dockerfile

clean:
	rm -rf demo site
