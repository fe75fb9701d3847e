"""What pytest loads for these tests: the plugins of the contract tests, and the browser."""

from collections.abc import Iterator
from typing import Any

import pytest

pytest_plugins = ["contract_tests.suite.plugin", "contract_tests.target.fixtures", "server_tests.chromium"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "client(*ids): the rules for clients in openapi.yaml that a test proves")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A PostgreSQL server."""
    from server_tests.postgres_cluster import Cluster  # only here: not each environment has the driver

    with Cluster(fsync="off", max_connections="200") as cluster:
        yield cluster


@pytest.fixture
def url(cluster: Any) -> str:
    """The URL of an empty database in PostgreSQL."""
    found: str = cluster.new_database()
    return found
