# Every target works on a fresh checkout: it makes .venv first if need be, and leaves a finished one alone.
#   make run [SEED=0] [KEEP=1] [SET="STAGE.A.B=C …"]   the quickstart
#   make bench [ARGS="…"]      the reward service beside other ways to score, into docs/benchmarks.md
#   make test                    all tests
#   make coverage                the same, traced: at least 90 % of the lines
#   make soak [MINUTES=10] [SEED=0] [OVERLOAD=1|gateway]   load and random faults on real services, or ten times the
#                              load on the reward service or on its gateway; the report into docs/reliability.md
#   make lint                    style, types, import rules, protos
#   make image [BUILDER=docker] [IMAGE_ARGS="…"]   plaudit:VERSION, for every role, and plaudit-gateway:VERSION
#   make sbom                    build/sbom.cdx.json: the packages in .venv; each image has its own
#   make licences                docs/licences.md: the packages in .venv and their licences
#   make audit                   constraints.txt against known vulnerabilities; needs the internet
#   make protos                  regenerate plaudit/v1 from protos/, services/oip from third_party/
#   make trainers                verl and OpenRLHF as released, in build/trainers; tests of plaudit.adapters use it

PYTHON ?= python3
SEED ?= 0
KEEP ?=
SET ?=
ARGS ?=
MINUTES ?= 10
OVERLOAD ?=
BUILDER ?= docker
IMAGE_ARGS ?=

VENV := .venv
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' plaudit/__init__.py)
BIN := $(VENV)/bin
PINS := -c constraints.txt
PROTOS := $(sort $(wildcard protos/plaudit/v1/*.proto)) third_party/inference/open_inference.proto
# protoc looks for plugins on PATH, where another environment's may come first.
PROTOC := $(BIN)/python -m grpc_tools.protoc -I protos -I services/oip=third_party/inference \
  --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc
# Of the images' labels, what the Dockerfile can't know. A checkout with changes has "-dirty" as its revision.
REVISION = $(shell git describe --always --dirty --abbrev=40 --exclude='*' 2>/dev/null)
BUILD = $(BUILDER) build --build-arg VERSION=$(VERSION) $(IMAGE_ARGS) \
  --label org.opencontainers.image.revision=$(REVISION) \
  --label org.opencontainers.image.created=$(shell date -u +%Y-%m-%dT%H:%M:%SZ)

.PHONY: run bench test coverage soak lint image sbom licences audit protos protos-check trainers
.DELETE_ON_ERROR:

run: $(VENV)/examples.done
	exec $(BIN)/python examples/film-reviews/quickstart.py --seed $(SEED) $(if $(KEEP),--keep) \
	  $(foreach each,$(SET),--set $(each)) --exit-with-parent $$PPID

bench: $(VENV)/bench.done
	$(BIN)/python -m benchmarks.scorer --write docs/benchmarks.md $(ARGS)

# In order of the files, so that those which start processes, contract and e2e, don't come last and alone. One
# worker more than processors: tests wait for servers, deadlines and processes a fifth of their time.
PYTEST := $(BIN)/python -m pytest -n $(shell expr $$(nproc) + 1) --maxprocesses=4 --dist loadfile --no-loadscope-reorder

test: $(VENV)/dev.done
	$(PYTEST)

# Apart from the tests: to be traced takes them a third longer.
coverage: $(VENV)/dev.done
	$(PYTEST) --cov --cov-report=term:skip-covered --cov-fail-under=90

soak: $(VENV)/dev.done
	PYTHONPATH=tests:tests/contract:tests/cluster $(BIN)/python -m soak --minutes $(MINUTES) --seed $(SEED) \
	  --overload=$(OVERLOAD) --write docs/reliability.md

lint: $(VENV)/dev.done
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(MAKE) --no-print-directory protos-check

image:
	$(BUILD) --target gateway -t plaudit-gateway:$(VERSION) .
	$(BUILD) -t plaudit:$(VERSION) .

# Not validated: that takes a minute, and making it a second.
sbom: $(VENV)/dev.done
	mkdir -p build
	$(BIN)/cyclonedx-py environment --no-validate --output-reproducible -o build/sbom.cdx.json $(BIN)/python

# Some packages give the whole text for a name: its first line stays.
licences: $(VENV)/dev.done
	$(BIN)/python -W ignore -m piplicenses --from=mixed --format=markdown --with-system --ignore-packages plaudit pip \
	  | sed -e '/^| *|/d' -e 's/  */ /g' -e 's/---*/---/g' \
	    -e '1i # Licences of everything that is installed\n\nMade by `make licences`, in name order.\n' > docs/licences.md

# A vulnerability, and a package of which nothing could be learnt, are both an error. Lines of audit-exceptions.txt
# begin with the id of one that is known and borne.
audit: build/audit/bin/pip-audit
	@timeout 900 build/audit/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off -r constraints.txt \
	  $(patsubst %,--ignore-vuln %,$(shell sed 's/#.*//' audit-exceptions.txt)) \
	  || { echo "make audit: not clean. If the lines above name no vulnerability, none could be looked up: \
	is there a way to the internet?" >&2; exit 1; }

# In an environment of its own: its dependencies are none of ours.
build/audit/bin/pip-audit:
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install --quiet pip-audit==2.10.1

protos: $(VENV)/dev.done
	$(PROTOC) --python_out=. --grpc_python_out=. --mypy_out=. --mypy_grpc_out=. $(PROTOS)

protos-check: $(VENV)/dev.done
	rm -rf build/protos && mkdir -p build/protos
	$(PROTOC) --python_out=build/protos --grpc_python_out=build/protos --mypy_out=build/protos \
	  --mypy_grpc_out=build/protos $(PROTOS)
	for stubs in plaudit/v1 services/oip; do \
	  diff -r -x __init__.py -x py.typed -x __pycache__ build/protos/$$stubs $$stubs \
	  || { echo "$$stubs isn't what the protos say; run: make protos" >&2; exit 1; }; done

# torch goes first and alone, so that a local CPU build of it is taken where there is one.
$(VENV)/torch.done: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; try: make PYTHON=python3.11" >&2; exit 1; }
	@echo "Installing packages into $(VENV), once; that takes minutes."
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet $(PINS) torch
	touch $@

$(VENV)/examples.done: $(VENV)/torch.done pyproject.toml
	$(BIN)/python -m pip install --quiet $(PINS) -e . --group examples
	touch $@

$(VENV)/bench.done: $(VENV)/torch.done pyproject.toml
	$(BIN)/python -m pip install --quiet $(PINS) -e . --group bench
	touch $@

$(VENV)/dev.done: $(VENV)/torch.done pyproject.toml
	$(BIN)/python -m pip install --quiet $(PINS) -e . --group dev
	touch $@ $(VENV)/examples.done $(VENV)/bench.done

# Trainers that want other versions than ours. OpenRLHF's dependencies need a GPU to build; its own code doesn't.
trainers:
	test -x build/trainers/bin/pip || $(PYTHON) -m venv build/trainers
	build/trainers/bin/python -m pip install --quiet $(PINS) torch
	build/trainers/bin/python -m pip install --quiet verl==0.9.1 -e .
	build/trainers/bin/python -m pip install --quiet --no-deps openrlhf==0.11.2
