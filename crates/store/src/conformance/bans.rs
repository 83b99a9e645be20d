//! Bans: one for each network, which the longest wins unless a person says otherwise.

use std::sync::Arc;

use futures::FutureExt as _;

use super::{NOW, after, put};
use crate::{BanRow, Store};

fn ban(network: &str, micros: Option<i64>) -> BanRow {
    BanRow {
        network: network.to_owned(),
        reason: "five attacks in an hour — “quoted”".to_owned(),
        added_by: "system".to_owned(),
        created_at: NOW,
        ends_at: micros.map(after),
        forget_at: micros.map(|micros| after(micros + 100)),
        offences: 1,
    }
}

async fn set(store: &dyn Store, row: BanRow) {
    put(store, move |tx| async move { tx.put_ban(&row).await }.boxed()).await;
}

async fn extend(store: &dyn Store, row: BanRow) -> bool {
    put(store, move |tx| async move { tx.extend_ban(&row).await }.boxed()).await
}

async fn lift(store: &dyn Store, network: &'static str) -> bool {
    put(store, move |tx| async move { tx.delete_ban(network).await }.boxed()).await
}

/// A network has one ban; the list is in order; what is taken away is gone.
pub async fn a_ban_is_kept_replaced_and_forgotten(store: Arc<dyn Store>) {
    let (first, second) = (ban("10.0.0.7/32", Some(10)), ban("2001:db8::/64", None));
    set(&*store, second.clone()).await;
    set(&*store, first.clone()).await;
    assert_eq!(store.bans(NOW).await.expect("readable"), [first, second.clone()]);

    let shorter = BanRow { offences: 0, added_by: "ada".to_owned(), ..ban("10.0.0.7/32", Some(5)) };
    set(&*store, shorter.clone()).await;
    assert_eq!(store.bans(NOW).await.expect("readable"), [shorter, second.clone()]);

    assert!(lift(&*store, "10.0.0.7/32").await);
    assert!(!lift(&*store, "10.0.0.7/32").await);
    assert_eq!(store.bans(NOW).await.expect("readable"), [second]);
}

/// Two processes may ban the same network; the longer ban stays, and one without an end always does.
pub async fn an_automatic_ban_never_shortens_another(store: Arc<dyn Store>) {
    let (short, long) = (ban("10.0.0.7/32", Some(10)), ban("10.0.0.7/32", Some(20)));
    assert!(extend(&*store, long.clone()).await);
    assert!(!extend(&*store, short).await);
    assert_eq!(store.bans(NOW).await.expect("readable"), std::slice::from_ref(&long));

    let endless = ban("10.0.0.7/32", None);
    assert!(extend(&*store, endless.clone()).await);
    assert!(!extend(&*store, long).await);
    assert_eq!(store.bans(NOW).await.expect("readable"), [endless]);
}

/// What is over still counts when the next ban is measured; then it is deleted.
pub async fn a_ban_outlives_its_end_until_it_may_be_forgotten(store: Arc<dyn Store>) {
    let (over, endless) = (ban("10.0.0.7/32", Some(10)), ban("10.0.0.8/32", None));
    set(&*store, over.clone()).await;
    set(&*store, endless.clone()).await;

    assert_eq!(store.bans(after(110)).await.expect("readable"), [over, endless.clone()]);
    assert_eq!(store.bans(after(111)).await.expect("readable"), std::slice::from_ref(&endless));

    let deleted = put(&*store, |tx| async move { tx.delete_expired(after(110)).await }.boxed()).await;
    assert_eq!(deleted, 0);
    let deleted = put(&*store, |tx| async move { tx.delete_expired(after(111)).await }.boxed()).await;
    assert_eq!(deleted, 1);
    assert_eq!(store.bans(NOW).await.expect("readable"), [endless]);
}

/// Servers notice each other's bans by the mark.
pub async fn the_change_mark_moves_with_bans(store: Arc<dyn Store>) {
    let mut marks = vec![store.change_mark().await.expect("readable")];
    set(&*store, ban("10.0.0.7/32", Some(10))).await;
    marks.push(store.change_mark().await.expect("readable"));
    set(&*store, ban("10.0.0.7/32", Some(20))).await;
    marks.push(store.change_mark().await.expect("readable"));
    assert!(lift(&*store, "10.0.0.7/32").await);
    marks.push(store.change_mark().await.expect("readable"));

    assert!(marks.windows(2).all(|pair| pair[0] != pair[1]), "{marks:?}");
    assert!(!lift(&*store, "10.0.0.7/32").await);
    assert_eq!(store.change_mark().await.expect("readable"), marks[3]);
}
