# `make check` is what CI runs: format, lint, types, layers, tests. It uses the active Python environment.
# Each module is compiled once, not by each of the thousand processes that import it.
unexport PYTHONDONTWRITEBYTECODE
# Temporary folders lie in memory where there is room: to wait for a disk takes a seventh of the time.
export PYTEST_DEBUG_TEMPROOT := $(shell [ "$$(df --output=avail --block-size=1M /dev/shm | tail -1)" -gt 4096 ] 2>/dev/null && echo /dev/shm)
.PHONY: bench check format lint types test fast long golden same-bits docs paper site end-to-end

check:
	$(MAKE) --jobs 2 --output-sync lint types
	$(MAKE) test

format:
	ruff format .
	ruff check --fix .

lint:
	ruff format --check .
	ruff check .
	lint-imports

types:
	mypy

# Tests with Ray wait more than they compute: they run beside the others, and say afterwards how it went. To collect
# the files of all others would take this process 15 seconds.
test:
	@told=$$(mktemp); python -m pytest -m "ray and not long" $$(grep -rl --include="*.py" "mark.ray" tests) > $$told 2>&1 & with_ray=$$!; \
	python -m pytest -n 2 --dist loadfile -m "not ray and not long"; others=$$?; \
	wait $$with_ray; ray=$$?; cat $$told; rm $$told; exit $$((others + ray))

# While you work: nothing that starts Ray, renders or runs the docs, or takes more than ten seconds.
fast:
	python -m pytest -n 2 --dist loadfile -m "not ray and not slow and not long" --ignore-glob="tests/test_docs*"

long:
	python -m pytest -m long

golden:
	python tests/golden/renew.py

same-bits:
	python tests/same_bits.py --base $(or $(BASE),HEAD)

docs:
	blossom-ray schema --markdown > docs/scenario-reference.md
	blossom-ray schema > blossom_ray/scenario/scenario.schema.json
	python docs/tools/cli_reference.py > docs/cli-reference.md
	python docs/tools/rooms.py

# Tables and figures of docs/results/claim.md, from run folders where SWEEPS names them, else from its data file.
paper:
	$(if $(SWEEPS),python scenarios/paper/grid.py lines $(SWEEPS) > claim.csv && mv claim.csv docs/results/claim.csv)
	python scenarios/paper/claim.py

# W1 to W4 against Flower, pfl-research and fluke, in environments of their own: a report of the day in build/bench.
# DATA=ARCHIVE names UCI-HAR's official archive, for W2.
bench: .peers .fluke
	python benchmarks/report.py --peers .peers/bin/python --fluke .fluke/bin/python $(if $(DATA),--data "$(DATA)")

.peers:
	python -m venv .peers && .peers/bin/pip install --quiet -r benchmarks/peers/requirements.txt || (rm -r .peers && false)

.fluke:
	python -m venv .fluke && .fluke/bin/pip install --quiet torch==2.13.0 torchvision==0.28.0 fluke-fl==0.8.1 || (rm -r .fluke && false)

site:
	python -m mkdocs build --strict

end-to-end:
	python tests/end_to_end.py
