"""What a job does with a version that passed its gate."""

from .job import Job
from .settings import publish_settings
from .workshop import Workshop


async def publish(shop: Workshop, job: Job) -> str:
    """Move the name, or begin the canary; returns what came of it in words. May be repeated."""
    assert job.digest is not None
    publishing, settings = shop.publishing, publish_settings(job.wish)
    if settings.mode == "point":
        await publishing.point(job.name, job.digest, tenant=job.tenant)
        return f"{job.name} is live"
    assert job.start is not None
    weight = settings.weight
    if await publishing.set_canary(job.name, job.digest, weight, live=job.start):
        return f"its version answers {weight:.0%} of the requests of {job.name}"
    return f"{job.name} was changed meanwhile, and stays as it is"
