"""Tests of clients/swift, which need a Swift toolchain. `tox run -e swift` runs them."""
