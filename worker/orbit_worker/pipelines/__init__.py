"""
Pipelines: named steps that a worker process executes durably.

    from orbit_worker.pipelines import Pipeline, step

    @step(retries=2, timeout=10)
    def fetch(url): ...

    def count(page): ...

    pipeline = Pipeline("count-page", steps=[fetch, count])

Each step gets the result of the one before it; the first gets the run's input.
Put the file into a folder and start `orbit-metrics worker --pipelines FOLDER`.
"""

from orbit_worker.pipelines.definition import Pipeline, Step, step

__all__ = ["Pipeline", "Step", "step"]
