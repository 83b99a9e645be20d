// graphile-worker at the same jobs. node graphile.mjs COMMAND ARGUMENTS, the database in DATABASE_URL.
import { Logger, makeWorkerUtils, run, runMigrations } from "graphile-worker";
import pg from "pg";

const connectionString = process.env.DATABASE_URL;
const [command, ...words] = process.argv.slice(2);
const [first, second] = words.map(Number);
const quiet = new Logger(() => () => {});
const tell = (answer) => console.log(JSON.stringify(answer));
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function enqueue(clients, seconds, batch) {
  const pool = new pg.Pool({ connectionString, max: clients });
  const utils = await makeWorkerUtils({ pgPool: pool, logger: quiet });
  const begun = performance.now();
  const until = begun + seconds * 1000;
  let jobs = 0;
  const specs = Array.from({ length: batch }, () => ({ identifier: "nothing", payload: {} }));
  await Promise.all(Array.from({ length: clients }, async () => {
    while (performance.now() < until) {
      if (batch > 1) await utils.addJobs(specs);
      else await utils.addJob("nothing", {});
      jobs += batch;
    }
  }));
  const took = (performance.now() - begun) / 1000;
  await utils.release();
  await pool.end();
  return { jobs, seconds: took, rate: jobs / took };
}

async function work(handler) {
  const pool = new pg.Pool({ connectionString, max: 20 });
  const preset = { worker: { localQueue: { size: 500 }, completeJobBatchDelay: 0, failJobBatchDelay: 0, concurrentJobs: 24, pollInterval: 500 } };
  return run({ pgPool: pool, logger: quiet, preset, noHandleSignals: true, taskList: { nothing: handler } });
}

async function drain(count) {
  let called = 0;
  const begun = performance.now();
  const runner = await work(() => { called += 1; });
  while (called < count) await pause(5);
  const handled = (performance.now() - begun) / 1000;
  const client = new pg.Client({ connectionString });
  await client.connect();
  while (Number((await client.query("SELECT count(*) FROM graphile_worker._private_jobs")).rows[0].count) > 0) await pause(5);
  const took = (performance.now() - begun) / 1000;
  await client.end();
  await runner.stop();
  return { jobs: count, seconds: took, called: handled, rate: count / took };
}

async function latency(rate, seconds) {
  const waits = [];
  const runner = await work((payload) => { waits.push(performance.now() - payload.at); });
  await pause(1000);
  const until = performance.now() + seconds * 1000;
  let jobs = 0;
  for (let next = performance.now(); next < until; next += 1000 / rate) {
    await pause(Math.max(0, next - performance.now()));
    jobs += 1;
    await runner.addJob("nothing", { at: performance.now() });
  }
  await pause(1000);
  await runner.stop();
  waits.sort((a, b) => a - b);
  const at = (part) => waits[Math.min(waits.length - 1, Math.floor((waits.length * part) / 100))];
  return { jobs, missing: jobs - waits.length, p50_ms: at(50), p99_ms: at(99) };
}

await runMigrations({ connectionString, logger: quiet });
if (command === "enqueue") tell(await enqueue(first, second, 1));
else if (command === "batch") tell(await enqueue(1, second, first));
else if (command === "fill") {
  const utils = await makeWorkerUtils({ connectionString, logger: quiet });
  const specs = Array.from({ length: 1000 }, () => ({ identifier: "nothing", payload: {} }));
  for (let done = 0; done < first; done += 1000) await utils.addJobs(specs);
  await utils.release();
  tell({ jobs: first });
} else if (command === "drain") tell(await drain(first));
else tell(await latency(first, second));
process.exit(0);
