//! What is kept in memory stays true when another process, or another request, changes it.

use std::sync::Arc;
use std::time::Duration;

use interlock_engine::auth::{Db, SystemPermit, Wanted};
use interlock_engine::janitor;
use interlock_engine::users::{UserChange, UserError};
use interlock_model::Clock as _;
use interlock_model::action::{Installation, LogOut};

use crate::bench::{Bench, Scripted, eventually, fresh, origin, password};

#[tokio::test]
async fn a_change_by_another_process_is_seen() {
    let (folder, server) = fresh(Scripted::prompt()).await;
    server.user("ana", &["operator"]).await;
    server.user("ada", &["admin"]).await;
    let watching = tokio::spawn(Arc::clone(&server.principals).watch(Duration::from_millis(5)));
    let session = server
        .identity
        .sign_ins
        .person("ana", password("ana"), None, &Wanted::default(), &origin())
        .await
        .expect("signed in");
    let token = session.issued.access.expose().to_owned();
    let console = Bench::open(folder.path(), Scripted::prompt(), 2).await;
    let root = SystemPermit::root("console");

    console
        .users
        .console(&root)
        .update("ana", UserChange { roles: Some(vec!["viewer".to_owned()]), disabled: None })
        .await
        .expect("changed");
    eventually("the role is gone", || async {
        server
            .guard
            .authenticate(Some(&token), &origin())
            .is_ok_and(|caller| caller.grants().roles().is_empty())
    })
    .await;
    console.user("eve", &["viewer"]).await;
    eventually("the new user is known", || async { server.principals.user("eve").is_some() }).await;
    console
        .users
        .console(&root)
        .update("ana", UserChange { roles: None, disabled: Some(true) })
        .await
        .expect("changed");
    eventually("the token is dead", || async { server.guard.authenticate(Some(&token), &origin()).is_err() })
        .await;

    watching.abort();
    crate::bench::verified(&*server.store).await;
}

#[tokio::test]
async fn a_session_ended_in_one_process_is_ended_in_the_other() {
    let (folder, one) = fresh(Scripted::prompt()).await;
    one.user("ana", &["operator"]).await;
    let two = Bench::open(folder.path(), Scripted::prompt(), 2).await;
    let watching = tokio::spawn(Arc::clone(&two.principals).watch(Duration::from_millis(5)));
    let session = one
        .identity
        .sign_ins
        .person("ana", password("ana"), None, &Wanted::default(), &origin())
        .await
        .expect("signed in");
    let token = session.issued.access.expose();
    two.guard.authenticate(Some(token), &origin()).expect("both processes share the key");
    let caller = one.guard.authenticate(Some(token), &origin()).expect("a caller");

    one.identity
        .sessions
        .sign_out(&one.guard.permit::<LogOut>(&caller, Installation {}).expect("permitted"))
        .await
        .expect("signed out");

    assert!(one.guard.authenticate(Some(token), &origin()).is_err());
    eventually("the other process knows", || async {
        two.guard.authenticate(Some(token), &origin()).is_err()
    })
    .await;
    watching.abort();
    // And so does one that starts later.
    let three = Bench::open(folder.path(), Scripted::prompt(), 3).await;
    assert!(three.guard.authenticate(Some(token), &origin()).is_err());
}

#[tokio::test]
async fn what_was_revoked_stays_so_when_the_clock_jumps_ahead_and_back() {
    let (folder, one) = fresh(Scripted::prompt()).await;
    one.user("ana", &["operator"]).await;
    let session = one
        .identity
        .sign_ins
        .person("ana", password("ana"), None, &Wanted::default(), &origin())
        .await
        .expect("signed in");
    let token = session.issued.access.expose();
    let caller = one.guard.authenticate(Some(token), &origin()).expect("a caller");
    one.identity
        .sessions
        .sign_out(&one.guard.permit::<LogOut>(&caller, Installation {}).expect("permitted"))
        .await
        .expect("signed out");
    let then = one.clock.now();

    one.clock.jump(Duration::from_hours(24 * 1000));
    one.principals.forget_expired();
    one.principals.reload().await.expect("read again");
    let db = Db::new(Arc::clone(&one.store), one.ambient.clone());
    janitor::clean(&db, &one.ambient, &SystemPermit::root("system")).await.expect("cleaned");
    one.clock.set(then);

    assert!(one.guard.authenticate(Some(token), &origin()).is_err());
    let later = Bench::open(folder.path(), Scripted::prompt(), 2).await;
    assert!(later.guard.authenticate(Some(token), &origin()).is_err(), "nor after a restart");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_administrators_cannot_remove_each_other_at_once() {
    for round in 0..20 {
        let (folder, one) = fresh(Scripted::prompt()).await;
        one.user("ada", &["admin"]).await;
        one.user("abe", &["admin"]).await;
        // Half of the rounds across processes, where no memory is shared.
        let two = Bench::open(folder.path(), Scripted::prompt(), 2).await;
        let other = if round % 2 == 0 { &one } else { &two };
        let root = SystemPermit::root("console");
        let off = || UserChange { roles: None, disabled: Some(true) };
        let demoted = UserChange { roles: Some(vec!["viewer".to_owned()]), disabled: None };

        let (console_one, console_two) = (one.users.console(&root), other.users.console(&root));
        let (a, b) = tokio::join!(console_one.update("ada", off()), console_two.update("abe", demoted));

        assert_eq!(usize::from(a.is_ok()) + usize::from(b.is_ok()), 1, "{a:?} {b:?}");
        assert!(
            [a, b].into_iter().filter_map(Result::err).all(|error| matches!(error, UserError::LastAdmin))
        );
        let left = one.store.users().await.expect("users");
        assert_eq!(left.iter().filter(|user| !user.disabled && user.roles == ["admin"]).count(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory_ends_with_the_last_committed_change() {
    let (_folder, bench) = fresh(Scripted::prompt()).await;
    bench.user("ana", &["operator"]).await;
    let root = SystemPermit::root("console");
    let console = bench.users.console(&root);

    for _ in 0..20 {
        let changes = ["viewer", "operator", "auditor", "viewer", "operator"].map(|role| {
            console.update("ana", UserChange { roles: Some(vec![role.to_owned()]), disabled: None })
        });
        futures::future::join_all(changes).await;

        let stored = bench.store.user("ana").await.expect("read").expect("there");
        let known = bench.principals.user("ana").expect("there");
        assert_eq!(known.version, stored.version);
        assert_eq!(known.roles, stored.roles);
    }
}

#[tokio::test]
async fn an_older_state_of_a_user_never_replaces_a_newer_one() {
    let (_folder, bench) = fresh(Scripted::prompt()).await;
    bench.user("ana", &["operator"]).await;
    let older = bench.store.user("ana").await.expect("read").expect("there");
    let root = SystemPermit::root("console");
    bench
        .users
        .console(&root)
        .update("ana", UserChange { roles: Some(vec!["viewer".to_owned()]), disabled: None })
        .await
        .expect("changed");

    // Two requests that commit one after the other may put their results in force in the other order.
    bench.principals.put(older);

    assert_eq!(bench.principals.user("ana").expect("there").roles, ["viewer"]);
}
