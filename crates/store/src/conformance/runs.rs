//! Runs, their events, and what a stored value must survive.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::FutureExt as _;
use interlock_model::Timestamp;
use interlock_model::device::EventKind;
use interlock_model::run::{RunError, RunState};
use serde_json::{Value, json};

use super::{ALL, NOW, after, at_once, put, run_id, run_row};
use crate::{AuditFilter, Error, KeyRow, Page, RunEnd, RunFilter, RunRow, Store, StoredEvent, transact};

async fn insert(store: &dyn Store, rows: Vec<RunRow>) {
    put(store, move |tx| {
        async move {
            for row in &rows {
                tx.insert_run(row).await?;
            }
            Ok(())
        }
        .boxed()
    })
    .await;
}

fn end(number: u32) -> RunEnd {
    RunEnd {
        id: run_id(number),
        state: RunState::Failed,
        result: Some(Value::Null),
        error: Some(RunError { code: "task_failed".to_owned(), message: "no tip\u{0}".to_owned() }),
        started_at: Some(after(2)),
        finished_at: after(3),
        duration_ms: Some(0.1 + 0.2),
    }
}

/// What ended before a time is old, oldest first; what is open is not, however long ago it began.
pub async fn old_runs_of_a_device_are_found_and_deleted_with_their_events(store: Arc<dyn Store>) {
    insert(&*store, (1..=4).map(run_row).collect()).await;
    put(&*store, |tx| {
        async move {
            for (number, finished) in [(1, 3), (2, 50), (4, 9)] {
                tx.finish_run(&RunEnd { finished_at: after(finished), ..end(number) }).await?;
            }
            for number in [1, 2] {
                tx.insert_run_events(run_id(number), &[log(1, "moving")]).await?;
            }
            Ok(())
        }
        .boxed()
    })
    .await;
    let old = async |limit| {
        crate::orchestrator::ask(&*store, move |mut reads| {
            async move { reads.old_device_runs(after(10), limit).await }.boxed()
        })
        .await
        .expect("readable")
    };

    assert_eq!(old(1).await, [run_id(1)]);
    let found = old(10).await;
    assert_eq!(found, [run_id(1), run_id(4)]);
    let deleted =
        put(&*store, move |tx| async move { tx.orchestrator().delete_device_runs(&found).await }.boxed())
            .await;

    assert_eq!((deleted, old(10).await), (2, vec![]));
    let runs = store.runs(&RunFilter::default(), ALL).await.expect("readable").items;
    assert_eq!(runs.iter().map(|run| run.id).collect::<Vec<_>>(), [run_id(3), run_id(2)]);
    assert_eq!(store.run_events(run_id(1), 0, 10).await.expect("readable"), []);
    assert_eq!(store.run_events(run_id(2), 0, 10).await.expect("readable").len(), 1);
}

/// Of all who report the end of a run, one is believed.
pub async fn a_run_ends_once(store: Arc<dyn Store>) {
    insert(&*store, vec![run_row(1)]).await;

    let believed = at_once(&store, 50, |store, number| async move {
        let end = RunEnd { finished_at: after(i64::from(number)), ..end(1) };
        put(&*store, move |tx| async move { tx.finish_run(&end).await }.boxed()).await
    })
    .await;

    assert_eq!(believed.iter().filter(|believed| **believed).count(), 1);
    let winner = believed.iter().position(|believed| *believed).expect("one");
    let stored = store.run(run_id(1)).await.expect("readable").expect("there");
    let expected = RunRow {
        state: RunState::Failed,
        result: Some(Value::Null),
        error: end(1).error,
        started_at: Some(after(2)),
        finished_at: Some(after(i64::try_from(winner).expect("small"))),
        duration_ms: Some(0.1 + 0.2),
        ..run_row(1)
    };
    assert_eq!(stored, expected);

    let unknown = put(&*store, |tx| async move { tx.finish_run(&end(2)).await }.boxed()).await;
    assert!(!unknown);
    assert_eq!(store.run(run_id(2)).await.expect("readable"), None);
}

/// An end is one of the final states.
pub async fn a_run_cannot_end_as_running(store: Arc<dyn Store>) {
    insert(&*store, vec![run_row(1)]).await;

    let running = RunEnd { state: RunState::Running, ..end(1) };
    let outcome: Result<bool, Error> =
        transact(&*store, move |tx| async move { tx.finish_run(&running).await }.boxed()).await;

    assert!(matches!(outcome, Err(Error::Unwritable(_))), "{outcome:?}");
    assert_eq!(store.run(run_id(1)).await.expect("readable"), Some(run_row(1)));
}

/// Lists are cut from one order, and tell how long the whole is.
pub async fn pages_are_newest_first_with_totals(store: Arc<dyn Store>) {
    let rows = (0..25).map(|number| RunRow {
        state: if number % 2 == 0 { RunState::Succeeded } else { RunState::Queued },
        action: if number % 5 == 0 { "home".to_owned() } else { "mix".to_owned() },
        ..run_row(number)
    });
    // The order is that of creation, not of insertion.
    insert(&*store, rows.rev().collect()).await;

    let numbers = |state: Option<RunState>, action: Option<&str>, limit, offset| {
        let (store, action) = (Arc::clone(&store), action.map(str::to_owned));
        async move {
            let paged = store
                .runs(&RunFilter { state, action, ..RunFilter::default() }, Page { limit, offset })
                .await
                .expect("readable");
            (
                paged.items.iter().map(|run| run.created_at.micros() - NOW.micros()).collect::<Vec<_>>(),
                paged.total,
            )
        }
    };

    assert_eq!(numbers(None, None, 3, 0).await, (vec![24, 23, 22], 25));
    assert_eq!(numbers(None, None, 10, 23).await, (vec![1, 0], 25));
    assert_eq!(numbers(None, None, 10, 25).await, (vec![], 25));
    assert_eq!(numbers(None, None, 10, u64::MAX).await, (vec![], 25));
    assert_eq!(numbers(Some(RunState::Succeeded), None, 2, 1).await, (vec![22, 20], 13));
    assert_eq!(numbers(Some(RunState::Failed), None, 2, 0).await, (vec![], 0));
    assert_eq!(numbers(Some(RunState::Queued), None, 2, 1).await, (vec![21, 19], 12));
    assert_eq!(numbers(None, Some("home"), 200, 0).await, (vec![20, 15, 10, 5, 0], 5));
    assert_eq!(numbers(Some(RunState::Queued), Some("home"), 200, 0).await, (vec![15, 5], 2));
    assert_eq!(numbers(Some(RunState::Succeeded), Some("home"), 200, 0).await, (vec![20, 10, 0], 3));
    assert_eq!(numbers(None, Some("' OR 1=1 --"), 200, 0).await, (vec![], 0));
}

/// Nothing is not an error.
pub async fn an_empty_list_is_empty(store: Arc<dyn Store>) {
    assert_eq!(store.users().await.expect("readable"), []);
    let runs = store.runs(&RunFilter::default(), ALL).await.expect("readable");
    assert_eq!((runs.items, runs.total), (vec![], 0));
    assert_eq!(store.open_runs().await.expect("readable"), []);
    assert_eq!(store.run_events(run_id(1), 0, 10).await.expect("readable"), []);
    assert_eq!(store.revocations(NOW).await.expect("readable"), []);
    let audit = store.audit(&AuditFilter::default(), ALL).await.expect("readable");
    assert_eq!((audit.items, audit.total), (vec![], 0));
    assert_eq!(store.audit_from(0, 10).await.expect("readable"), []);
    assert_eq!(store.key("ana", "k", NOW).await.expect("readable"), None);
    store.ping().await.expect("it answers");
}

/// After a restart the oldest is looked at first.
pub async fn open_runs_are_listed_oldest_first(store: Arc<dyn Store>) {
    let states = [RunState::Running, RunState::Queued, RunState::Uncertain, RunState::Queued];
    let rows = (0..4).zip(states).map(|(number, state)| RunRow { state, ..run_row(number) });
    insert(&*store, rows.rev().collect()).await;

    let open: Vec<_> = store.open_runs().await.expect("readable").into_iter().map(|run| run.id).collect();

    assert_eq!(open, [run_id(0), run_id(1), run_id(3)]);
}

fn log(seq: u64, message: &str) -> StoredEvent {
    let kind = EventKind::Log { level: "info".to_owned(), message: message.to_owned() };
    StoredEvent { seq, at: after(-i64::try_from(seq).expect("small")), kind }
}

/// Events come back as they are numbered, whatever their times and the order of insertion.
pub async fn events_keep_their_order(store: Arc<dyn Store>) {
    let labels = BTreeMap::from([("well".to_owned(), "A1 \u{0} ü".to_owned())]);
    let metric = EventKind::Metric { name: "od600".to_owned(), value: 0.1, unit: None, labels };
    let events = vec![
        log(12, "third"),
        log(2, "first"),
        StoredEvent { seq: 11, at: NOW, kind: metric },
        log(13, "\0 fourth"),
    ];
    let sorted = vec![events[1].clone(), events[2].clone(), events[0].clone(), events[3].clone()];
    insert(&*store, vec![run_row(1), run_row(2)]).await;

    put(&*store, move |tx| {
        async move {
            tx.insert_run_events(run_id(2), &[log(1, "another run")]).await?;
            tx.insert_run_events(run_id(1), &[]).await?;
            tx.insert_run_events(run_id(1), &events).await
        }
        .boxed()
    })
    .await;

    assert_eq!(store.run_events(run_id(1), 0, 100).await.expect("readable"), sorted);
    assert_eq!(store.run_events(run_id(1), 2, 2).await.expect("readable"), sorted[1..3]);
    assert_eq!(store.run_events(run_id(1), 13, 100).await.expect("readable"), []);
    assert_eq!(store.run_events(run_id(1), u64::MAX, 100).await.expect("readable"), []);
}

/// A number that is used is used, and there is no event without its run.
pub async fn an_event_is_never_replaced(store: Arc<dyn Store>) {
    insert(&*store, vec![run_row(1)]).await;
    put(&*store, |tx| async move { tx.insert_run_events(run_id(1), &[log(1, "first")]).await }.boxed()).await;

    for (run, seq) in [(1, 1), (9, 1), (1, 0)] {
        let outcome: Result<(), Error> = transact(&*store, move |tx| {
            async move { tx.insert_run_events(run_id(run), &[log(seq, "x")]).await }.boxed()
        })
        .await;
        assert!(matches!(outcome, Err(Error::Database(_))), "run {run}, event {seq}: {outcome:?}");
    }
    assert_eq!(store.run_events(run_id(1), 0, 10).await.expect("readable"), [log(1, "first")]);
}

/// No rounding, also before 1970 and at both ends of the calendar.
pub async fn times_survive_to_the_microsecond(store: Arc<dyn Store>) {
    let times = [i64::MIN, -1_000_001, -1, 0, 1, 1_780_000_000_123_457, i64::MAX].map(Timestamp::from_micros);
    let rows: Vec<_> = (0..)
        .zip(times)
        .map(|(number, time)| RunRow {
            created_at: time,
            started_at: Some(time),
            finished_at: Some(time),
            ..run_row(number)
        })
        .collect();

    insert(&*store, rows.clone()).await;

    for row in rows {
        assert_eq!(store.run(row.id).await.expect("readable"), Some(row));
    }
}

/// Texts are kept as they are; JSON is kept to the last bit.
pub async fn texts_and_json_survive(store: Arc<dyn Store>) {
    let odd = "'; DROP TABLE runs; -- \" \\ % _ \u{301}é 日本語 😀 \r\n\t\u{1b} \u{fffd} $1 ?1";
    let mebibyte = "ü\"\\\u{0}".repeat(1 << 18);
    let numbers = json!([
        0.1,
        -0.0,
        1e308,
        5e-324,
        1.797_693_134_862_315_7e308,
        i64::MIN,
        u64::MAX,
        2.0,
        1e16,
        123_456_789.123_456_78
    ]);
    let row = RunRow {
        device: odd.to_owned(),
        action: odd.to_owned(),
        actor: odd.to_owned(),
        request_id: String::new(),
        parameters: json!({ odd: mebibyte, "": { "numbers": numbers, "null": null, "empty": [{}, []] } }),
        result: Some(json!("\u{0}")),
        error: Some(RunError { code: odd.to_owned(), message: "\u{0}\u{1}".to_owned() }),
        duration_ms: Some(f64::MIN_POSITIVE),
        ..run_row(1)
    };
    insert(&*store, vec![row.clone()]).await;

    let stored = store.run(run_id(1)).await.expect("readable").expect("there");

    assert_eq!(stored, row);
    assert_eq!(stored.parameters.to_string(), row.parameters.to_string());
    let filter = RunFilter { action: Some(odd.to_owned()), ..RunFilter::default() };
    assert_eq!(store.runs(&filter, ALL).await.expect("readable").total, 1);
}

/// U+0000 outside JSON: one database could store it and the other could not, so none does.
pub async fn a_text_with_nul_is_refused_and_never_found(store: Arc<dyn Store>) {
    let row = RunRow { device: "a\0b".to_owned(), ..run_row(1) };
    let outcome: Result<(), Error> =
        transact(&*store, move |tx| async move { tx.insert_run(&row).await }.boxed()).await;
    assert!(matches!(outcome, Err(Error::Unwritable(_))), "{outcome:?}");

    let key = KeyRow {
        actor: "ana".to_owned(),
        key: "\0".to_owned(),
        digest: [0; 32],
        run: run_id(1),
        created_at: NOW,
        expires_at: NOW,
    };
    let outcome: Result<KeyRow, Error> =
        transact(&*store, move |tx| async move { tx.claim_key(&key).await }.boxed()).await;
    assert!(matches!(outcome, Err(Error::Unwritable(_))), "{outcome:?}");

    assert_eq!(store.user("\0").await.expect("readable"), None);
    assert_eq!(store.key("ana", "\0", NOW).await.expect("readable"), None);
    let audit = AuditFilter { actor: Some("\0".to_owned()), ..AuditFilter::default() };
    assert_eq!(store.audit(&audit, ALL).await.expect("readable").total, 0);
    assert_eq!(store.run(run_id(1)).await.expect("readable"), None);
}
