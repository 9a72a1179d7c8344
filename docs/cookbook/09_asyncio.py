"""asyncio: stream texts while the event loop keeps running.

Each piece is computed in a thread, so only the task that reads the text waits for the engine.
Cancelling a task (here by a timeout) ends its text and frees its memory.
"""

from __future__ import annotations

import asyncio

import llama2py

model = llama2py.load()


async def tell(name: str, prompt: str, seed: int) -> str:
    text = prompt
    async for piece in model.astream(prompt, max_tokens=80, temperature=0.7, seed=seed):
        text += piece
    print(f"{name} is done")
    return text


async def heartbeat(beats: list[float]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        beats.append(loop.time())
        await asyncio.sleep(0.001)


async def main() -> None:
    beats: list[float] = []
    pulse = asyncio.create_task(heartbeat(beats))
    texts = await asyncio.gather(
        tell("the first", "Once upon a time", seed=1),
        tell("the second", "One day, a dog", seed=2),
    )
    pulse.cancel()
    print(*texts, sep="\n---\n")
    print(f"the event loop ran {len(beats)} times in the meantime")

    try:
        await asyncio.wait_for(endless(), timeout=0.2)
    except asyncio.TimeoutError:  # from Python 3.11 on, the built-in TimeoutError
        print("the endless task was cancelled")


async def endless() -> None:
    while True:
        async for _ in model.astream("Once", temperature=1.5):
            pass


asyncio.run(main())
