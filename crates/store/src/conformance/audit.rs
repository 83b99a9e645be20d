//! The audit chain in the database.

use std::sync::Arc;

use futures::FutureExt as _;
use interlock_model::audit::{AuditDraft, AuditEntry, Verifier};
use serde_json::{Value, json};

use super::{ALL, NOW, after, at_once, draft, put};
use crate::orchestrator::ask;
use crate::seals::{Seal, Tile};
use crate::{AuditBy, AuditFilter, Error, Page, Store, Verdict, transact};

async fn append(store: &dyn Store, draft: AuditDraft) -> AuditEntry {
    put(store, move |tx| async move { tx.append_audit(&draft).await }.boxed()).await
}

/// Reads the chain from the start, some entries at a time, and checks every link.
///
/// # Panics
/// If it is broken.
pub async fn verified(store: &dyn Store) -> Vec<AuditEntry> {
    let mut verifier = Verifier::default();
    let mut entries = Vec::new();
    loop {
        let part = store.audit_from(verifier.seq, 1000).await.expect("readable");
        // Checked where it is read and checked here are the same.
        let links = store.audit_links(verifier.seq, 1000).await.expect("readable");
        assert!(part.iter().map(AuditEntry::checked).eq(links.into_iter().take(part.len())));
        if part.is_empty() {
            return entries;
        }
        for entry in &part {
            verifier.next(entry).expect("the chain holds");
        }
        entries.extend(part);
    }
}

/// Sixty-four append at once, some in a transaction of several, some change their mind.
pub async fn the_chain_verifies_under_concurrent_appenders(store: Arc<dyn Store>) {
    let appended = at_once(&store, 64, |store, number| async move {
        let mut kept = Vec::new();
        for round in 0..10_u32 {
            let several = 1 + (number + round) % 3;
            let regret = (number + round).is_multiple_of(5);
            let outcome: Result<Vec<AuditEntry>, Error> = transact(&*store, move |tx| {
                async move {
                    let mut entries = Vec::new();
                    for part in 0..several {
                        entries.push(tx.append_audit(&draft(&format!("{number} {round} {part}"))).await?);
                    }
                    if regret { Err(Error::Closed) } else { Ok(entries) }
                }
                .boxed()
            })
            .await;
            assert_eq!(outcome.is_err(), regret);
            kept.extend(outcome.unwrap_or_default());
        }
        kept
    })
    .await;

    let mut told: Vec<_> = appended.into_iter().flatten().collect();
    told.sort_by_key(|entry| entry.seq);
    assert!(told.len() > 640);
    assert_eq!(verified(&*store).await, told);
}

/// Numbers are given at the commit, not before.
pub async fn a_rolled_back_entry_leaves_no_gap(store: Arc<dyn Store>) {
    let first = append(&*store, draft("first")).await;
    let rolled_back = store.write(Box::new(|tx| {
        async move {
            tx.append_audit(&draft("never")).await?;
            tx.append_audit(&draft("never")).await?;
            Ok(Verdict::RollBack)
        }
        .boxed()
    }));
    rolled_back.await.expect("rolled back");
    let second = append(&*store, draft("second")).await;

    assert_eq!((first.seq, second.seq), (1, 2));
    assert_eq!(second.prev_hash, first.hash);
    assert_eq!(verified(&*store).await, [first, second]);
}

/// What was hashed is what is read, to the last bit of the last number.
pub async fn details_read_back_to_the_same_hash(store: Arc<dyn Store>) {
    let deep = (0..126).fold(json!("bottom"), |inner, _| json!([inner]));
    let details = [
        Value::Null,
        json!("plain \u{0} text \u{2028} \u{7f} 😀 \u{fffe}"),
        json!({ "z": 1, "a": { "b": [1.0, 0.1, 1e-7, 123_456_789.987_654_3, 1e21, 5e-324, f64::MAX, -0.0] }, "": "" }),
        json!([u64::MAX, i64::MIN, 9_007_199_254_740_993_u64, 0, -1, 1e15, 1e16, 1e17]),
        json!({ "ü": "ü", "\u{75}\u{308}": "not the same", "\"\\/": "\"\\/\u{8}\u{c}\n\r\t" }),
        deep,
    ];
    for details in details {
        let draft = AuditDraft { details, actor: None, subject: None, client_ip: None, ..draft("") };
        let told = append(&*store, draft.clone()).await;

        let read = store.audit_from(told.seq - 1, 1).await.expect("readable").pop().expect("there");

        assert_eq!(read, told);
        assert_eq!(read.draft, draft);
        assert!(read.is_sound());
    }
    verified(&*store).await;
}

/// The record of a refused request must not fail because of what was in the request.
pub async fn a_stranger_cannot_stop_the_record_with_odd_texts(store: Arc<dyn Store>) {
    let long = "x".repeat(100_000);
    let odd = AuditDraft {
        actor: Some("\0root\0".to_owned()),
        subject: Some(long.clone()),
        request_id: Some("\0".to_owned()),
        ..draft("")
    };
    let told = append(&*store, odd).await;
    let longer = append(&*store, AuditDraft { actor: Some(long.clone()), ..draft("") }).await;

    assert_eq!(told.draft.actor.as_deref(), Some("\u{fffd}root\u{fffd}"));
    assert_eq!(verified(&*store).await, [told.clone(), longer.clone()]);
    let by_subject = AuditFilter { subject: Some(long.clone()), ..AuditFilter::default() };
    assert_eq!(store.audit(&by_subject, ALL).await.expect("readable").items, [told]);
    let by_actor = AuditFilter { actor: Some(long), ..AuditFilter::default() };
    assert_eq!(store.audit(&by_actor, ALL).await.expect("readable").items, [longer]);
}

/// What is in the details can be asked for and counted, whatever else is in them.
pub async fn rows_are_found_and_counted_by_their_details(store: Arc<dyn Store>) {
    let blocked = |rule: &str, route: &str, ip: &str| AuditDraft {
        action: "request.blocked".to_owned(),
        client_ip: Some(ip.to_owned()),
        details: json!({ "rule": rule, "route": route, "result": "failed" }),
        ..draft("")
    };
    append(&*store, blocked("sql.union", "GET /runs", "192.0.2.1")).await;
    append(&*store, blocked("sql.union", "GET /tasks", "192.0.2.1")).await;
    append(&*store, blocked("html.script", "GET /runs", "192.0.2.2")).await;
    for details in [
        json!({ "rule": 7 }),
        json!({ "rule": "\u{0}", "x": "\\u0000" }),
        json!([1]),
        json!("rule"),
        Value::Null,
    ] {
        append(&*store, AuditDraft { details, client_ip: None, ..draft("") }).await;
    }
    let all = AuditFilter::default;
    let text = |text: &str| Some(text.to_owned());
    let found = |filter: AuditFilter| {
        let store = Arc::clone(&store);
        async move { store.audit(&filter, ALL).await.expect("readable").items.len() }
    };
    let counted = |filter: AuditFilter, by, limit| {
        let store = Arc::clone(&store);
        async move { store.audit_counts(&filter, by, limit).await.expect("readable") }
    };

    assert_eq!(found(AuditFilter { rule: text("sql.union"), ..all() }).await, 2);
    assert_eq!(found(AuditFilter { source: text("192.0.2.1"), route: text("GET /runs"), ..all() }).await, 1);
    assert_eq!(found(AuditFilter { result: text("failed"), ..all() }).await, 3);
    assert_eq!(found(AuditFilter { rule: text("sql"), ..all() }).await, 0);
    let blocked = AuditFilter { action: text("request.blocked"), ..all() };
    let of = |value: &str, count| (value.to_owned(), count);
    assert_eq!(counted(blocked.clone(), AuditBy::Rule, 9).await, [of("sql.union", 2), of("html.script", 1)]);
    assert_eq!(counted(blocked.clone(), AuditBy::Source, 1).await, [of("192.0.2.1", 2)]);
    assert_eq!(counted(blocked.clone(), AuditBy::Route, 9).await, [of("GET /runs", 2), of("GET /tasks", 1)]);
    assert_eq!(counted(blocked, AuditBy::Reason, 9).await, []);
    assert_eq!(counted(AuditFilter { rule: text("\0"), ..all() }, AuditBy::Rule, 9).await, []);
    assert_eq!(counted(all(), AuditBy::Action, 1).await.len(), 1);
}

/// Every filter counts, together too; newest first.
pub async fn rows_are_filtered_and_paged(store: Arc<dyn Store>) {
    for number in 0..20_i64 {
        let row = AuditDraft {
            at: after(number),
            actor: (number % 2 == 0).then(|| "ana".to_owned()),
            action: if number % 3 == 0 { "auth.login".to_owned() } else { "device.executed".to_owned() },
            ..draft(&format!("run {}", number % 4))
        };
        append(&*store, row).await;
    }
    let listed = |filter: AuditFilter, limit, offset| {
        let store = Arc::clone(&store);
        async move {
            let paged = store.audit(&filter, Page { limit, offset }).await.expect("readable");
            (paged.items.iter().map(|entry| entry.seq).collect::<Vec<_>>(), paged.total)
        }
    };
    let all = AuditFilter::default;
    let text = |text: &str| Some(text.to_owned());

    assert_eq!(listed(all(), 3, 0).await, (vec![20, 19, 18], 20));
    assert_eq!(listed(all(), 3, 18).await, (vec![2, 1], 20));
    assert_eq!(listed(AuditFilter { actor: text("ana"), ..all() }, 2, 1).await, (vec![17, 15], 10));
    assert_eq!(listed(AuditFilter { action: text("auth.login"), ..all() }, 2, 0).await, (vec![19, 16], 7));
    assert_eq!(listed(AuditFilter { subject: text("run 3"), ..all() }, 2, 0).await, (vec![20, 16], 5));
    let window = AuditFilter { since: Some(after(5)), until: Some(after(8)), ..all() };
    assert_eq!(listed(window.clone(), 10, 0).await, (vec![8, 7, 6], 3));
    let both = AuditFilter { actor: text("ana"), action: text("auth.login"), ..window };
    assert_eq!(listed(both, 10, 0).await, (vec![7], 1));
    assert_eq!(listed(AuditFilter { action: text("auth"), ..all() }, 10, 0).await, (vec![], 0));
}

/// Tiles and checkpoints: the first of several that are made at once stays, and one a minute is kept.
pub async fn tiles_and_seals_are_read_back(store: Arc<dyn Store>) {
    let tile = |index, byte| Tile { index, root: [byte; 32], hashes: vec![[byte; 32]; 256] };
    let seal = |size, seconds: i64| Seal {
        size,
        root: [7; 32],
        at: after(seconds * 1_000_000),
        note: format!("note of {size}"),
    };
    let minute = 60 - (NOW.micros() / 1_000_000) % 60;
    let kept = [seal(100, minute - 1), seal(600, minute + 3), seal(601, minute + 70)];
    for (tiles, seal) in [
        (vec![], kept[0].clone()),
        (vec![tile(0, 1)], seal(300, minute + 1)),
        (vec![tile(0, 9), tile(1, 2)], kept[1].clone()),
        (vec![], Seal { note: "another server's".to_owned(), ..kept[1].clone() }),
        (vec![], kept[2].clone()),
    ] {
        put(&*store, move |tx| async move { tx.orchestrator().seal(&tiles, &seal).await }.boxed()).await;
    }

    let read = ask(&*store, |mut reads| {
        async move {
            Ok((
                reads.seals(0, 10).await?,
                reads.newest_seal().await?,
                reads.tiles(0, 10).await?,
                reads.tile_roots(1, 10).await?,
            ))
        }
        .boxed()
    });
    let (seals, newest, tiles, roots) = read.await.expect("readable");

    assert_eq!(seals, kept);
    assert_eq!(newest.as_ref(), kept.last());
    assert_eq!(tiles, [tile(0, 1), tile(1, 2)]);
    assert_eq!(roots, [(1, [2; 32])]);
}

/// The oldest go, in batches; numbers go on where they were.
pub async fn old_entries_are_deleted_and_the_chain_goes_on(store: Arc<dyn Store>) {
    for number in 0..10 {
        append(&*store, AuditDraft { at: after(number), ..draft("old") }).await;
    }
    let (span, before, hashes) = ask(&*store, |mut reads| {
        async move {
            let span = reads.audit_span().await?;
            let before = [
                reads.audit_before(after(0)).await?,
                reads.audit_before(after(6)).await?,
                reads.audit_before(after(99)).await?,
            ];
            Ok((span, before, reads.entry_hashes(8, 10).await?))
        }
        .boxed()
    })
    .await
    .expect("readable");
    assert_eq!((span, before), (Some((1, 10)), [None, Some(6), Some(10)]));
    let entries = verified(&*store).await;
    assert_eq!(hashes, [(9, entries[8].hash), (10, entries[9].hash)]);

    let mut deleted = Vec::new();
    for _ in 0..3 {
        deleted
            .push(put(&*store, |tx| async move { tx.orchestrator().forget_audit(6, 4).await }.boxed()).await);
    }

    assert_eq!(deleted, [4, 2, 0]);
    let next = append(&*store, draft("next")).await;
    assert_eq!((next.seq, next.prev_hash), (11, entries[9].hash));
    let left = store.audit_from(0, 100).await.expect("readable");
    assert_eq!(left.iter().map(|entry| entry.seq).collect::<Vec<_>>(), [7, 8, 9, 10, 11]);
    let page = store.audit(&AuditFilter::default(), ALL).await.expect("readable");
    assert_eq!(page.total, 5);
}
