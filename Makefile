# What continuous integration runs, with the tools of the extra [test] on the path. Nothing is installed here.

.PHONY: check test slow coverage dist

check:  ## style, formatting, types
	ruff check .
	ruff format --check .
	mypy

test:  ## the tests that every change passes
	python -m pytest

slow:  ## those that take minutes
	python -m pytest -m slow

coverage:  ## the tests, with the branches that they miss
	python -m pytest --cov --cov-report=term:skip-covered

dist:  ## a wheel and an archive of the sources, checked (needs build, twine and check-wheel-contents)
	rm -rf build dist
	python -m build
	twine check --strict dist/*
	check-wheel-contents dist/*.whl
