# Everything is built and run below build/; `make clean` removes it.
PYTHON ?= python3
export PYTHON

COLLECTION := build/ansible_collections/opskit/runbooks
ANSIBLE = ANSIBLE_COLLECTIONS_PATH="$(CURDIR)/build" ANSIBLE_HOME="$(CURDIR)/build/home/.ansible"
LAB = PATH="$(CURDIR)/build/venv/lab/bin:$$PATH" $(ANSIBLE) OPSKIT_LAB="$(CURDIR)/build/lab" ansible-playbook -i molecule/inventory.yml molecule/default

.PHONY: help demo test lint bench soak lab lab-down collection build clean

help:
	@echo "make demo        back up, destroy and restore an example application (no root, no containers)"
	@echo "make test        every check and test; PARTS='lint units' runs only these"
	@echo "make lint        the quick checks of style, types and documentation"
	@echo "make bench       time backup and restore beside tar, restic and borg; PARTS='files days', OPTIONS='--rounds 1'"
	@echo "make soak        the tests again with the counts that the claims need"
	@echo "make lab         boot the hosts of the lab, containers with systemd: Debian 12 and 13 (podman)"
	@echo "make lab-down    remove them; IMAGES=keep keeps the images for the next time"
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
	@$(if $(PARTS),$(if $(filter lab,$(PARTS)),tests/tools/need lab),tests/tools/need lab)
	@tests/tools/venv tools
	@tests/tools/venv e2e
	@tests/tools/venv lab
	@build/venv/tools/bin/python tests/tools/gates.py $(PARTS)

lint:
	@$(MAKE) --no-print-directory test PARTS='lint docs specs'

soak:
	@OPSKIT_TEST_SIZE=soak $(MAKE) --no-print-directory test PARTS='store e2e'

bench:
	@tests/tools/need bench
	@tests/tools/venv e2e
	@$(PYTHON) tests/tools/collection.py
	@cd $(COLLECTION) && PATH="$(CURDIR)/build/venv/e2e/bin:$$PATH" $(ANSIBLE) OPSKIT_LAB="$(CURDIR)/build/lab" OPSKIT_LAB_INVENTORY=molecule/inventory.yml tests/bench/run $(PARTS) $(OPTIONS)

lab:
	@tests/tools/need lab
	@tests/tools/venv lab
	@$(PYTHON) tests/tools/collection.py
	@cd $(COLLECTION) && $(LAB)/create.yml
	@echo "Log in: ssh -F build/lab/ssh_config debian12. Remove all: make lab-down"

lab-down:
	@tests/tools/need lab
	@tests/tools/venv lab
	@$(PYTHON) tests/tools/collection.py
	@cd $(COLLECTION) && $(LAB)/destroy.yml -e lab_images=$(if $(filter keep,$(IMAGES)),false,true)

build:
	@tests/tools/need demo
	@tests/tools/venv tools
	@build/venv/tools/bin/python tests/tools/collection.py
	@build/venv/tools/bin/ansible-galaxy collection build --force --output-path build $(COLLECTION)

collection:
	@$(PYTHON) tests/tools/collection.py

clean:
	rm -rf build
