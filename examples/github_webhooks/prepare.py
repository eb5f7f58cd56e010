"""
Create the tables of the three services, as a migration does before a deployment.
"""

import asyncio

from brokerkit.examples.github_webhooks import audit, notifier, projection

__all__ = ["prepare"]


async def prepare() -> None:
    """Create what is missing, one service after the other."""
    for service in (audit, projection, notifier):
        await service.prepare()


if __name__ == "__main__":
    asyncio.run(prepare())
