# Everything is built and run below build/; `make clean` removes it.
PYTHON ?= python3
export PYTHON

COLLECTION := build/ansible_collections/opskit/runbooks
ANSIBLE = ANSIBLE_COLLECTIONS_PATH="$(CURDIR)/build" ANSIBLE_HOME="$(CURDIR)/build/home/.ansible"

.PHONY: help demo test lint bench soak collection build clean

help:
	@echo "make demo        back up, destroy and restore an example application (no root, no containers)"
	@echo "make test        every check and test; PARTS='lint units' runs only these"
	@echo "make lint        the quick checks of style, types and documentation"
	@echo "make bench       time backup and restore beside tar, restic and borg"
	@echo "make soak        the tests again with the counts that the claims need"
	@echo "make build       the artifact for Galaxy: build/opskit-runbooks-<version>.tar.gz"
	@echo "make collection  copy the tree to $(COLLECTION)"
	@echo "make clean       remove build/"

demo:
	@tests/tools/need demo
	@tests/tools/venv demo
	@$(PYTHON) tests/tools/collection.py
	@cd $(COLLECTION) && PATH="$(CURDIR)/build/venv/demo/bin:$$PATH" $(ANSIBLE) examples/demo/run

test:
	@tests/tools/need test
	@tests/tools/venv tools
	@tests/tools/venv e2e
	@build/venv/tools/bin/python tests/tools/gates.py $(PARTS)

lint:
	@$(MAKE) --no-print-directory test PARTS='lint docs specs'

soak:
	@OPSKIT_TEST_SIZE=soak $(MAKE) --no-print-directory test PARTS='store e2e'

bench:
	@tests/tools/need bench
	@tests/tools/venv e2e
	@$(PYTHON) tests/tools/collection.py
	@cd $(COLLECTION) && PATH="$(CURDIR)/build/venv/e2e/bin:$$PATH" $(ANSIBLE) tests/bench/run

build:
	@tests/tools/need demo
	@tests/tools/venv tools
	@build/venv/tools/bin/python tests/tools/collection.py
	@build/venv/tools/bin/ansible-galaxy collection build --force --output-path build $(COLLECTION)

collection:
	@$(PYTHON) tests/tools/collection.py

clean:
	rm -rf build
