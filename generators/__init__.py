"""Tests of openapi.yaml with generators in other languages. `tox run -e generators` runs them."""
