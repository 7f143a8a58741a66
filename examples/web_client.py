"""A bounded load on examples/web_service.py: so many requests, so many at a time, every answer checked.

python examples/web_service.py --port 8080 &
python examples/web_client.py --url http://127.0.0.1:8080 --requests 200 --concurrency 20
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from dataclasses import dataclass, field

import aiohttp

REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=60)


@dataclass(slots=True)
class Report:
    """What a load did: seconds of each answer, and what was wrong."""

    latencies: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    streamed: int = 0
    seconds: float = 0.0

    def lines(self) -> list[str]:
        """The report as text. Latencies are in milliseconds."""
        ordered = sorted(self.latencies) or [0.0]
        middle, high = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
        rate = len(self.latencies) / self.seconds if self.seconds else 0.0
        return [
            f"{len(self.latencies)} answers in {self.seconds:.2f} s ({rate:.0f}/s), "
            f"median {middle * 1e3:.1f} ms, 99 % within {high * 1e3:.1f} ms",
            f"{self.streamed} rows streamed, {len(self.problems)} wrong answers",
            *self.problems[:5],
        ]


def primes_below(limit: int) -> int:
    """The number of primes below `limit`, by a sieve: the answer that the service should give."""
    sieve = bytearray([1]) * max(limit, 2)
    sieve[:2] = b"\0\0"
    for number in range(2, int(limit**0.5) + 1):
        if sieve[number]:
            sieve[number * number :: number] = bytes(len(range(number * number, len(sieve), number)))
    return sum(sieve[:limit])


async def ask_count(session: aiohttp.ClientSession, url: str, limit: int) -> str | None:
    """One request for a number; what is wrong with the answer, or None."""
    async with session.get(f"{url}/primes", params={"below": str(limit)}) as response:
        body = await response.json()
        expected = primes_below(limit)
        if response.status != 200 or body.get("count") != expected:
            return f"/primes?below={limit}: {response.status} {body}, expected {expected}"
    return None


async def ask_stream(
    session: aiohttp.ClientSession, url: str, limit: int, parts: int
) -> tuple[int, str | None]:
    """One streamed request: the rows received, and what is wrong with them or None."""
    total = rows = 0
    async with session.get(f"{url}/stream", params={"below": str(limit), "parts": str(parts)}) as response:
        async for line in response.content:
            row = json.loads(line)
            if "error" in row:
                return rows, f"/stream: {row['error']}"
            total += row["count"]
            rows += 1
    expected = primes_below(limit)
    if rows != parts or total != expected:
        return rows, f"/stream: {rows} rows add up to {total}, expected {parts} and {expected}"
    return rows, None


async def load(url: str, requests: int, concurrency: int, limit: int, parts: int) -> Report:
    """Send `requests` requests, `concurrency` at a time; every tenth one asks for a stream."""
    report = Report()
    numbers = iter(range(requests))

    async def worker(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            started = time.perf_counter()
            problem: str | None
            try:
                if number % 10 == 9:
                    rows, problem = await ask_stream(session, url, limit, parts)
                    report.streamed += rows
                else:
                    problem = await ask_count(session, url, limit + number)
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                problem = f"request {number}: {error!r}"
            else:
                report.latencies.append(time.perf_counter() - started)
            if problem is not None:
                report.problems.append(problem)

    started = time.perf_counter()
    async with aiohttp.ClientSession(timeout=REQUEST_TIMEOUT) as session:
        await asyncio.gather(*(worker(session) for _ in range(concurrency)))
    report.seconds = time.perf_counter() - started
    return report


def positive(text: str) -> int:
    """An argparse type: a whole number from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def main() -> int:
    parser = argparse.ArgumentParser(description="Load examples/web_service.py and check its answers.")
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="default: %(default)s")
    parser.add_argument("--requests", type=positive, default=200, help="in all (default: %(default)s)")
    parser.add_argument("--concurrency", type=positive, default=20, help="at a time (default: %(default)s)")
    parser.add_argument("--limit", type=positive, default=50_000, help="of the counts (default: %(default)s)")
    parser.add_argument("--parts", type=positive, default=8, help="rows of a stream (default: %(default)s)")
    options = parser.parse_args()
    report = asyncio.run(
        load(options.url, options.requests, options.concurrency, options.limit, options.parts)
    )
    print("\n".join(report.lines()))
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
