//! Users, revocations and the mark that tells other servers of them.

use std::sync::Arc;

use futures::FutureExt as _;

use super::{NOW, after, at_once, put, run_row};
use crate::{Error, Revocation, Store, UserRow, Verdict, transact};

fn user(name: &str) -> UserRow {
    UserRow {
        name: name.to_owned(),
        password_hash: "$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$aGFzaA".to_owned(),
        roles: vec!["admin".to_owned(), "operator".to_owned()],
        disabled: false,
        tokens_valid_from: after(-5),
        created_at: NOW,
        updated_at: NOW,
        version: 1,
    }
}

async fn insert(store: &dyn Store, row: UserRow) -> bool {
    put(store, move |tx| async move { tx.insert_user(&row).await }.boxed()).await
}

/// Of all who want a name, one gets it; the others are told and change nothing.
pub async fn a_name_is_taken_once(store: Arc<dyn Store>) {
    let taken = at_once(&store, 20, |store, number| async move {
        insert(&*store, UserRow { password_hash: format!("hash {number}"), ..user("ana") }).await
    })
    .await;

    assert_eq!(taken.iter().filter(|taken| **taken).count(), 1);
    let winner = taken.iter().position(|taken| *taken).expect("one");
    let stored = store.user("ana").await.expect("readable").expect("there");
    assert_eq!(stored, UserRow { password_hash: format!("hash {winner}"), ..user("ana") });
    assert_eq!(store.user("Ana").await.expect("readable"), None);
}

/// An update names the version that it saw.
pub async fn a_stale_version_is_refused(store: Arc<dyn Store>) {
    insert(&*store, user("ana")).await;
    let second = UserRow { version: 2, roles: vec![], disabled: true, updated_at: after(9), ..user("ana") };
    let stale = UserRow { version: 2, ..user("ana") };
    let stranger = UserRow { version: 2, ..user("bo") };

    let rows = [second.clone(), stale, stranger];
    let outcomes = put(&*store, move |tx| {
        async move {
            let mut outcomes = Vec::new();
            for row in &rows {
                outcomes.push(tx.update_user(row).await?);
            }
            Ok(outcomes)
        }
        .boxed()
    })
    .await;

    assert_eq!(outcomes, [true, false, false]);
    assert_eq!(store.user("ana").await.expect("readable"), Some(second));
}

/// The order does not depend on the language of the database.
pub async fn names_are_listed_in_byte_order(store: Arc<dyn Store>) {
    for name in ["b", "ä", "B", "a-b", "ab", "a.b", "a", "😀"] {
        insert(&*store, user(name)).await;
    }

    let names: Vec<_> = store.users().await.expect("readable").into_iter().map(|user| user.name).collect();

    assert_eq!(names, ["B", "a", "a-b", "a.b", "ab", "b", "ä", "😀"]);
}

/// Each of ten administrators is disabled by somebody who first looks whether another one stays. One stays.
pub async fn a_rule_over_all_users_holds_when_many_change_them(store: Arc<dyn Store>) {
    for number in 0..10 {
        insert(&*store, user(&format!("admin-{number}"))).await;
    }

    at_once(&store, 10, |store, number| async move {
        put(&*store, move |tx| {
            async move {
                let users = tx.users().await?;
                let name = format!("admin-{number}");
                if users.iter().any(|user| user.name != name && !user.disabled) {
                    tx.update_user(&UserRow { disabled: true, version: 2, ..user(&name) }).await?;
                }
                Ok(())
            }
            .boxed()
        })
        .await;
    })
    .await;

    let left = store.users().await.expect("readable").into_iter().filter(|user| !user.disabled).count();
    assert_eq!(left, 1);
}

/// What is in memory about users and revocations is as fresh as the mark says.
pub async fn the_change_mark_moves_with_users_and_revocations_only(store: Arc<dyn Store>) {
    let mut marks = vec![store.change_mark().await.expect("readable")];
    insert(&*store, user("ana")).await;
    marks.push(store.change_mark().await.expect("readable"));
    put(&*store, |tx| async move { tx.update_user(&UserRow { version: 2, ..user("ana") }).await }.boxed())
        .await;
    marks.push(store.change_mark().await.expect("readable"));
    revoke(&*store, "t1", 10, "manual").await;
    marks.push(store.change_mark().await.expect("readable"));
    assert!(marks.windows(2).all(|pair| pair[0] != pair[1]), "{marks:?}");

    put(&*store, |tx| async move { tx.insert_run(&run_row(1)).await }.boxed()).await;
    insert(&*store, user("ana")).await;
    store
        .write(Box::new(|tx| {
            async move {
                tx.insert_user(&user("bo")).await?;
                Ok(Verdict::RollBack)
            }
            .boxed()
        }))
        .await
        .expect("rolled back");

    assert_eq!(store.change_mark().await.expect("readable"), marks[3]);
}

async fn revoke(store: &dyn Store, jti: &str, micros: i64, reason: &str) {
    let row =
        Revocation { jti: jti.to_owned(), expires_at: after(micros), reason: reason.to_owned(), at: NOW };
    put(store, move |tx| async move { tx.insert_revocation(&row).await }.boxed()).await;
}

/// A revocation matters up to and including the end of its token; revoking twice keeps the first row.
pub async fn a_revocation_survives_until_it_expires(store: Arc<dyn Store>) {
    revoke(&*store, "early", 10, "rotated").await;
    revoke(&*store, "late", 20, "manual").await;
    revoke(&*store, "late", 30, "reuse").await;

    let at = |micros| {
        let store = Arc::clone(&store);
        async move {
            let rows = store.revocations(after(micros)).await.expect("readable");
            rows.into_iter().map(|row| (row.jti, row.reason)).collect::<Vec<_>>()
        }
    };
    let late = ("late".to_owned(), "manual".to_owned());
    assert_eq!(at(10).await, [("early".to_owned(), "rotated".to_owned()), late.clone()]);
    assert_eq!(at(11).await, std::slice::from_ref(&late));

    let deleted: Result<u64, Error> =
        transact(&*store, |tx| async move { tx.delete_expired(after(11)).await }.boxed()).await;
    assert_eq!(deleted.expect("committed"), 1);
    assert_eq!(at(0).await, [late]);
    assert_eq!(at(21).await, []);
}
