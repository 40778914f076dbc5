"""What a request can't hold, as its caller is told."""

import pytest

from plaudit import InvalidArgument


def refused(build, *arguments, **named):
    """(field, description) of the one violation."""
    with pytest.raises(InvalidArgument) as caught:
        build(*arguments, **named)
    (violation,) = caught.value.violations
    assert str(caught.value) == f"{violation.field}: {violation.description}"
    return violation.field, violation.description
