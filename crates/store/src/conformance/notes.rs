//! What runs tell while they are carried out.

use futures::FutureExt as _;
use interlock_model::task::TaskRunId;
use serde_json::{Value, json};

use super::orchestrator::run_id;
use super::{NOW, after, put};
use crate::Store;
use crate::orchestrator::{RunNote, ask};

async fn told(store: &dyn Store, run: TaskRunId, seen: u64, limit: u32) -> Vec<RunNote> {
    ask(store, move |mut reads| async move { reads.notes(run, seen, limit).await }.boxed())
        .await
        .expect("read")
}

async fn tell(store: &dyn Store, run: TaskRunId, moment: i64, words: &'static [&'static str]) {
    put(store, move |tx| {
        async move {
            let notes: Vec<(_, Value)> = words
                .iter()
                .map(|word| (after(moment), json!({ "kind": "log", "data": { "message": word } })))
                .collect();
            tx.orchestrator().put_notes(run, &notes).await
        }
        .boxed()
    })
    .await;
}

/// Notes are numbered in their run, read on from anywhere, and deleted by age.
pub async fn what_a_run_told_is_read_on_from_anywhere(store: std::sync::Arc<dyn Store>) {
    let (one, other) = (run_id(1), run_id(2));
    tell(&*store, one, 1, &["a", "b"]).await;
    tell(&*store, other, 2, &["x"]).await;
    tell(&*store, one, 3, &["c", "é\u{1b}"]).await;

    let all = told(&*store, one, 0, 10).await;
    assert_eq!(all.iter().map(|note| note.seq).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!(all[3].data["data"]["message"], "é\u{1b}");
    assert_eq!(all[3].at, after(3));
    assert_eq!(told(&*store, one, 1, 2).await, all[1..3]);
    assert_eq!(told(&*store, one, 4, 10).await, []);
    assert_eq!(told(&*store, other, 0, 10).await.len(), 1);
    assert_eq!(told(&*store, run_id(3), 0, 10).await, []);

    let before = after(3);
    let deleted =
        put(&*store, move |tx| async move { tx.orchestrator().delete_notes(before, 2).await }.boxed()).await;
    assert_eq!(deleted, 2);
    assert!(all[0].at > NOW);
    assert_eq!(told(&*store, one, 0, 10).await, all[2..]);
}
