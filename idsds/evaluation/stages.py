"""A plan whose nets are stages of training: what their checkpoints hold, and the device that they are trained for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from idsds.evaluation.plan import Job, Plan
from idsds.training.checkpoints import Stage


def with_weights(plan: Plan, known: Mapping[str, str] | None = None) -> Plan:
    """The plan with the content of its checkpoints, which is a part of the records' addresses.

    Args:
        plan: whose checkpoints may have been trained in the meantime.
        known: by the key of a stage, the sha256 of a checkpoint that is no longer in the cache.
    """

    def weighed(job: Job) -> Job:
        if not isinstance(job.source, Stage):
            return job
        return replace(job, weights=job.source.content or (known or {}).get(job.source.key, ""))

    return replace(plan, jobs=tuple(map(weighed, plan.jobs)))


def on_device(plan: Plan, device: str) -> Plan:
    """The plan for a device that is not this process's: that of a cluster's workers."""

    def moved(stage: Stage) -> Stage:
        return replace(stage, device=device, start=moved(stage.start) if stage.start else None)

    jobs = tuple(replace(job, source=moved(job.source)) if isinstance(job.source, Stage) else job for job in plan.jobs)
    return replace(plan, device=device, jobs=jobs)
