"""What affinity is measured against: a router of Ray Serve that knows nothing and draws lots."""

import random

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica


class RandomRouter(RequestRouter):
    """Any replica, whatever it has and however long its queue is."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        return [[random.choice(candidate_replicas)]] if candidate_replicas else []
