"""How routes ask the reward service."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Unpack

from fastapi import Depends, Request

from plaudit.clients import ItemFailure, PlauditError, Reward, Scorable, ScoreOptions, Scores
from services.gateway import problems
from services.gateway.paths import Paths
from services.gateway.problems import Problem
from services.gateway.upstream import Upstream

PROBLEMS: dict[int | str, dict[str, Any]] = {
    "default": {"model": Problem, "description": "Any failure: a problem as RFC 9457 describes it."}
}
"""What OpenAPI says of every route's failures."""


async def _upstream(request: Request) -> Upstream:
    found = request.app.state.upstream
    assert isinstance(found, Upstream)
    return found


RewardService = Annotated[Upstream, Depends(_upstream)]
"""A route's parameter of this type is the client."""


@contextmanager
def naming(paths: Paths) -> Iterator[None]:
    """Raises what the reward service refuses as a problem whose fields `paths` has renamed."""
    try:
        yield
    except PlauditError as error:
        raise problems.of_error(error, paths) from error


async def score_all(
    reward: Upstream, items: Sequence[Scorable], paths: Paths, **options: Unpack[ScoreOptions]
) -> tuple[list[Reward], Scores]:
    """One reward per item, for answers that have no room for failures; one bad item raises a ProblemError."""
    with naming(paths):
        scores = await reward.score(items, all_or_nothing=True, **options)
    found = []
    for result in scores:
        if isinstance(result, ItemFailure):
            raise problems.of_item(result, paths)
        found.append(result)
    return found, scores
