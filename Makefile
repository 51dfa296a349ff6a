# `make demo` and `make test` set everything up themselves; they need Python 3.11 or newer, and make.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
RUN := $(VENV)/bin/python -m
STAMP := $(VENV)/installed
ROOMS := ir passes backends frontends tools

.PHONY: demo test lint bench accuracy clean

demo: $(STAMP)
	$(RUN) secateur.tools.demo

test: lint
	$(RUN) pytest

lint: $(STAMP)
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	@mkdir -p build/types && ln -sfn ../.. build/types/secateur
	MYPYPATH=build/types $(RUN) mypy $(ROOMS:%=-p secateur.%)

bench: $(STAMP)
	for model in resnet50 mobilenet_v2 minilm; do \
	  $(RUN) secateur.tools.main bench zoo:$$model --threads 2 --against eager,onnxruntime,openvino || exit 1; \
	done
	for model in resnet50 mobilenet_v2 minilm bert_base; do \
	  $(RUN) secateur.tools.main bench zoo:$$model --quantize int8 --threads 2 --against onnxruntime,openvino || exit 1; \
	done

accuracy: $(STAMP)
	$(RUN) secateur.tools.accuracy --guide docs/accuracy.md

# One installation for everything; it is repeated only when the dependencies change.
$(STAMP): pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --editable '.[torch,onnx,bench,demo,accuracy,view,dev]'
	touch $@

clean:
	rm -rf build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache
