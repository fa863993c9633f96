"""A fast server for benchmarks that answers every question after a fixed time.

Run as a process: it prints its port and serves until it is killed.
"""

from __future__ import annotations

import asyncio
import json
import sys

MODEL = "some-vlm"
VERDICT = '{"prompt_correspondence": 4, "style_adherence": 3}'


def answer(value: object) -> bytes:
    """Return a response of status 200."""
    body = json.dumps(value).encode()
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


MODELS = answer({"object": "list", "data": [{"id": MODEL}]})
MESSAGE = {"role": "assistant", "content": VERDICT}
CHOICE = {"index": 0, "finish_reason": "stop", "message": MESSAGE}
COMPLETION = answer({"id": "1", "object": "chat.completion", "model": MODEL, "choices": [CHOICE]})


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, latency: float) -> None:
    """Answer the requests of one connection, one after the other."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            fields = dict(
                line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line
            )
            await reader.readexactly(int(fields.get(b"content-length", 0)))
            if head.startswith(b"GET"):
                writer.write(MODELS)
            else:
                await asyncio.sleep(latency)
                writer.write(COMPLETION)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def main(latency: float) -> None:
    """Print the port and serve."""
    server = await asyncio.start_server(
        lambda reader, writer: serve(reader, writer, latency), "127.0.0.1", 0, backlog=1024
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1])))
