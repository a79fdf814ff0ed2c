# `make check` is what CI runs: format, lint, types, layers, tests. It uses the active Python environment.
.PHONY: check format lint types test fast long golden same-bits docs site end-to-end

check: lint types test

format:
	ruff format .
	ruff check --fix .

lint:
	ruff format --check .
	ruff check .
	lint-imports

types:
	mypy

test:
	python -m pytest -n 2 --dist loadfile -m "not ray"
	python -m pytest -m "ray and not long"

# While you work: nothing that starts Ray, renders or runs the docs, or takes more than ten seconds.
fast:
	python -m pytest -n 2 --dist loadfile -m "not ray and not slow" --ignore-glob="tests/test_docs*"

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

site:
	python -m mkdocs build --strict

end-to-end:
	python tests/end_to_end.py
