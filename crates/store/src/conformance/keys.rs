//! Idempotency keys: one request, one run.

use std::sync::Arc;

use futures::FutureExt as _;

use super::{NOW, after, at_once, put, run_id};
use crate::{KeyRow, Store, Verdict};

fn key(number: u32, created: i64, expires: i64) -> KeyRow {
    let mut digest = [0; 32];
    digest[..4].copy_from_slice(&number.to_be_bytes());
    KeyRow {
        actor: "ana".to_owned(),
        key: "k-1".to_owned(),
        digest,
        run: run_id(number),
        created_at: after(created),
        expires_at: after(expires),
    }
}

async fn claim(store: &dyn Store, row: KeyRow) -> KeyRow {
    put(store, move |tx| async move { tx.claim_key(&row).await }.boxed()).await
}

/// Fifty at once ask for a key; all are told the same holder.
pub async fn a_key_is_claimed_by_one_of_many(store: Arc<dyn Store>) {
    let holders =
        at_once(&store, 50, |store, number| async move { claim(&*store, key(number, 0, 1000)).await }).await;

    assert!(holders.iter().all(|holder| *holder == holders[0]), "{holders:?}");
    assert_eq!(store.key("ana", "k-1", NOW).await.expect("readable"), Some(holders[0].clone()));
    assert_eq!(store.key("bo", "k-1", NOW).await.expect("readable"), None);

    let other = KeyRow { actor: "bo".to_owned(), ..key(99, 0, 1000) };
    assert_eq!(claim(&*store, other.clone()).await, other);
}

/// Who claims and then refuses leaves the key to the next.
pub async fn a_claim_that_is_rolled_back_frees_the_key(store: Arc<dyn Store>) {
    let rolled_back = store.write(Box::new(|tx| {
        async move {
            tx.claim_key(&key(1, 0, 1000)).await?;
            Ok(Verdict::RollBack)
        }
        .boxed()
    }));
    rolled_back.await.expect("rolled back");

    assert_eq!(claim(&*store, key(2, 0, 1000)).await, key(2, 0, 1000));
}

/// A key is kept up to and including its end, then it is free, deleted or not.
pub async fn an_expired_key_can_be_taken_again(store: Arc<dyn Store>) {
    claim(&*store, key(1, 0, 10)).await;

    assert_eq!(claim(&*store, key(2, 10, 20)).await, key(1, 0, 10));
    assert!(store.key("ana", "k-1", after(10)).await.expect("readable").is_some());
    assert!(store.key("ana", "k-1", after(11)).await.expect("readable").is_none());
    assert_eq!(claim(&*store, key(3, 11, 20)).await, key(3, 11, 20));

    let deleted = put(&*store, |tx| async move { tx.delete_expired(after(20)).await }.boxed()).await;
    assert_eq!(deleted, 0);
    let deleted = put(&*store, |tx| async move { tx.delete_expired(after(21)).await }.boxed()).await;
    assert_eq!(deleted, 1);
    assert!(store.key("ana", "k-1", NOW).await.expect("readable").is_none());
}

/// A key whose run never started may stand for the next try.
pub async fn a_key_is_rebound(store: Arc<dyn Store>) {
    claim(&*store, key(1, 0, 10)).await;

    let rebound = put(&*store, |tx| {
        async move {
            Ok([
                tx.rebind_key("ana", "k-1", run_id(7)).await?,
                tx.rebind_key("ana", "k-2", run_id(7)).await?,
                tx.rebind_key("bo", "k-1", run_id(7)).await?,
            ])
        }
        .boxed()
    })
    .await;

    assert_eq!(rebound, [true, false, false]);
    let held = store.key("ana", "k-1", NOW).await.expect("readable").expect("held");
    assert_eq!(held, KeyRow { run: run_id(7), ..key(1, 0, 10) });
}
