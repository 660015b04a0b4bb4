"""What the tests of this folder share."""

import logging

import absl.logging
import pytest


@pytest.fixture
def errors():
    """A list of the errors that are logged."""
    found: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record):
            found.append(record.getMessage())

    handler = Collect(logging.ERROR)
    absl.logging.get_absl_logger().addHandler(handler)
    yield found
    absl.logging.get_absl_logger().removeHandler(handler)
