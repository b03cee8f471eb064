# Two commands: `make quickstart` makes a model on this machine, `make test` checks everything.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SOURCES := pyproject.toml constraints.txt $(shell find native -name '*.cpp' -o -name '*.h' -o -name 'CMakeLists.txt')

CMAKE := PATH="$(CURDIR)/$(BIN):$$PATH" cmake
# Arm is cross-compiled and run under emulation where the machine has the tools.
ARM := $(if $(and $(shell command -v aarch64-linux-gnu-g++),$(shell command -v qemu-aarch64)),aarch64)

# Where easy_vqa.tar.xz lies (5,000 images and their questions, github.com/vzhou842/easy-VQA).
IMAGES ?= ../shared/data/multimodal

.PHONY: quickstart easy-vqa test test-all lint native-test native-test-all clean

quickstart: $(VENV)/.installed
	$(BIN)/mobillama quickstart

# A model that sees, from nothing: trained, examined on the official test split, shown with its images.
easy-vqa: $(VENV)/.installed-vision
	$(BIN)/mobillama prepare recipes/easy-vqa.toml --set images.root=$(IMAGES)
	$(BIN)/mobillama train recipes/easy-vqa.toml --set images.root=$(IMAGES)
	$(BIN)/mobillama evaluate runs/easy-vqa --tasks easy_vqa --data-dir $(IMAGES) --images right,shuffled,none --open

test: $(VENV)/.installed-test native-test
	$(BIN)/pytest -n auto --dist worksteal -m "not slow and not gpu and not network"

test-all: $(VENV)/.installed-test native-test-all
	$(BIN)/pytest -n auto --dist worksteal

# The C++ core by itself: under the address and undefined-behaviour sanitizers, and as Arm code.
native-test: $(addprefix native-test-,address $(ARM))
native-test-all: $(addprefix native-test-,release address thread $(ARM))

native-test-%: $(VENV)/.installed-test
	cd native && $(CMAKE) --preset $* >/dev/null && $(CMAKE) --build --preset $* && PATH="$(CURDIR)/$(BIN):$$PATH" ctest --preset $*

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

$(VENV)/.python:
	$(PYTHON) -c 'import sys; sys.exit("mobillama needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	touch $@

# torch goes first, alone and pinned: another package might otherwise choose a different build.
$(VENV)/.torch: constraints.txt $(VENV)/.python
	$(BIN)/pip install --quiet "$$(grep '^torch==' constraints.txt)"
	touch $@

$(VENV)/.installed: $(SOURCES) $(VENV)/.torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[train]'
	touch $@

$(VENV)/.installed-vision: $(SOURCES) $(VENV)/.torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[eval,vision]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-test: $(SOURCES) $(VENV)/.torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test]'
	touch $@ $(VENV)/.installed $(VENV)/.installed-vision

$(VENV)/.installed-dev: $(SOURCES) $(VENV)/.torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.installed $(VENV)/.installed-vision $(VENV)/.installed-test

clean:
	rm -rf $(VENV) build dist
