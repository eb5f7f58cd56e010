import asyncio, json, sys
from brokerkit.adapter import open_adapter
from brokerkit.patterns import DeadLetters


async def main(url: str, channel: str, group: str) -> None:
    adapter = open_adapter(url)
    await adapter.connect()
    try:
        for outcome in await DeadLetters(adapter, channel, group).redrive():
            if outcome.result == "redriven":
                print(json.dumps({"id": outcome.id}))
    finally:
        await adapter.close()

asyncio.run(main(*sys.argv[1:]))
