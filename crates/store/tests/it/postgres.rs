//! PostgreSQL: the conformance suite, and what only a server must do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use interlock_model::Timestamp;
use interlock_store::conformance::orchestrator::new_run;
use interlock_store::orchestrator::{Claimed, NewRun};
use interlock_store::postgres::Postgres;
use interlock_store::{Error, Revocation, Store, migrations, transact};
use tokio::sync::oneshot;
use tokio_postgres::NoTls;

/// A database of its own on the test server.
pub(crate) struct Fresh {
    name: String,
    pub(crate) url: String,
}

/// The server's URL.
fn server() -> String {
    std::env::var("INTERLOCK_TEST_POSTGRES").expect(
        "INTERLOCK_TEST_POSTGRES is not set: run ./check, which starts a PostgreSQL of its own, or set it to the output of \
         `tools/postgres start DIR`",
    )
}

async fn administer(statement: &str) {
    let url = server();
    let base = url.split_once('?').map_or(url.as_str(), |(base, _)| base);
    let (client, connection) = tokio_postgres::connect(base, NoTls).await.expect("the test server answers");
    let connection = tokio::spawn(connection);
    client.batch_execute(statement).await.expect("the test server obeys");
    drop(client);
    connection.await.expect("no panic").expect("a clean end");
}

impl Fresh {
    pub(crate) async fn make() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("interlock_test_{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        administer(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await;
        administer(&format!("CREATE DATABASE {name}")).await;
        let url = server();
        let (base, query) = url.split_once('?').unwrap_or((&url, ""));
        let (host, _) = base.rsplit_once('/').expect("a URL with a database");
        Self { url: format!("{host}/{name}?{query}"), name }
    }

    pub(crate) async fn open(&self) -> Arc<Postgres> {
        Arc::new(Postgres::connect(&self.url).await.expect("a new database"))
    }

    /// A connection past the storage, for what is done by hand.
    async fn hand(&self) -> tokio_postgres::Client {
        let base = self.url.split_once('?').map_or(self.url.as_str(), |(base, _)| base);
        let (hand, connection) = tokio_postgres::connect(base, NoTls).await.expect("connected");
        tokio::spawn(connection);
        hand
    }

    pub(crate) async fn drop(self) {
        administer(&format!("DROP DATABASE {} WITH (FORCE)", self.name)).await;
    }
}

mod conformance {
    async fn on_fresh<F, Fut>(case: F)
    where
        F: FnOnce(std::sync::Arc<dyn interlock_store::Store>) -> Fut,
        Fut: Future<Output = ()>,
    {
        let fresh = super::Fresh::make().await;
        case(fresh.open().await).await;
        fresh.drop().await;
    }

    interlock_store::conformance_suite!(on_fresh);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_servers_may_start_on_a_new_database_at_once() {
    let fresh = Fresh::make().await;

    let started = (0..6).map(|_| {
        let url = fresh.url.clone();
        tokio::spawn(async move { Postgres::connect(&url).await.map(drop) })
    });
    for outcome in futures::future::join_all(started).await {
        outcome.expect("no panic").expect("started");
    }

    fresh.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_share_one_chain_and_notice_each_other() {
    let fresh = Fresh::make().await;
    let (first, second) = (fresh.open().await, fresh.open().await);
    let before = first.change_mark().await.expect("readable");

    let writers = (0..20).map(|number| {
        let store = if number % 2 == 0 { Arc::clone(&first) } else { Arc::clone(&second) };
        tokio::spawn(async move {
            for _ in 0..20 {
                let at = Timestamp::from_seconds(1);
                let row =
                    Revocation { jti: format!("t{number}"), expires_at: at, reason: "manual".into(), at };
                let draft = interlock_model::audit::AuditDraft {
                    at,
                    actor: None,
                    action: "auth.revoked".into(),
                    subject: None,
                    details: serde_json::json!({}),
                    client_ip: None,
                    request_id: None,
                };
                let work = transact(&*store, move |tx| {
                    async move {
                        tx.insert_revocation(&row).await?;
                        tx.append_audit(&draft).await.map(drop)
                    }
                    .boxed()
                });
                let outcome: Result<(), Error> = work.await;
                outcome.expect("written");
            }
        })
    });
    for outcome in futures::future::join_all(writers).await {
        outcome.expect("no panic");
    }

    assert_eq!(interlock_store::conformance::audit::verified(&*first).await.len(), 400);
    assert_ne!(first.change_mark().await.expect("readable"), before);
    fresh.drop().await;
}

/// What a server that runs already is given of the queue.
async fn claimed(store: &dyn Store) -> Result<Vec<Claimed>, Error> {
    transact(store, |tx| {
        async move {
            tx.orchestrator().enlist("w", Timestamp::from_seconds(0)).await?;
            tx.orchestrator().claim("w", 1).await
        }
        .boxed()
    })
    .await
}

#[tokio::test]
async fn a_newer_or_changed_schema_is_refused() {
    let fresh = Fresh::make().await;
    let running = fresh.open().await;
    let hand = fresh.hand().await;

    hand.batch_execute("INSERT INTO migrations VALUES (1000, 'future', '\\x00')").await.expect("inserted");
    assert!(matches!(claimed(&*running).await, Err(Error::Newer { found, known }) if found == known + 1));
    running.close().await;
    assert!(
        matches!(Postgres::connect(&fresh.url).await, Err(Error::Newer { found, known }) if found == known + 1)
    );

    hand.batch_execute("DELETE FROM migrations WHERE number = 1000; UPDATE migrations SET sha256 = '\\x00'")
        .await
        .expect("changed");
    let changed = Postgres::connect(&fresh.url).await.expect_err("changed");
    assert!(matches!(&changed, Error::Corrupt(words) if words.contains("0001_first")), "{changed}");
    fresh.drop().await;
}

/// A run would be held by somebody whom nobody watches.
#[tokio::test]
async fn nobody_is_declared_dead_between_a_claim_and_its_commit() {
    let fresh = Fresh::make().await;
    let store = fresh.open().await;
    let now = Timestamp::from_seconds(0);
    let made: Result<(), Error> = transact(&*store, move |tx| {
        async move {
            let mut all = tx.orchestrator();
            all.enlist("w", now).await?;
            all.enqueue(&[new_run(1)]).await.map(drop)
        }
        .boxed()
    })
    .await;
    made.expect("stored");
    let (claimed, has_claimed) = oneshot::channel();
    let (go_on, may_go_on) = oneshot::channel();
    let claim = transact(&*store, |tx| {
        async move {
            assert_eq!(tx.orchestrator().claim("w", 1).await?.len(), 1);
            claimed.send(()).expect("awaited");
            may_go_on.await.expect("told");
            Ok::<(), Error>(())
        }
        .boxed()
    });
    let bury = async {
        has_claimed.await.expect("claimed");
        let rescue = transact(&*store, move |tx| {
            async move { tx.orchestrator().rescue("w", 0, 5, now).await }.boxed()
        });
        let mut rescue = std::pin::pin!(rescue);
        // It is over at once, or waits for the claim.
        let early = tokio::time::timeout(Duration::from_millis(300), &mut rescue).await;
        go_on.send(()).expect("awaited");
        match early {
            Ok(freed) => freed,
            Err(_) => rescue.await,
        }
    };

    let (claim, freed) = futures::join!(claim, bury);

    claim.expect("committed");
    assert_eq!(freed.expect("committed"), Some(1));
    store.close().await;
    fresh.drop().await;
}

/// A queue fills within seconds, and PostgreSQL's figures of it are older: a claim must not read it whole (ADR 0038).
#[tokio::test]
async fn a_claim_reads_what_it_takes_and_not_the_queue() {
    const QUEUE: u32 = 10_000;
    const BATCH: u32 = 500;
    let fresh = Fresh::make().await;
    let store = fresh.open().await;
    let hand = fresh.hand().await;
    hand.batch_execute("ANALYZE queue").await.expect("looked at");
    // PostgreSQL decides after five times whether it makes a plan once for all.
    for _ in 0..10 {
        assert!(claimed(&*store).await.expect("claimed").is_empty());
    }
    let runs: Vec<NewRun> = (0..QUEUE).map(new_run).collect();
    let filled: Result<u64, Error> =
        transact(&*store, move |tx| async move { tx.orchestrator().enqueue(&runs).await }.boxed()).await;
    assert_eq!(filled.expect("lined up"), u64::from(QUEUE));

    let taken: Result<usize, Error> =
        transact(&*store, |tx| async move { Ok(tx.orchestrator().claim("w", BATCH).await?.len()) }.boxed())
            .await;

    assert_eq!(taken.expect("claimed"), 500);
    // A session hands in what it has counted when it ends.
    store.close().await;
    let others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() \
                  AND backend_type = 'client backend'";
    tokio::time::timeout(Duration::from_secs(20), async {
        while hand.query_one(others, &[]).await.expect("counted").get::<_, i64>(0) > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the sessions end");
    let counted =
        "SELECT seq_tup_read + idx_tup_fetch, n_tup_upd FROM pg_stat_user_tables WHERE relname = 'queue'";
    let counted = hand.query_one(counted, &[]).await.expect("counted");
    let (read, changed): (i64, i64) = (counted.get(0), counted.get(1));
    assert_eq!(changed, 500);
    assert!((500..=2_000).contains(&read), "{read} rows were read for 500 of 10 000");
    fresh.drop().await;
}

#[tokio::test]
async fn agents_that_had_a_webhook_before_are_told() {
    let fresh = Fresh::make().await;
    fresh.open().await.close().await;
    let hand = fresh.hand().await;
    let step = migrations::POSTGRES.iter().find(|step| step.name == "0005_webhooks").expect("the step");
    hand.batch_execute("DROP TABLE webhooks; DROP TABLE deliveries").await.expect("as before");
    for (name, data) in [
        ("told", r#"{"name":"a","webhook_url":"https://hooks.example/","disabled":false}"#),
        ("deleted", r#"{"name":"b","webhook_url":"https://hooks.example/","disabled":true}"#),
        ("silent", r#"{"name":"c","webhook_url":null,"disabled":false}"#),
    ] {
        let query = "INSERT INTO identity (kind, id, data, version, changed) VALUES ('agent', $1, $2, 1, 1)";
        hand.execute(query, &[&name, &data]).await.expect("inserted");
    }

    hand.batch_execute(step.sql).await.expect("migrated");

    let told: String =
        hand.query_one("SELECT string_agg(agent, ',') FROM webhooks", &[]).await.expect("told").get(0);
    assert_eq!(told, "told");
    fresh.drop().await;
}

#[tokio::test]
async fn tls_checks_the_server_and_is_used() {
    let fresh = Fresh::make().await;
    assert!(fresh.url.contains("sslrootcert="), "the test server's URL names its certificate authority");
    let store =
        Postgres::connect(&format!("{}&sslmode=require", fresh.url)).await.expect("the certificate is good");
    store.ping().await.expect("it answers");
    let encrypted: i64 = {
        let hand = fresh.hand().await;
        let query = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE ssl AND datname = current_database()";
        hand.query_one(query, &[]).await.expect("counted").get(0)
    };
    assert!(encrypted >= 1);

    // Neither the system's authorities nor another name will do.
    let (base, _) = fresh.url.split_once('?').expect("a query");
    let refused =
        Postgres::connect(&format!("{base}?sslmode=verify-full")).await.expect_err("an unknown authority");
    assert!(format!("{refused:?}").contains("UnknownIssuer"), "{refused:?}");
    let renamed = fresh.url.replace("@127.0.0.1:", "@db.example:");
    let refused = Postgres::connect(&format!("{renamed}&hostaddr=127.0.0.1&sslmode=verify-full"))
        .await
        .expect_err("another name");
    assert!(format!("{refused:?}").contains("NotValidForName"), "{refused:?}");
    store.close().await;
    fresh.drop().await;
}

#[tokio::test]
async fn over_tls_a_server_that_asks_for_md5_is_refused_in_words() {
    let fresh = Fresh::make().await;
    let (base, query) = fresh.url.split_once('?').expect("a query");
    let hand = fresh.hand().await;
    // `tools/postgres` lets this role in by md5.
    let role = "SET password_encryption = 'md5'; DROP ROLE IF EXISTS old_fashioned; CREATE ROLE old_fashioned LOGIN PASSWORD 'word'";
    hand.batch_execute(role).await.expect("made");
    let (_, place) = base.split_once('@').expect("a role");
    let url = format!("postgres://old_fashioned:word@{place}?{query}&sslmode=verify-full");

    let refused = Postgres::connect(&url).await.expect_err("md5");
    // Whoever has to may say so, and is then refused for what the role may not do.
    let let_in = Postgres::connect(&format!("{url}&channel_binding=prefer"))
        .await
        .expect_err("no right to make tables");

    assert!(format!("{refused:?}").contains("scram-sha-256"), "{refused:?}");
    assert!(format!("{let_in:?}").contains("permission denied"), "{let_in:?}");
    hand.batch_execute("DROP ROLE old_fashioned").await.expect("dropped");
    fresh.drop().await;
}

/// A server that has no TLS: it reads the request for it (PostgreSQL's protocol, "SSLRequest") and says no.
async fn without_tls() -> (std::net::SocketAddr, tokio::task::JoinHandle<Vec<u8>>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut asked = [0; 8];
        stream.read_exact(&mut asked).await.expect("the request for TLS");
        assert_eq!(asked, [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f]);
        stream.write_all(b"N").await.expect("told");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.ok();
        rest
    });
    (address, serving)
}

#[tokio::test]
async fn where_tls_is_asked_for_a_server_without_it_is_told_nothing() {
    for mode in ["require", "verify-ca", "verify-full"] {
        let (address, serving) = without_tls().await;
        let at = format!("db.example:{}/x?hostaddr=127.0.0.1", address.port());

        let refused = Postgres::connect(&format!("postgres://u:hunter2@{at}&sslmode={mode}")).await;

        assert!(refused.is_err(), "{mode}");
        let told = tokio::time::timeout(std::time::Duration::from_secs(20), serving).await.expect("it ends");
        assert_eq!(told.expect("it read on"), b"", "{mode}: something was told in plain");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_an_error_without_the_password() {
    let error = Postgres::connect("postgres://u:hunter2@127.0.0.1:1/x").await.expect_err("nobody listens");

    assert!(!format!("{error} {error:?}").contains("hunter2"));
}

/// Waits until `wanted` of what a watch holds, for at most 20 s.
async fn until<T: Copy>(watch: &mut tokio::sync::watch::Receiver<T>, wanted: impl FnMut(&T) -> bool) -> T {
    let reached = tokio::time::timeout(std::time::Duration::from_secs(20), watch.wait_for(wanted)).await;
    *reached.expect("in time").expect("the news go on")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_server_tells_the_others_hear_also_after_the_connection_was_cut() {
    let fresh = Fresh::make().await;
    let (teller, listener) = (fresh.open().await.news(), fresh.open().await.news());
    let keeping = [tokio::spawn(teller.clone().keep()), tokio::spawn(listener.clone().keep())];
    let (mut tells, mut listens, mut heard) = (teller.up(), listener.up(), listener.subscribe());
    until(&mut tells, |up| *up).await;
    until(&mut listens, |up| *up).await;

    for _ in 0..20 {
        let before = *heard.borrow_and_update();
        teller.publish();
        until(&mut heard, |count| *count != before).await;
    }

    // Both are cut. What is told meanwhile is not lost, and hearing goes on by itself.
    let (mut gone, mut back) = (listener.up(), listener.up());
    let cut = tokio::spawn(async move { until(&mut gone, |up| !*up).await });
    administer(&format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}' AND application_name = 'interlock news'",
        fresh.name
    ))
    .await;
    cut.await.expect("it noticed");
    teller.publish();
    until(&mut back, |up| *up).await;
    until(&mut tells, |up| *up).await;
    let before = *heard.borrow_and_update();
    teller.publish();
    until(&mut heard, |count| *count != before).await;

    for task in keeping {
        task.abort();
    }
    fresh.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_news_are_few_notifications_and_other_databases_hear_none() {
    let (fresh, other) = (Fresh::make().await, Fresh::make().await);
    let (teller, stranger) = (fresh.open().await.news(), other.open().await.news());
    let keeping = [tokio::spawn(teller.clone().keep()), tokio::spawn(stranger.clone().keep())];
    until(&mut teller.up(), |up| *up).await;
    until(&mut stranger.up(), |up| *up).await;
    let (mut own, foreign) = (teller.subscribe(), stranger.subscribe());
    let (first, strange) = (*own.borrow_and_update(), *foreign.borrow());

    let told = std::time::Instant::now();
    while told.elapsed() < std::time::Duration::from_millis(200) {
        teller.publish();
        tokio::task::yield_now().await;
    }
    let most = first + u64::try_from(told.elapsed().as_millis()).expect("short") / 10 + 2;
    let heard = until(&mut own, |count| *count != first).await;

    assert!(heard <= most, "{heard} of {most}");
    assert_eq!(*foreign.borrow(), strange);
    for task in keeping {
        task.abort();
    }
    fresh.drop().await;
    other.drop().await;
}
