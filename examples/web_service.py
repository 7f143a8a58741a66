"""A web service whose CPU work runs in worker processes, so that its event loop stays free.

GET /primes?below=100000            one number, by `await f.remote(…)`
GET /stream?below=100000&parts=8    one JSON line per part, each sent as soon as it is made
GET /health                         answers at once, whatever else is running

python examples/web_service.py --port 8080
python examples/web_service.py --self-test      serve on a free port, load it, report, exit
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator, Iterator

import web_client
from aiohttp import web

import framework as fw

MAX_BELOW = 5_000_000
MAX_PARTS = 1_000


def primes_between(low: int, high: int) -> int:
    """How many primes there are in [low, high), by trial division: slow on purpose."""
    count = 0
    for number in range(max(low, 2), high):
        divisor = 2
        while divisor * divisor <= number and number % divisor:
            divisor += 1
        count += divisor * divisor > number
    return count


@fw.remote
def count_primes(below: int) -> int:
    """A task: one answer."""
    return primes_between(0, below)


@fw.remote
def count_by_part(below: int, parts: int) -> Iterator[dict[str, int]]:
    """A generator task: one row per part, streamed to whoever iterates."""
    for part in range(parts):
        low, high = below * part // parts, below * (part + 1) // parts
        yield {"from": low, "to": high, "count": primes_between(low, high)}


def number_in(request: web.Request, name: str, most: int) -> int:
    """A query parameter between 1 and `most`; answers 400 with the reason otherwise."""
    text = request.query.get(name, "")
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:20]) <= most:
        raise web.HTTPBadRequest(text=f"{name} must be a whole number from 1 to {most}, not {text!r}\n")
    return int(text)


async def primes(request: web.Request) -> web.Response:
    below = number_in(request, "below", MAX_BELOW)
    count = await count_primes.remote(below)
    return web.json_response({"below": below, "count": count})


async def stream(request: web.Request) -> web.StreamResponse:
    below = number_in(request, "below", MAX_BELOW)
    parts = number_in(request, "parts", MAX_PARTS)
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    # When the client goes away this handler is cancelled: closing the generator then stops its task.
    async with contextlib.aclosing(count_by_part.remote(below, parts)) as rows:
        try:
            async for ref in rows:
                await response.write(json.dumps(await ref).encode() + b"\n")
        except fw.exceptions.FrameworkError as error:  # the status line is gone: say it in the stream
            await response.write(json.dumps({"error": str(error)}).encode() + b"\n")
    await response.write_eof()
    return response


async def health(request: web.Request) -> web.Response:
    return web.json_response({"ok": True})


async def workers(app: web.Application) -> AsyncIterator[None]:
    """The framework lives as long as the application."""
    async with fw.init():
        yield


def application() -> web.Application:
    """The service, ready to be run by aiohttp."""
    app = web.Application()
    app.cleanup_ctx.append(workers)
    app.add_routes([web.get("/primes", primes), web.get("/stream", stream), web.get("/health", health)])
    return app


@contextlib.asynccontextmanager
async def serving(host: str, port: int) -> AsyncIterator[str]:
    """The service on host and port (0: a free one) as long as the block runs; gives its URL."""
    runner = web.AppRunner(application(), handler_cancellation=True)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        yield f"http://{host}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def serve(host: str, port: int) -> int:
    """Serve until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serving(host, port) as url:
        print(f"listening on {url}", flush=True)
        await stop.wait()
    print("stopped", flush=True)
    return 0


async def self_test(requests: int, concurrency: int, limit: int) -> int:
    """Serve on a free loopback port and load it; 0 when every answer was right."""
    async with serving("127.0.0.1", 0) as url:
        report = await web_client.load(url, requests, concurrency, limit, parts=8)
    print("\n".join(report.lines()))
    return 1 if report.problems else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="A web service with its CPU work in worker processes.")
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--self-test", action="store_true", help="serve on a free port, load it, exit")
    parser.add_argument("--requests", type=web_client.positive, default=200, help="default: %(default)s")
    parser.add_argument("--concurrency", type=web_client.positive, default=20, help="default: %(default)s")
    parser.add_argument("--limit", type=web_client.positive, default=20_000, help="default: %(default)s")
    options = parser.parse_args()
    if options.self_test:
        return asyncio.run(self_test(options.requests, options.concurrency, options.limit))
    return asyncio.run(serve(options.host, options.port))


if __name__ == "__main__":
    sys.exit(main())
