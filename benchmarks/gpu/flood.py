"""Clients of a server, in a process of their own that imports little: each sends its next request at once.

    python benchmarks/gpu/flood.py PORT AT SECONDS CLIENTS < pickled requests     prints requests answered a second

AT: when to begin, by time.time(), so that several processes begin together. The first quarter warms up.
"""

import asyncio
import pickle
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import http_load


async def flood(port: int, messages: list[bytes], during_s: float, clients: int) -> float:
    """Requests answered a second."""
    answered, warm_up_s = 0, during_s / 4
    begin_s = time.perf_counter()

    async def one(first: int) -> None:
        nonlocal answered
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        number = first
        while (passed_s := time.perf_counter() - begin_s) < during_s:
            writer.write(messages[number % len(messages)])
            await http_load.answer(reader)
            answered += passed_s > warm_up_s
            number += clients
        writer.close()

    await asyncio.gather(*(one(number) for number in range(clients)))
    return answered / (time.perf_counter() - begin_s - warm_up_s)


if __name__ == "__main__":
    port, at, during_s, clients = sys.argv[1:]
    requests = pickle.load(sys.stdin.buffer)
    time.sleep(max(0.0, float(at) - time.time()))
    print(asyncio.run(flood(int(port), requests, float(during_s), int(clients))))
