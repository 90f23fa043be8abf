"""The flag that writes the corpus anew. After the first release only new files may differ."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite-corpus", action="store_true", help="write tests/corpus/*.json anew (name that folder)")


@pytest.fixture
def rewrite(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--rewrite-corpus", default=False))
