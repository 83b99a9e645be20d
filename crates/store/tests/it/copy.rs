//! Copies of everything: both backends, both ways, also from the schema of an earlier version.

use std::collections::BTreeMap;
use std::path::Path;

use futures::FutureExt as _;
use interlock_model::audit::AuditDraft;
use interlock_model::device::EventKind;
use interlock_model::run::RunState;
use interlock_model::task::{
    Backoff, EventId, Misfire, ScheduleKind, StreamId, TaskId, TaskRunId, TaskRunState, TaskStatus,
};
use interlock_model::{RunId, Timestamp};
use interlock_store::conformance::orchestrator::new_run;
use interlock_store::copy::{self, Cell, Part};
use interlock_store::identity::Record;
use interlock_store::orchestrator::{EventRow, NewRun, RunsFilter, TaskRow, ask};
use interlock_store::postgres::Postgres;
use interlock_store::seals::{Seal, Tile};
use interlock_store::sqlite::Sqlite;
use interlock_store::{
    BanRow, Error, KeyRow, Page, Revocation, RunRow, Store, StoredEvent, UserRow, transact,
};
use serde_json::json;

use super::postgres::Fresh;

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

fn task(id: u8) -> TaskRow {
    TaskRow {
        id: TaskId::from_bytes([id; 16]),
        title: "Task".to_owned(),
        description: "ein ä, ein '\"\\ und ein \u{1f9ea}".to_owned(),
        kind: ScheduleKind::Cron,
        expression: Some("* * * * *".to_owned()),
        zone: "Europe/Berlin".to_owned(),
        anchor: NOW,
        payload: json!({ "pipeline": [], "params": { "é": 1.5 } }),
        status: TaskStatus::Active,
        priority: 5,
        dedupe_key: None,
        dedupe_window_seconds: 0,
        max_retries: 3,
        backoff: Backoff::ExponentialJitter,
        concurrency_key: None,
        misfire: Misfire::RunOnce,
        created_by: "ana".to_owned(),
        created_at: NOW,
        updated_at: NOW,
        version: 1,
    }
}

fn queued(number: u8) -> NewRun {
    let run = TaskRunId::from_bytes([number; 16]);
    NewRun {
        run,
        lineage: run,
        task: TaskId::from_bytes([1; 16]),
        ready_at: NOW,
        concurrency_key: Some("arm".to_owned()),
        created_at: NOW,
        ..new_run(0)
    }
}

fn run(id: RunId) -> RunRow {
    RunRow {
        id,
        device: "ot2".to_owned(),
        action: "mix".to_owned(),
        state: RunState::Succeeded,
        simulated: true,
        parameters: json!({ "r": 255 }),
        result: Some(json!([1, null, "x"])),
        error: None,
        actor: "ana".to_owned(),
        request_id: "r1".to_owned(),
        created_at: NOW,
        started_at: Some(NOW),
        finished_at: Some(NOW),
        duration_ms: Some(12.625),
    }
}

/// Something in every table that is there from the first version on, and in some of the later ones.
async fn furnish(store: &dyn Store) {
    let user = UserRow {
        name: "ana".to_owned(),
        password_hash: "$argon2id$…".to_owned(),
        roles: vec!["admin".to_owned()],
        disabled: true,
        tokens_valid_from: NOW,
        created_at: NOW,
        updated_at: NOW,
        version: 1,
    };
    let id: RunId = "run_018f0000000070008000000000000001".parse().expect("a run id");
    let write = transact(store, move |tx| {
        async move {
            tx.insert_user(&user).await?;
            tx.insert_run(&run(id)).await?;
            let kind = EventKind::State { state: RunState::Succeeded };
            tx.insert_run_events(id, &[StoredEvent { seq: 1, at: NOW, kind }]).await?;
            tx.claim_key(&KeyRow {
                actor: "ana".to_owned(),
                key: "k".to_owned(),
                digest: [7; 32],
                run: id,
                created_at: NOW,
                expires_at: NOW,
            })
            .await?;
            tx.insert_revocation(&Revocation {
                jti: "t1".to_owned(),
                expires_at: NOW,
                reason: "manual".to_owned(),
                at: NOW,
            })
            .await?;
            for number in 0..700 {
                tx.put_record(&Record {
                    kind: "session".to_owned(),
                    id: format!("s{number}"),
                    alias: (number == 0).then(|| "first".to_owned()),
                    owner: Some("ana".to_owned()),
                    data: json!({ "n": number }),
                    version: 1,
                    expires_at: None,
                    changed: 0,
                })
                .await?;
            }
            tx.put_ban(&BanRow {
                network: "192.0.2.0/24".to_owned(),
                reason: "scans".to_owned(),
                added_by: "system".to_owned(),
                created_at: NOW,
                ends_at: None,
                forget_at: None,
                offences: 2,
            })
            .await?;
            let mut all = tx.orchestrator();
            all.insert_task(&task(1)).await?;
            all.insert_task(&task(2)).await?;
            all.set_due(TaskId::from_bytes([1; 16]), Some(NOW)).await?;
            all.enqueue(&[queued(1), queued(2)]).await?;
            let event = EventRow {
                id: EventId::from_bytes([3; 16]),
                position: StreamId { millis: 0, number: 0 },
                topic: "plate.ready".to_owned(),
                payload: json!({}),
                source: "ana".to_owned(),
                published_by: "ana".to_owned(),
                published_at: NOW,
            };
            all.publish(&event).await?;
            let tile = Tile { index: 0, root: [1; 32], hashes: vec![[2; 32]; 256] };
            all.seal(&[tile], &Seal { size: 3, root: [4; 32], at: NOW, note: "note\n".to_owned() }).await?;
            Ok::<_, Error>(())
        }
        .boxed()
    });
    write.await.expect("furnished");
    for subject in ["a", "b", "c"] {
        append(store, subject).await;
    }
}

async fn append(store: &dyn Store, subject: &'static str) -> u64 {
    let draft = AuditDraft {
        at: NOW,
        actor: None,
        action: "device.executed".to_owned(),
        subject: Some(subject.to_owned()),
        details: json!({ "x": 0.1 }),
        client_ip: None,
        request_id: None,
    };
    let done =
        transact(store, move |tx| async move { Ok::<_, Error>(tx.append_audit(&draft).await?.seq) }.boxed());
    done.await.expect("appended")
}

/// All rows by table, sorted: what a copy says.
async fn copied(store: &dyn Store) -> (Vec<Part>, BTreeMap<String, Vec<String>>) {
    let (sender, mut receiver) = copy::channel();
    let reading = async {
        let mut parts = Vec::new();
        while let Some(part) = receiver.recv().await {
            parts.push(part);
        }
        parts
    };
    let (done, parts) = tokio::join!(store.copy_out(sender), reading);
    done.expect("copied");
    assert_eq!(parts.last(), Some(&Part::End));
    let mut tables = BTreeMap::<String, Vec<String>>::new();
    let mut last = (String::new(), Vec::new());
    for part in &parts {
        match part {
            Part::Table { name, columns } => {
                last = (name.clone(), columns.clone());
                tables.entry(name.clone()).or_default();
            }
            Part::Rows(rows) => {
                for row in rows {
                    let mut cells: Vec<_> =
                        last.1.iter().zip(row).map(|(column, cell)| format!("{column}={cell:?}")).collect();
                    cells.sort();
                    tables.entry(last.0.clone()).or_default().push(cells.join(" "));
                }
            }
            Part::End => {}
        }
    }
    for rows in tables.values_mut() {
        rows.sort();
    }
    (parts, tables)
}

async fn send(parts: Vec<Part>, sender: copy::Sender) {
    for part in parts {
        if sender.send(part).await.is_err() {
            return;
        }
    }
}

async fn into_file(path: &Path, steps: usize, parts: Vec<Part>) -> Result<(), Error> {
    let (sender, receiver) = copy::channel();
    tokio::join!(Sqlite::fill(path, steps, receiver), send(parts, sender)).0
}

async fn into_server(url: &str, steps: usize, parts: Vec<Part>) -> Result<(), Error> {
    let (sender, receiver) = copy::channel();
    tokio::join!(Postgres::fill(url, steps, receiver), send(parts, sender)).0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_goes_from_one_backend_to_the_other_and_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = Sqlite::open(&folder.path().join("first.db")).expect("a new database");
    furnish(&first).await;
    let (parts, expected) = copied(&first).await;
    let empty: Vec<_> =
        expected.iter().filter(|(_, rows)| rows.is_empty()).map(|(name, _)| name.as_str()).collect();
    let untried = [
        "answers",
        "approvals",
        "deliveries",
        "run_notes",
        "run_steps",
        "task_runs",
        "task_triggers",
        "webhooks",
    ];
    assert_eq!(empty, untried, "all others are tried");

    let fresh = Fresh::make().await;
    into_server(&fresh.url, copy::known().len(), parts).await.expect("filled");
    let server = fresh.open().await;
    let (parts, on_server) = copied(&*server).await;
    assert_eq!(on_server, expected);

    let back = folder.path().join("back.db");
    into_file(&back, copy::known().len(), parts).await.expect("filled");
    let back = Sqlite::open(&back).expect("opened");
    assert_eq!(copied(&back).await.1, expected);

    // Each goes on where the copy ended: the chain, the numbers of the queue, the feed of changes.
    for store in [&*server as &dyn Store, &back] {
        assert_eq!(append(store, "d").await, 4);
        let lined_up =
            transact(store, |tx| async move { tx.orchestrator().enqueue(&[queued(9)]).await }.boxed());
        assert_eq!(lined_up.await.expect("lined up"), 1);
        let new = Record {
            kind: "session".to_owned(),
            id: "new".to_owned(),
            alias: None,
            owner: None,
            data: json!({}),
            version: 1,
            expires_at: None,
            changed: 0,
        };
        let before = store.records_since(0, 1_000).await.expect("read").last().expect("some").changed;
        transact(store, move |tx| async move { tx.put_record(&new).await }.boxed()).await.expect("stored");
        let news = store.records_since(before, 10).await.expect("read");
        assert_eq!(news.iter().map(|record| record.id.as_str()).collect::<Vec<_>>(), ["new"]);
        assert_eq!(store.users().await.expect("read")[0].name, "ana");
    }
    server.close().await;
    fresh.drop().await;
}

/// Columns that came with later migrations than the third.
const LATER: [(&str, &[&str]); 2] =
    [("queue", &["begun"]), ("approvals", &["approvers", "first_by", "first_at"])];

/// What a program wrote that knew three migrations: without later columns, and `place` under its earlier name.
fn as_before_the_fourth(parts: &mut [Part]) {
    let mut gone: Vec<usize> = Vec::new();
    for part in parts {
        match part {
            Part::Table { name, columns } => {
                let later = LATER.iter().find(|(table, _)| table == name).map_or(&[][..], |(_, later)| later);
                let place =
                    |column: &&str| columns.iter().position(|known| known == column).expect("a column");
                gone = later.iter().map(place).collect();
                gone.sort_unstable();
                gone.iter().rev().for_each(|&at| drop(columns.remove(at)));
                if let Some(place) = columns.iter_mut().find(|column| *column == "place") {
                    "lane".clone_into(place);
                }
            }
            Part::Rows(rows) => {
                for row in rows {
                    gone.iter().rev().for_each(|&at| drop(row.remove(at)));
                }
            }
            Part::End => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_an_earlier_version_is_brought_up_to_date() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Sqlite::open(&folder.path().join("now.db")).expect("a new database");
    furnish(&store).await;
    let (mut parts, expected) = copied(&store).await;
    let at = parts.iter().position(|part| matches!(part, Part::Table { name, .. } if name == "audit_tiles"));
    let later = parts.split_off(at.expect("a table of the fourth migration"));
    let later: Vec<_> = later
        .into_iter()
        .filter_map(|part| if let Part::Table { name, .. } = part { Some(name) } else { None })
        .collect();
    parts.push(Part::End);
    as_before_the_fourth(&mut parts);

    let path = folder.path().join("then.db");
    into_file(&path, 3, parts.clone()).await.expect("filled");
    let then = Sqlite::open(&path).expect("of this version");
    let fresh = Fresh::make().await;
    into_server(&fresh.url, 3, parts).await.expect("filled");
    let server = fresh.open().await;

    for found in [copied(&then).await.1, copied(&*server).await.1] {
        for (table, rows) in &expected {
            assert_eq!(found[table], if later.contains(table) { &[][..] } else { rows }, "{table}");
        }
    }
    server.close().await;
    fresh.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_whole_copy_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Sqlite::open(&folder.path().join("now.db")).expect("a new database");
    furnish(&store).await;
    let (parts, _) = copied(&store).await;
    let (fresh, all) = (Fresh::make().await, copy::known().len());
    let cut = parts[..parts.len() - 1].to_vec();
    let table = |name: &str| Part::Table { name: name.to_owned(), columns: vec!["id".to_owned()] };
    let wide = [table("users"), Part::Rows(vec![vec![Cell::Null, Cell::Null]])];
    let bad = [
        cut,
        vec![table("strangers"), Part::End],
        vec![table("migrations"), Part::End],
        vec![Part::Rows(vec![vec![Cell::Null]]), Part::End],
        wide.to_vec(),
    ];
    for (number, parts) in bad.into_iter().enumerate() {
        let path = folder.path().join(format!("{number}.db"));
        let said = into_file(&path, all, parts.clone()).await.expect_err("refused");
        assert!(said.to_string().contains("nothing of it was kept"), "{said}");
        assert!(Sqlite::open(&path).expect("empty").users().await.expect("read").is_empty());
        into_server(&fresh.url, all, parts).await.expect_err("refused");
    }
    let server = fresh.open().await;
    assert!(server.users().await.expect("read").is_empty(), "the server made its tables only now");
    // A database that is in use is not touched.
    let said = into_server(&fresh.url, all, parts.clone()).await.expect_err("refused");
    assert!(said.to_string().contains("not empty"), "{said}");
    let said = into_file(store.path(), all, parts).await.expect_err("refused");
    assert!(said.to_string().contains("database of another program"), "{said}");
    server.close().await;
    fresh.drop().await;
}

#[tokio::test]
async fn everything_that_is_under_way_can_be_ended_as_uncertain() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Sqlite::open(&folder.path().join("now.db")).expect("a new database");
    furnish(&store).await;

    let ended =
        transact(&store, |tx| async move { tx.orchestrator().abandon_queue("restored", NOW).await }.boxed());

    assert_eq!(ended.await.expect("ended"), 2);
    let page = Page { limit: 10, offset: 0 };
    let runs =
        ask(&store, move |mut reads| async move { reads.runs(&RunsFilter::default(), page).await }.boxed());
    let states: Vec<_> = runs.await.expect("read").items.iter().map(|run| run.state).collect();
    assert_eq!(states, [TaskRunState::Uncertain; 2]);
}

#[test]
fn a_copy_of_a_later_version_is_refused_with_words() {
    let mut names: Vec<String> = copy::known().into_iter().map(str::to_owned).collect();
    assert_eq!(copy::through(&names[..2]).expect("earlier"), 2);
    let wrong = [names[0].clone(), "0002_other".to_owned()];
    assert!(copy::through(&wrong).expect_err("refused").to_string().contains("0002_other"));
    names.push("9999_later".to_owned());
    assert!(copy::through(&names).expect_err("refused").to_string().contains("newer version"));
}
