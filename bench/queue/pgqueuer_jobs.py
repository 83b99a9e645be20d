"""pgqueuer at the same jobs. ``pgqueuer_jobs.py COMMAND ARGUMENTS``, the database in DATABASE_URL."""

import asyncio
import json
import os
import sys
import time
from datetime import timedelta

import asyncpg
from pgqueuer import AsyncpgDriver, PgQueuer, Queries

URL = os.environ["DATABASE_URL"]


async def connect():
    return await asyncpg.connect(URL)


async def install():
    connection = await connect()
    if not await connection.fetchval("SELECT to_regclass('pgqueuer')"):
        await Queries(AsyncpgDriver(connection)).install()
    await connection.close()


async def enqueue(clients, seconds, batch):
    connections = [await connect() for _ in range(clients)]
    begun = time.perf_counter()

    async def client(connection):
        queries, count = Queries(AsyncpgDriver(connection)), 0
        while time.perf_counter() - begun < seconds:
            await queries.enqueue(["nothing"] * batch, [None] * batch, [0] * batch)
            count += batch
        return count

    jobs = sum(await asyncio.gather(*map(client, connections)))
    took = time.perf_counter() - begun
    return {"jobs": jobs, "seconds": took, "rate": jobs / took}


async def work(handler, batch):
    connection = await connect()
    queuer = PgQueuer(AsyncpgDriver(connection))
    queuer.entrypoint("nothing")(handler)
    return queuer, asyncio.create_task(queuer.run(batch_size=batch, dequeue_timeout=timedelta(milliseconds=500)))


async def drain(count):
    called = 0

    async def handler(_):
        nonlocal called
        called += 1

    begun = time.perf_counter()
    queuer, running = await work(handler, 500)
    while called < count:
        await asyncio.sleep(0.005)
    handled = time.perf_counter() - begun
    watch = await connect()
    while await watch.fetchval("SELECT count(*) FROM pgqueuer"):
        await asyncio.sleep(0.01)
    took = time.perf_counter() - begun
    queuer.shutdown.set()
    await asyncio.wait([running], timeout=10)
    return {"jobs": count, "seconds": took, "called": handled, "rate": count / took}


async def latency(rate, seconds):
    waits = []

    async def handler(job):
        waits.append((time.time() - float(job.payload)) * 1000)

    queuer, running = await work(handler, 10)
    await asyncio.sleep(1)
    queries, jobs, begun = Queries(AsyncpgDriver(await connect())), 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        await asyncio.sleep(max(0, jobs / rate - (time.perf_counter() - begun)))
        jobs += 1
        await queries.enqueue("nothing", str(time.time()).encode(), 0)
    await asyncio.sleep(1)
    queuer.shutdown.set()
    await asyncio.wait([running], timeout=10)
    waits.sort()
    return {"jobs": jobs, "missing": jobs - len(waits), "p50_ms": waits[len(waits) // 2], "p99_ms": waits[len(waits) * 99 // 100]}


async def main(command, *numbers):
    await install()
    numbers = [float(number) for number in numbers]
    if command == "enqueue":
        answer = await enqueue(int(numbers[0]), numbers[1], 1)
    elif command == "batch":
        answer = await enqueue(1, numbers[1], int(numbers[0]))
    elif command == "fill":
        queries = Queries(AsyncpgDriver(await connect()))
        for _ in range(int(numbers[0]) // 1000):
            await queries.enqueue(["nothing"] * 1000, [None] * 1000, [0] * 1000)
        answer = {"jobs": int(numbers[0])}
    elif command == "drain":
        answer = await drain(int(numbers[0]))
    else:
        answer = await latency(*numbers)
    print(json.dumps(answer), flush=True)
    os._exit(0)


asyncio.run(main(*sys.argv[1:]))
