"""
Servers to compare with, as one would write them in an afternoon.

    servers.py bare|jsonrpcserver
    servers.py reader PATH

The first two answer over HTTP, as much as worker.metrics does; each prints its port. The last
reads a Unix socket, and does nothing with what it reads. They serve until their input ends.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import warnings

from aiohttp import web

ANSWER = {
    "uptime": "1h 23m 45s",
    "uptimeSeconds": 5025,
    "totalRuns": 150,
    "successRate": 98.67,
    "errorRate": 1.33,
    "runsPerHour": 107.46,
    "avgExecutionTime": 1234,
    "minExecutionTime": 12,
    "maxExecutionTime": 45678,
    "succeeded": 148,
    "failed": 2,
    "workerStartTime": 1795521600000,
    "lastRunTime": 1795526600000,
    "timestamp": 1795526625000,
    "connected": True,
    "known": True,
    "workersConnected": 1,
    "p50": 1100.5,
    "p95": 3500.25,
    "p99": 9000.75,
    "retries": 0,
    "lastLife": None,
}
BODY = json.dumps({"jsonrpc": "2.0", "result": ANSWER, "id": 1}).encode()


async def bare(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(body=BODY, content_type="application/json")


def as_it_comes() -> web.Application:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it reads its schema through older functions
        from jsonrpcserver import Result, Success, async_dispatch, method

    @method(name="worker.metrics")
    async def metrics() -> Result:
        return Success(ANSWER)

    async def handle(request: web.Request) -> web.Response:
        answer = await async_dispatch(await request.text())
        return web.Response(text=answer, content_type="application/json")

    app = web.Application()
    app.router.add_post("/rpc", handle)
    return app


async def read(path: str) -> None:
    loop = asyncio.get_running_loop()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    listener.setblocking(False)

    def accept() -> None:
        connection, _ = listener.accept()

        def readable() -> None:
            if not connection.recv(262_144):
                loop.remove_reader(connection)
                connection.close()

        loop.add_reader(connection, readable)

    loop.add_reader(listener, accept)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)


async def serve(name: str) -> None:
    if name == "bare":
        app = web.Application()
        app.router.add_post("/rpc", bare)
    else:
        app = as_it_comes()
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(read(sys.argv[2]) if sys.argv[1] == "reader" else serve(sys.argv[1]))
