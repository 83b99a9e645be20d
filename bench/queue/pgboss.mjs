// pg-boss at the same jobs. node pgboss.mjs COMMAND ARGUMENTS, the database in DATABASE_URL.
import * as module from "pg-boss";
import pg from "pg";

const PgBoss = module.PgBoss ?? module.default;
const connectionString = process.env.DATABASE_URL;
const [command, ...words] = process.argv.slice(2);
const [first, second] = words.map(Number);
const tell = (answer) => console.log(JSON.stringify(answer));
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const QUEUE = "nothing";

async function start(max) {
  const boss = new PgBoss({ connectionString, max, supervise: false, schedule: false });
  boss.on("error", (error) => console.error(error));
  await boss.start();
  if (!(await boss.getQueue(QUEUE))) await boss.createQueue(QUEUE);
  return boss;
}

async function insert(boss, count) {
  const jobs = Array.from({ length: count }, () => ({ name: QUEUE, data: {} }));
  // The list moved behind the name of the queue in version 11.
  if (boss.insert.length > 1) await boss.insert(QUEUE, jobs);
  else await boss.insert(jobs);
}

async function enqueue(clients, seconds, batch) {
  const boss = await start(clients);
  const begun = performance.now();
  const until = begun + seconds * 1000;
  let jobs = 0;
  await Promise.all(Array.from({ length: clients }, async () => {
    while (performance.now() < until) {
      if (batch > 1) await insert(boss, batch);
      else await boss.send(QUEUE, {});
      jobs += batch;
    }
  }));
  const took = (performance.now() - begun) / 1000;
  return { jobs, seconds: took, rate: jobs / took };
}

// The quickest way that its documents show: fetch a batch, complete it.
async function drain(count) {
  const boss = await start(10);
  let called = 0;
  const begun = performance.now();
  await Promise.all(Array.from({ length: 2 }, async () => {
    for (;;) {
      const jobs = await boss.fetch(QUEUE, { batchSize: 500 });
      if (!jobs?.length) return;
      called += jobs.length;
      await boss.complete(QUEUE, jobs.map((job) => job.id));
    }
  }));
  const took = (performance.now() - begun) / 1000;
  return { jobs: called, seconds: took, called: took, rate: called / took };
}

async function latency(rate, seconds) {
  const boss = await start(10);
  const waits = [];
  await boss.work(QUEUE, { pollingIntervalSeconds: 0.5, batchSize: 100 }, async (jobs) => {
    for (const job of jobs) if (job.data.at) waits.push(performance.now() - job.data.at);
  });
  await pause(1000);
  const until = performance.now() + seconds * 1000;
  let jobs = 0;
  for (let next = performance.now(); next < until; next += 1000 / rate) {
    await pause(Math.max(0, next - performance.now()));
    jobs += 1;
    await boss.send(QUEUE, { at: performance.now() });
  }
  await pause(2000);
  waits.sort((a, b) => a - b);
  const at = (part) => waits[Math.min(waits.length - 1, Math.floor((waits.length * part) / 100))];
  return { jobs, missing: jobs - waits.length, p50_ms: at(50), p99_ms: at(99) };
}

if (command === "enqueue") tell(await enqueue(first, second, 1));
else if (command === "batch") tell(await enqueue(1, second, first));
else if (command === "fill") {
  const boss = await start(2);
  for (let done = 0; done < first; done += 1000) await insert(boss, 1000);
  const client = new pg.Client({ connectionString });
  await client.connect();
  await client.query("ANALYZE");
  await client.end();
  tell({ jobs: first });
} else if (command === "drain") tell(await drain(first));
else tell(await latency(first, second));
process.exit(0);
