"""Which pipelines a worker takes no pending runs of, as a value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pause:
    """The pipelines that are paused: those in `names`, or with `others` all but those.

    Pausing everything holds runs of pipelines that nobody here knows as well; taken,
    they would fail.
    """

    names: frozenset[str] = frozenset()
    others: bool = False

    def pause(self, pipeline: str | None) -> Pause:
        """With this pipeline too; None is all of them."""
        return Pause(others=True) if pipeline is None else self._with(pipeline, held=True)

    def resume(self, pipeline: str | None) -> Pause:
        """Without this pipeline; None is all of them."""
        return Pause() if pipeline is None else self._with(pipeline, held=False)

    def holds(self, pipeline: str) -> bool:
        return (pipeline in self.names) is not self.others

    def _with(self, pipeline: str, *, held: bool) -> Pause:
        names = self.names - {pipeline} if held is self.others else self.names | {pipeline}
        return Pause(names, self.others)
