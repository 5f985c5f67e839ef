"""Plans whose nets are training stages: the content of their checkpoints, and the device that they are trained for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from idsds.evaluation.job import Job
from idsds.evaluation.plan import Plan
from idsds.training.checkpoints import Stage


def with_weights(plan: Plan, known: Mapping[str, str] | None = None) -> Plan:
    """Return the plan with the hashes of its checkpoints, which are part of the records' addresses.

    Args:
        plan: whose checkpoints may have been trained since it was made.
        known: the sha256 of checkpoints that are no longer in the cache, by key of the stage.
    """

    def weighed(job: Job) -> Job:
        if not isinstance(job.source, Stage):
            return job
        return replace(job, weights=job.source.content or (known or {}).get(job.source.key, ""))

    return replace(plan, jobs=tuple(map(weighed, plan.jobs)))


def on_device(plan: Plan, device: str) -> Plan:
    """Return the plan for the device of a cluster's workers, which may differ from this process's."""

    def moved(stage: Stage) -> Stage:
        return replace(stage, device=device, start=moved(stage.start) if stage.start else None)

    jobs = tuple(replace(job, source=moved(job.source)) if isinstance(job.source, Stage) else job for job in plan.jobs)
    return replace(plan, device=device, jobs=jobs)
