"""Many clients of a server, in a process of their own: `python many_clients.py PORT NUM_CLIENTS NUM_REQUESTS LEAVE`.

Each client sends one request after the other; a share LEAVE of them closes the connection at a random moment. Refused
ones (429) are sent again after their Retry-After. Prints JSON: seconds of each answered request, and how many there
were of each status.
"""

import asyncio
import json
import random
import re
import sys
import time
from collections import Counter

BODY = {"model": "toy", "temperature": 0, "max_tokens": 12}


async def main(port, num_clients, num_requests, leave):
    dice, seconds, statuses = random.Random(5), [], Counter()  # noqa: S311 - a test's dice
    left = iter(range(num_requests))

    async def client():
        for number in left:
            text = dice.choice(["hi", "hello", "no", "when hello", "w" * 30])
            body = BODY | {"messages": [{"role": "user", "content": text}], "stream": number % 2 == 0}
            is_leaving = dice.random() < leave
            while True:
                began = time.perf_counter()
                status, wait = await ask(port, body, dice.random() * 0.05 if is_leaving else None)
                statuses[status] += 1
                if status != 429:
                    break
                await asyncio.sleep(wait * (1 + dice.random()))
            if status == 200:
                seconds.append(time.perf_counter() - began)

    await asyncio.gather(*(client() for _ in range(num_clients)))
    json.dump({"seconds": seconds, "statuses": {str(key): number for key, number in statuses.items()}}, sys.stdout)


async def ask(port, body, leave_after):
    """The status of the answer and its Retry-After, once it has been read to its end; 0 where the client left."""
    data = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    try:
        writer.write(head.encode() + data)
        if leave_after is not None:
            await asyncio.sleep(leave_after)
            return 0, 0
        answer = await reader.read()
        wait = re.search(rb"retry-after: (\d+)", answer)
        return int(answer.split(b" ", 2)[1]), int(wait[1]) if wait else 0
    finally:
        writer.close()


if __name__ == "__main__":
    words = sys.argv[1:]
    asyncio.run(main(int(words[0]), int(words[1]), int(words[2]), float(words[3])))
