//! What `bench/queue` measures of ours: lining up, carrying out, and the limits that a database sets to both.
//!
//! `queue URL COMMAND …`, where URL is `postgres://…` or `sqlite:PATH`; see `main` for the commands.
//! Each prints one line of JSON. A job is a run of a task whose only step does nothing: claimed with a fence, carried out by the
//! worker of the program, its record stored, its claim and its end in the audit trail.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use interlock_engine::Ambient;
use interlock_engine::auth::{Db, Principals, Recorded, SystemPermit};
use interlock_engine::orchestrator::{Orchestrator, OrchestratorSettings};
use interlock_engine::tools::{Call, Done, Failure, Tool, Toolbox};
use interlock_model::pipeline::{Effect, Known, Misuse};
use interlock_model::policy::OPERATOR;
use interlock_model::schedule::Schedule;
use interlock_model::task::{Backoff, Misfire, ScheduleKind, TaskId, TaskRunId, TaskStatus, Trigger};
use interlock_model::{Clock, Entropy, Timestamp};
use interlock_store::orchestrator::{NewRun, TaskRow, ask};
use interlock_store::postgres::Postgres;
use interlock_store::sqlite::Sqlite;
use interlock_store::{Error, Store, UserRow, transact};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const OWNER: &str = "bench";

struct System;

impl Clock for System {
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        Timestamp::from_micros(i64::try_from(since.as_micros()).expect("before the year 294247"))
    }
}

impl Entropy for System {
    fn fill(&self, buffer: &mut [u8]) {
        aws_lc_rs::rand::fill(buffer).expect("the operating system gives randomness");
    }
}

fn ambient() -> Ambient {
    Ambient { clock: Arc::new(System), entropy: Arc::new(System) }
}

/// Does nothing, and notes when.
#[derive(Default)]
struct Nothing {
    count: AtomicUsize,
    /// When runs began, where somebody wants to know.
    began: Mutex<Option<Vec<(TaskRunId, Instant)>>>,
}

#[async_trait]
impl Tool for Nothing {
    fn description(&self) -> String {
        "Does nothing".to_owned()
    }

    fn check(&self, _: Known<'_>) -> Result<Effect, Misuse> {
        Ok(Effect::None)
    }

    async fn call(&self, call: Call<'_>) -> Result<Done, Failure> {
        self.count.fetch_add(1, Ordering::Relaxed);
        if let Some(began) = &mut *self.began.lock().expect("no panic") {
            began.push((call.run, Instant::now()));
        }
        Ok(Done::Value(Value::Null))
    }
}

struct One(Arc<Nothing>);

impl Toolbox for One {
    fn tool(&self, address: &str) -> Option<Arc<dyn Tool>> {
        (address == "bench.nothing").then(|| Arc::clone(&self.0) as Arc<dyn Tool>)
    }

    fn all(&self) -> BTreeMap<String, Arc<dyn Tool>> {
        BTreeMap::from([("bench.nothing".to_owned(), Arc::clone(&self.0) as Arc<dyn Tool>)])
    }
}

fn tell(value: &Value) {
    writeln!(std::io::stdout(), "{value}").expect("standard output can be written");
}

fn task(number: u32) -> TaskRow {
    let now = System.now();
    let mut bytes = [7; 16];
    bytes[12..].copy_from_slice(&number.to_be_bytes());
    TaskRow {
        id: TaskId::from_bytes(bytes),
        title: "Nothing".to_owned(),
        description: "A benchmark".to_owned(),
        kind: ScheduleKind::Manual,
        expression: None,
        zone: "UTC".to_owned(),
        anchor: now,
        payload: json!({ "pipeline": [{ "uses": "bench.nothing" }] }),
        status: TaskStatus::Active,
        priority: 5,
        dedupe_key: None,
        dedupe_window_seconds: 0,
        max_retries: 0,
        backoff: Backoff::Fixed,
        concurrency_key: None,
        misfire: Misfire::RunOnce,
        created_by: OWNER.to_owned(),
        created_at: now,
        updated_at: now,
        version: 1,
    }
}

fn run() -> NewRun {
    let now = System.now();
    let run = TaskRunId::new(now, &System);
    NewRun {
        run,
        lineage: run,
        task: task(0).id,
        owner: OWNER.to_owned(),
        attempt: 1,
        trigger: Trigger::Manual,
        scheduled_for: None,
        event: None,
        priority: 5,
        ready_at: now,
        concurrency_key: None,
        created_at: now,
    }
}

struct Bench {
    store: Arc<dyn Store>,
    db: Db,
    tool: Arc<Nothing>,
    orchestrator: Orchestrator,
}

impl Bench {
    async fn new(url: &str) -> Self {
        let store: Arc<dyn Store> = match url.strip_prefix("sqlite:") {
            Some(path) => Arc::new(Sqlite::open(Path::new(path)).expect("a database")),
            None => Arc::new(Postgres::connect(url).await.expect("a database")),
        };
        let now = System.now();
        let made: Result<(), Error> = transact(&*store, move |tx| {
            Box::pin(async move {
                let user = UserRow {
                    name: OWNER.to_owned(),
                    password_hash: "!".to_owned(),
                    roles: vec![OPERATOR.to_owned()],
                    disabled: false,
                    tokens_valid_from: now,
                    created_at: now,
                    updated_at: now,
                    version: 1,
                };
                tx.insert_user(&user).await?;
                tx.orchestrator().insert_task(&task(0)).await.map(drop)
            })
        })
        .await;
        made.expect("the task is stored");
        let db = Db::new(Arc::clone(&store), ambient());
        let principals = Principals::load(Arc::clone(&store), ambient()).await.expect("principals");
        let tool = Arc::new(Nothing::default());
        let settings =
            OrchestratorSettings { concurrency: 500, prefetch: 1_500, ..OrchestratorSettings::default() };
        let orchestrator = Orchestrator::new(
            db.clone(),
            ambient(),
            principals,
            Arc::new(One(Arc::clone(&tool))),
            settings,
            SystemPermit::root("system"),
            None,
        );
        Self { store, db, tool, orchestrator }
    }

    /// Lines runs up in one write, with its audit record.
    async fn line_up(&self, count: usize) -> Vec<TaskRunId> {
        let runs: Arc<Vec<NewRun>> = Arc::new((0..count).map(|_| run()).collect());
        let ids = runs.iter().map(|run| run.run).collect();
        let proof = SystemPermit::root("system").acting("task.run_now", Some(runs[0].task.to_string()));
        let written: Result<(), Error> = self
            .db
            .write_repeatable(&proof, move |tx| {
                let runs = Arc::clone(&runs);
                Box::pin(async move {
                    let mut all = tx.orchestrator();
                    let task = all.task(runs[0].task).await?;
                    assert!(task.is_some(), "the task is there");
                    let new = all.enqueue(&runs).await?;
                    Ok(Recorded { value: (), details: json!({ "run_id": runs[0].run, "new": new }) })
                })
            })
            .await;
        written.expect("lined up");
        ids
    }

    async fn waiting(&self) -> u64 {
        let depth = ask(&*self.store, |mut reads| Box::pin(async move { reads.queue_open().await })).await;
        depth.expect("readable")
    }
}

/// Stores scheduled tasks: the first `due` of them once, all at the same time from now; the others each New Year.
async fn tasks(bench: &Bench, total: usize, due: usize, ahead: Duration) -> Value {
    const PART: usize = 1_000;
    let now = System.now();
    let due_at = now.plus(ahead);
    let first = u32::try_from(due).expect("few");
    for part in (1..=u32::try_from(total).expect("few")).collect::<Vec<_>>().chunks(PART) {
        let part = part.to_vec();
        let made: Result<(), Error> = transact(&*bench.store, move |tx| {
            Box::pin(async move {
                let mut all = tx.orchestrator();
                for number in part {
                    let is_due = number <= first;
                    let row = TaskRow {
                        anchor: now,
                        kind: if is_due { ScheduleKind::Once } else { ScheduleKind::Cron },
                        expression: Some(if is_due { due_at.to_string() } else { "0 0 1 1 *".to_owned() }),
                        payload: json!({ "pipeline": [{ "uses": "orchestrator.sleep", "with": { "seconds": 0 } }] }),
                        misfire: Misfire::RunAll,
                        ..task(number)
                    };
                    let schedule = Schedule::parse(row.kind, row.expression.as_deref(), "UTC", now).expect("a schedule");
                    let due = schedule.next_after(now);
                    all.insert_task(&row).await?;
                    all.set_due(row.id, due).await?;
                }
                Ok(())
            })
        })
        .await;
        made.expect("stored");
    }
    json!({ "tasks": total, "due_at": due_at.micros() })
}

async fn enqueue(bench: Arc<Bench>, clients: usize, seconds: f64, batch: usize) -> Value {
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    let begun = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|_| {
            let bench = Arc::clone(&bench);
            tokio::spawn(async move {
                let mut count = 0;
                while Instant::now() < until {
                    bench.line_up(batch).await;
                    count += batch;
                }
                count
            })
        })
        .collect();
    let mut count = 0;
    for task in tasks {
        count += task.await.expect("no panic");
    }
    let took = begun.elapsed().as_secs_f64();
    json!({ "jobs": count, "seconds": took, "rate": f64::from(u32::try_from(count).expect("few")) / took })
}

async fn drain(bench: &Bench, count: usize) -> Value {
    let stop = CancellationToken::new();
    let begun = Instant::now();
    let worker = tokio::spawn(bench.orchestrator.clone().work("bench", Duration::from_secs(5), stop.clone()));
    while bench.tool.count.load(Ordering::Relaxed) < count {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let called = begun.elapsed().as_secs_f64();
    while bench.waiting().await > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let took = begun.elapsed().as_secs_f64();
    stop.cancel();
    worker.await.expect("no panic");
    let twice = bench.tool.count.load(Ordering::Relaxed) - count;
    json!({ "jobs": count, "seconds": took, "called": called, "twice": twice, "rate": f64::from(u32::try_from(count).expect("few")) / took })
}

async fn latency(bench: &Bench, rate: f64, seconds: f64) -> Value {
    *bench.tool.began.lock().expect("no panic") = Some(Vec::new());
    let stop = CancellationToken::new();
    let worker = tokio::spawn(bench.orchestrator.clone().work("bench", Duration::from_secs(5), stop.clone()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut asked: Vec<(TaskRunId, Instant)> = Vec::new();
    let mut tick = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    while Instant::now() < until {
        tick.tick().await;
        let at = Instant::now();
        let runs = bench.line_up(1).await;
        bench.orchestrator.tell_work();
        asked.push((runs[0], at));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.cancel();
    worker.await.expect("no panic");
    let began: std::collections::HashMap<_, _> =
        bench.tool.began.lock().expect("no panic").take().unwrap_or_default().into_iter().collect();
    let mut waits: Vec<f64> = asked
        .iter()
        .filter_map(|(run, at)| Some(began.get(run)?.duration_since(*at).as_secs_f64() * 1e3))
        .collect();
    waits.sort_by(f64::total_cmp);
    let at = |part: usize| waits[(waits.len() * part / 100).min(waits.len() - 1)];
    json!({ "jobs": asked.len(), "missing": asked.len() - waits.len(), "p50_ms": at(50), "p99_ms": at(99) })
}

#[tokio::main]
async fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<f64>().expect("a number");
    let whole = |text: &str| text.parse::<usize>().expect("a whole number");
    match words.as_slice() {
        ["limits", url, seconds] => limits::measure(url, number(seconds)).await,
        [url, command @ ..] => {
            let bench = Arc::new(Bench::new(url).await);
            let told = match command {
                ["enqueue", clients, seconds] => enqueue(bench, whole(clients), number(seconds), 1).await,
                ["batch", size, seconds] => enqueue(bench, 1, number(seconds), whole(size)).await,
                ["fill", count] => {
                    for _ in 0..whole(count) / 1_000 {
                        bench.line_up(1_000).await;
                    }
                    json!({ "jobs": whole(count) })
                }
                ["tasks", total, due, ahead] => {
                    tasks(&bench, whole(total), whole(due), Duration::from_secs_f64(number(ahead))).await
                }
                ["drain", count] => drain(&bench, whole(count)).await,
                ["latency", rate, seconds] => latency(&bench, number(rate), number(seconds)).await,
                _ => {
                    json!({ "error": "commands: enqueue CLIENTS SECONDS, batch SIZE SECONDS, fill N, drain N, latency RATE SECONDS, tasks TOTAL DUE SECONDS" })
                }
            };
            tell(&told);
        }
        [] => tell(&json!({ "error": "queue URL COMMAND …, or queue limits URL SECONDS" })),
    }
}

/// What the database can do when everything else is left out: statements by hand.
mod limits {
    use std::time::{Duration, Instant};

    use rusqlite::Connection;
    use serde_json::json;
    use tokio_postgres::NoTls;

    use super::tell;

    const TABLE: &str = "CREATE TABLE bench_jobs (id BIGINT PRIMARY KEY, data TEXT NOT NULL, leased BIGINT)";
    const DATA: &str = "0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz";

    struct Meter {
        name: &'static str,
        begun: Instant,
        until: Instant,
        count: u64,
    }

    impl Meter {
        fn new(name: &'static str, seconds: f64) -> Self {
            let begun = Instant::now();
            Self { name, begun, until: begun + Duration::from_secs_f64(seconds), count: 0 }
        }

        fn goes_on(&self) -> bool {
            Instant::now() < self.until
        }

        fn end(self) {
            let rate =
                f64::from(u32::try_from(self.count).expect("few")) / self.begun.elapsed().as_secs_f64();
            tell(&json!({ "limit": self.name, "rate": rate }));
        }
    }

    pub(crate) async fn measure(url: &str, seconds: f64) {
        match url.strip_prefix("sqlite:") {
            Some(path) => sqlite(path, seconds),
            None => postgres(url, seconds).await,
        }
    }

    async fn postgres(url: &str, seconds: f64) {
        let base = url.split_once('?').map_or(url, |(base, _)| base);
        let connect = || async {
            let (client, connection) = tokio_postgres::connect(base, NoTls).await.expect("connected");
            tokio::spawn(connection);
            client
        };
        let mut client = connect().await;
        client.batch_execute("DROP TABLE IF EXISTS bench_jobs").await.expect("dropped");
        client.batch_execute(TABLE).await.expect("made");
        client.batch_execute("CREATE INDEX ON bench_jobs (id) WHERE leased IS NULL").await.expect("made");

        let insert = client.prepare("INSERT INTO bench_jobs VALUES ($1, $2, NULL)").await.expect("prepared");
        let mut id = 0_i64;
        let mut meter = Meter::new("single enqueue, 1 client", seconds);
        while meter.goes_on() {
            id += 1;
            client.execute(&insert, &[&id, &DATA]).await.expect("inserted");
            meter.count += 1;
        }
        meter.end();

        let many = client
            .prepare("INSERT INTO bench_jobs SELECT *, NULL FROM unnest($1::bigint[], $2::text[])")
            .await
            .expect("prepared");
        let mut meter = Meter::new("batch of 1000", seconds);
        while meter.goes_on() {
            let ids: Vec<i64> = (id + 1..=id + 1_000).collect();
            id += 1_000;
            client.execute(&many, &[&ids, &vec![DATA; 1_000]]).await.expect("inserted");
            meter.count += 1_000;
        }
        meter.end();

        let lease = client
            .prepare(
                "UPDATE bench_jobs SET leased = 1 WHERE id IN (SELECT id FROM bench_jobs WHERE leased IS NULL ORDER BY id \
                 LIMIT 500 FOR UPDATE SKIP LOCKED) RETURNING id, data",
            )
            .await
            .expect("prepared");
        let delete = client.prepare("DELETE FROM bench_jobs WHERE id = ANY($1)").await.expect("prepared");
        client.batch_execute("VACUUM ANALYZE bench_jobs").await.expect("vacuumed");
        let mut meter = Meter::new("lease then delete, 500", seconds);
        while meter.goes_on() {
            let leased = client.query(&lease, &[]).await.expect("leased");
            if leased.is_empty() {
                break;
            }
            let ids: Vec<i64> = leased.iter().map(|row| row.get(0)).collect();
            let transaction = client.transaction().await.expect("begun");
            transaction.execute(&delete, &[&ids]).await.expect("deleted");
            transaction.commit().await.expect("committed");
            meter.count += u64::try_from(ids.len()).expect("few");
        }
        meter.end();
        client.batch_execute("DROP TABLE bench_jobs").await.expect("dropped");
    }

    fn sqlite(path: &str, seconds: f64) {
        for mode in ["FULL", "NORMAL"] {
            let path = format!("{path}.{mode}");
            let mut connection = Connection::open(path).expect("opened");
            let pragmas = format!("PRAGMA journal_mode = WAL; PRAGMA synchronous = {mode}");
            connection.execute_batch(&pragmas).expect("set");
            connection.execute_batch(TABLE).expect("made");
            let mut id = 0_i64;
            let insert = "INSERT INTO bench_jobs VALUES (?1, ?2, NULL)";
            let mut meter = Meter::new(
                if mode == "FULL" { "SQLite FULL, commits" } else { "SQLite NORMAL, commits" },
                seconds,
            );
            while meter.goes_on() {
                id += 1;
                connection.prepare_cached(insert).expect("prepared").execute((id, DATA)).expect("inserted");
                meter.count += 1;
            }
            meter.end();
            let name =
                if mode == "FULL" { "SQLite FULL, batch of 1000" } else { "SQLite NORMAL, batch of 1000" };
            let mut meter = Meter::new(name, seconds);
            while meter.goes_on() {
                let transaction = connection.transaction().expect("begun");
                for _ in 0..1_000 {
                    id += 1;
                    transaction
                        .prepare_cached(insert)
                        .expect("prepared")
                        .execute((id, DATA))
                        .expect("inserted");
                }
                transaction.commit().expect("committed");
                meter.count += 1_000;
            }
            meter.end();
            let name = if mode == "FULL" {
                "SQLite FULL, lease then delete, 500"
            } else {
                "SQLite NORMAL, lease then delete, 500"
            };
            let mut meter = Meter::new(name, seconds);
            let lease = "UPDATE bench_jobs SET leased = 1 WHERE id IN (SELECT id FROM bench_jobs WHERE leased IS NULL ORDER BY id \
                         LIMIT 500) RETURNING id";
            while meter.goes_on() {
                let ids: Vec<i64> = {
                    let mut statement = connection.prepare_cached(lease).expect("prepared");
                    let rows = statement.query_map([], |row| row.get(0)).expect("leased");
                    rows.collect::<Result<_, _>>().expect("read")
                };
                if ids.is_empty() {
                    break;
                }
                let transaction = connection.transaction().expect("begun");
                for id in &ids {
                    let delete = "DELETE FROM bench_jobs WHERE id = ?1";
                    transaction.prepare_cached(delete).expect("prepared").execute([id]).expect("deleted");
                }
                transaction.commit().expect("committed");
                meter.count += u64::try_from(ids.len()).expect("few");
            }
            meter.end();
        }
    }
}
