"""The examples in docstrings are run as tests; what one of them registers is forgotten after it."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _examples_register_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    if type(request.node).__name__ != "DoctestItem":
        yield
        return
    from nacme.criteria import registry

    before = dict(registry.all_criteria())
    yield
    for name in registry.all_criteria().keys() - before.keys():
        del registry._REGISTRY[name]
