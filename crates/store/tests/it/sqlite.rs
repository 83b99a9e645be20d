//! SQLite: the conformance suite, and the file itself.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use interlock_model::Timestamp;
use interlock_model::audit::AuditDraft;
use interlock_store::sqlite::Sqlite;
use interlock_store::{AuditFilter, Error, Page, Store, Verdict, migrations, transact};
use rusqlite::Connection;
use tempfile::TempDir;

mod conformance {
    async fn on_fresh<F, Fut>(case: F)
    where
        F: FnOnce(std::sync::Arc<dyn interlock_store::Store>) -> Fut,
        Fut: Future<Output = ()>,
    {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = interlock_store::sqlite::Sqlite::open_in(folder.path()).expect("a new database");
        case(std::sync::Arc::new(store)).await;
    }

    interlock_store::conformance_suite!(on_fresh);
}

const ALL: Page = Page { limit: 200, offset: 0 };

fn fresh() -> (TempDir, Arc<Sqlite>) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = Sqlite::open_in(folder.path()).expect("a new database");
    (folder, Arc::new(store))
}

fn draft(subject: &str) -> AuditDraft {
    AuditDraft {
        at: Timestamp::from_seconds(1),
        actor: None,
        action: "device.executed".to_owned(),
        subject: Some(subject.to_owned()),
        details: serde_json::json!({}),
        client_ip: None,
        request_id: None,
    }
}

async fn append(store: &dyn Store, subject: &'static str) -> Result<u64, Error> {
    transact(store, move |tx| async move { Ok(tx.append_audit(&draft(subject)).await?.seq) }.boxed()).await
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("there").permissions().mode() & 0o777
}

#[tokio::test]
async fn the_files_are_for_their_owner_only() {
    let (folder, store) = fresh();
    append(&*store, "x").await.expect("written");

    for name in ["interlock.db", "interlock.db-wal", "interlock.db-shm"] {
        assert_eq!(mode(&folder.path().join(name)), 0o600, "{name}");
    }
}

#[tokio::test]
async fn a_file_that_others_can_read_is_tightened() {
    let (folder, store) = fresh();
    store.close().await;
    let path = folder.path().join("interlock.db");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o664)).expect("changed");

    Sqlite::open(&path).expect("opened");

    assert_eq!(mode(&path), 0o600);
}

/// Once is not enough: the connections leave at the same time.
#[tokio::test]
async fn closing_leaves_one_file_that_opens_again() {
    for _ in 0..40 {
        let (folder, store) = fresh();
        append(&*store, "x").await.expect("written");
        store.close().await;

        let names: Vec<_> = std::fs::read_dir(folder.path())
            .expect("a folder")
            .map(|entry| entry.expect("a file").file_name())
            .collect();
        assert_eq!(names, ["interlock.db"]);
        let again = Sqlite::open_in(folder.path()).expect("opened");
        assert_eq!(append(&again, "y").await.expect("written"), 2);
    }
}

#[tokio::test]
async fn two_processes_share_one_chain_and_notice_each_other() {
    let (folder, first) = fresh();
    // A second `Sqlite` has its own connections, as another process would.
    let second = Arc::new(Sqlite::open_in(folder.path()).expect("opened twice"));
    let before = first.change_mark().await.expect("readable");

    let writers = [&first, &second].map(|store| {
        let store = Arc::clone(store);
        tokio::spawn(async move {
            for _ in 0..200 {
                append(&*store, "shared").await.expect("written");
            }
        })
    });
    for writer in writers {
        writer.await.expect("no panic");
    }
    let revoked = transact(&*second, |tx| {
        async move {
            let at = Timestamp::from_seconds(1);
            let row =
                interlock_store::Revocation { jti: "t".into(), expires_at: at, reason: "manual".into(), at };
            tx.insert_revocation(&row).await
        }
        .boxed()
    });
    let revoked: Result<(), Error> = revoked.await;
    revoked.expect("written");

    assert_eq!(interlock_store::conformance::audit::verified(&*first).await.len(), 400);
    assert_ne!(first.change_mark().await.expect("readable"), before);
}

#[tokio::test]
async fn a_change_by_hand_moves_the_mark() {
    let (_folder, store) = fresh();
    let hand = Connection::open(store.path()).expect("opened");
    hand.execute("INSERT INTO users VALUES ('ana', '', '[]', 0, 0, 0, 0, 1)", []).expect("inserted");
    let before = store.change_mark().await.expect("readable");

    hand.execute("UPDATE users SET disabled = 1 WHERE name = 'ana'", []).expect("updated");

    assert_ne!(store.change_mark().await.expect("readable"), before);
}

#[tokio::test]
async fn a_write_that_waits_for_something_else_is_an_error() {
    let (_folder, store) = fresh();

    let outcome = store.write(Box::new(|tx| {
        async move {
            tx.append_audit(&draft("never")).await?;
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok(Verdict::Commit)
        }
        .boxed()
    }));

    // `tokio::time` panics without a runtime, a plain future that is never ready does not.
    assert!(matches!(outcome.await, Err(Error::Database(_))));
    let outcome = store.write(Box::new(|tx| {
        async move {
            tx.append_audit(&draft("never")).await?;
            std::future::pending().await
        }
        .boxed()
    }));
    let error = outcome.await.expect_err("it waits");
    assert!(format!("{error:?}").contains("awaited something that is not its transaction"), "{error:?}");
    assert_eq!(append(&*store, "first").await.expect("written"), 1);
}

#[tokio::test]
async fn a_reader_never_waits_for_a_writer() {
    let (_folder, store) = fresh();
    append(&*store, "x").await.expect("written");
    let lock = Connection::open(store.path()).expect("opened");
    lock.execute_batch("BEGIN IMMEDIATE; DELETE FROM audit;").expect("locked");

    let every = AuditFilter::default();
    let read = tokio::time::timeout(Duration::from_secs(2), store.audit(&every, ALL));

    assert_eq!(read.await.expect("no wait").expect("readable").total, 1);
}

#[tokio::test]
async fn a_lock_that_is_never_released_is_told_in_words() {
    let (_folder, store) = fresh();
    let lock = Connection::open(store.path()).expect("opened");
    lock.execute_batch("BEGIN IMMEDIATE").expect("locked");

    let (first, second) = tokio::join!(append(&*store, "x"), append(&*store, "y"));

    for outcome in [first, second] {
        assert!(
            matches!(&outcome, Err(Error::Unwritable(words)) if words.contains("another process")),
            "{outcome:?}"
        );
    }
    drop(lock);
    assert_eq!(append(&*store, "z").await.expect("written"), 1);
}

#[test]
fn a_missing_folder_and_a_foreign_file_are_told_in_words() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let missing = Sqlite::open(&folder.path().join("no/such.db")).expect_err("no folder");
    assert!(matches!(&missing, Error::Unwritable(words) if words.contains("such.db")), "{missing}");

    let foreign = folder.path().join("foreign.db");
    Connection::open(&foreign).and_then(|c| c.execute_batch("CREATE TABLE t (x)")).expect("made");
    let foreign = Sqlite::open(&foreign).expect_err("not ours");
    assert!(matches!(&foreign, Error::Corrupt(words) if words.contains("another program")), "{foreign}");

    let text = folder.path().join("notes.txt");
    std::fs::write(
        &text,
        "these are my notes, they are not a database at all, but they are long enough ".repeat(20),
    )
    .expect("written");
    let text = Sqlite::open(&text).expect_err("not a database");
    assert!(matches!(&text, Error::Corrupt(_)), "{text}");
}

#[test]
fn a_newer_or_changed_schema_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    drop(Sqlite::open_in(folder.path()).expect("a new database"));
    let path = folder.path().join("interlock.db");
    let hand = Connection::open(&path).expect("opened");

    hand.execute("INSERT INTO migrations VALUES (1000, 'future', x'00')", []).expect("inserted");
    assert!(matches!(Sqlite::open(&path), Err(Error::Newer { found, known }) if found == known + 1));

    hand.execute_batch("DELETE FROM migrations WHERE number = 1000; UPDATE migrations SET sha256 = x'00'")
        .expect("changed");
    let changed = Sqlite::open(&path).expect_err("changed");
    assert!(matches!(&changed, Error::Corrupt(words) if words.contains("0001_first")), "{changed}");
}

#[test]
fn agents_that_had_a_webhook_before_are_told() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    drop(Sqlite::open_in(folder.path()).expect("a new database"));
    let hand = Connection::open(folder.path().join("interlock.db")).expect("opened");
    let step = migrations::SQLITE.iter().find(|step| step.name == "0005_webhooks").expect("the step");
    hand.execute_batch("DROP TABLE webhooks; DROP TABLE deliveries").expect("as before");
    for (name, data) in [
        ("told", r#"{"name":"a","webhook_url":"https://hooks.example/","disabled":false}"#),
        ("deleted", r#"{"name":"b","webhook_url":"https://hooks.example/","disabled":true}"#),
        ("silent", r#"{"name":"c","webhook_url":null,"disabled":false}"#),
    ] {
        hand.execute(
            "INSERT INTO identity (kind, id, data, version, changed) VALUES ('agent', ?1, ?2, 1, 1)",
            [name, data],
        )
        .expect("inserted");
    }

    hand.execute_batch(step.sql).expect("migrated");

    let told: String =
        hand.query_row("SELECT group_concat(agent) FROM webhooks", [], |row| row.get(0)).expect("told");
    assert_eq!(told, "told");
}

#[test]
fn many_processes_may_open_a_new_file_at_once() {
    let folder = tempfile::tempdir().expect("a temporary folder");

    let opened = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| Sqlite::open_in(folder.path()))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic").map(drop)).collect::<Vec<_>>()
    });

    for outcome in opened {
        outcome.expect("opened");
    }
}
