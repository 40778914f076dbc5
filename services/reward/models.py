"""All models of one server, by name."""

import asyncio
from collections.abc import Callable, Sequence

from services.batching import CallLimits
from services.errors import UnknownName
from services.reward.config import EnsembleSpec, ModelSpec, Spec
from services.reward.dataplane import PlainModel
from services.reward.ensemble import Ensemble
from services.reward.interface import RewardModel
from services.reward.items import Engine

STREAM_WINDOW = 1024
"""Most items that one stream may have in flight."""


class RewardModels:
    """Loads the networks one after the other, and finds models by name."""

    def __init__(
        self, specs: Sequence[Spec], load_engine: Callable[[ModelSpec], Engine], limits: CallLimits
    ) -> None:
        self.limits = limits
        self._networks = {
            spec.name: PlainModel(spec, lambda spec=spec: load_engine(spec), limits)  # type: ignore[misc]
            for spec in specs
            if isinstance(spec, ModelSpec)
        }
        self._models: dict[str, RewardModel] = {spec.name: self._make(spec) for spec in specs}

    @property
    def all(self) -> list[RewardModel]:
        """In the order of the configuration; the first is the default."""
        return list(self._models.values())

    @property
    def networks(self) -> list[PlainModel]:
        """Those that have a queue of their own."""
        return list(self._networks.values())

    def get(self, name: str = "") -> RewardModel:
        """The model of this name; the default for an empty one. Raises UnknownName."""
        name = name or next(iter(self._models))
        if name not in self._models:
            raise UnknownName("model", name, list(self._models))
        return self._models[name]

    async def load(self) -> None:
        """Loads every network; raises what loading raises."""
        for network in self.networks:
            await network.load()

    async def close(self) -> None:
        """Ends all threads."""
        await asyncio.gather(*(network.close() for network in self.networks))

    def _make(self, spec: Spec) -> RewardModel:
        if isinstance(spec, EnsembleSpec):
            return Ensemble(spec, [self._networks[name] for name in spec.ensemble])
        return self._networks[spec.name]
