//! The write itself: all or nothing, one at a time in effect, whatever the closure does.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::sync::oneshot;

use super::audit::verified;
use super::{ALL, NOW, at_once, draft, put, run_id, run_row};
use crate::{
    AuditFilter, Error, KeyRow, Revocation, RunFilter, Store, StoredEvent, UserRow, Verdict, transact,
    transact_repeatable,
};

/// Nothing of it is left, in no table, whether the closure said so, failed or carried an error out.
pub async fn a_rolled_back_write_leaves_no_trace(store: Arc<dyn Store>) {
    for verdict in [Ok(Verdict::RollBack), Err(Error::Closed)] {
        let expected = verdict.is_ok();
        let outcome = store.write(Box::new(move |tx| {
            async move {
                everything(tx).await?;
                verdict
            }
            .boxed()
        }));
        assert_eq!(outcome.await.is_ok(), expected);
    }
    let refused: Result<(), Error> = transact(&*store, |tx| {
        async move {
            everything(tx).await?;
            Err(Error::Corrupt("mine".to_owned()))
        }
        .boxed()
    })
    .await;
    assert!(matches!(refused, Err(Error::Corrupt(words)) if words == "mine"));

    assert_eq!(store.users().await.expect("readable"), []);
    assert_eq!(store.runs(&RunFilter::default(), ALL).await.expect("readable").total, 0);
    assert_eq!(store.run_events(run_id(1), 0, 10).await.expect("readable"), []);
    assert_eq!(store.key("ana", "k", NOW).await.expect("readable"), None);
    assert_eq!(store.revocations(NOW).await.expect("readable"), []);
    assert_eq!(store.audit(&AuditFilter::default(), ALL).await.expect("readable").total, 0);
    put(&*store, |tx| async move { tx.append_audit(&draft("first")).await }.boxed()).await;
    assert_eq!(verified(&*store).await.len(), 1);
}

async fn everything(tx: &mut dyn crate::Tx) -> Result<(), Error> {
    let user = UserRow {
        name: "ana".to_owned(),
        password_hash: String::new(),
        roles: vec![],
        disabled: false,
        tokens_valid_from: NOW,
        created_at: NOW,
        updated_at: NOW,
        version: 1,
    };
    let key = KeyRow {
        actor: "ana".to_owned(),
        key: "k".to_owned(),
        digest: [1; 32],
        run: run_id(1),
        created_at: NOW,
        expires_at: NOW,
    };
    let revocation =
        Revocation { jti: "t".to_owned(), expires_at: NOW, reason: "manual".to_owned(), at: NOW };
    assert!(tx.insert_user(&user).await?);
    tx.insert_run(&run_row(1)).await?;
    let kind = interlock_model::device::EventKind::State { state: interlock_model::run::RunState::Running };
    tx.insert_run_events(run_id(1), &[StoredEvent { seq: 1, at: NOW, kind }]).await?;
    tx.claim_key(&key).await?;
    tx.insert_revocation(&revocation).await?;
    tx.append_audit(&draft("everything")).await.map(drop)
}

/// However the writes fall into batches: what refuses or fails after changes of its own leaves no trace, everything else is
/// there once, and each is told what its last call said.
pub async fn a_repeatable_write_that_is_undone_takes_nobody_with_it(store: Arc<dyn Store>) {
    let outcomes = at_once(&store, 300, |store, number| async move {
        if number % 7 == 0 {
            // Among them one that cannot be called again.
            return store
                .write(Box::new(move |tx| {
                    async move { tx.append_audit(&draft("once")).await.map(|_| Verdict::Commit) }.boxed()
                }))
                .await;
        }
        transact_repeatable(&*store, move |tx| {
            async move {
                tx.append_audit(&draft("often")).await?;
                match number % 5 {
                    0 => Err(Error::Corrupt(format!("refused {number}"))),
                    // A run that is there already: the statement itself fails.
                    1 => tx.insert_run(&run_row(1)).await.and(tx.insert_run(&run_row(1)).await),
                    _ => Ok(()),
                }
            }
            .boxed()
        })
        .await
    })
    .await;

    for (number, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Ok(()) => assert!(number % 7 == 0 || number % 5 > 1, "{number}"),
            Err(Error::Corrupt(words)) => assert_eq!(words, &format!("refused {number}")),
            Err(error) => assert!(number % 5 == 1, "{number}: {error}"),
        }
    }
    let landed = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!(verified(&*store).await.len(), landed);
    assert_eq!(store.run(run_id(1)).await.expect("readable"), None);
}

/// A closure that overlooks an error and says "commit" does not get half a write.
pub async fn a_failed_statement_cannot_be_committed(store: Arc<dyn Store>) {
    put(&*store, |tx| async move { tx.insert_run(&run_row(1)).await }.boxed()).await;

    let outcome = store.write(Box::new(|tx| {
        async move {
            tx.insert_run(&run_row(2)).await?;
            assert!(tx.insert_run(&run_row(1)).await.is_err());
            Ok(Verdict::Commit)
        }
        .boxed()
    }));

    assert!(matches!(outcome.await, Err(Error::Database(_))));
    assert_eq!(store.run(run_id(2)).await.expect("readable"), None);
    put(&*store, |tx| async move { tx.insert_run(&run_row(2)).await }.boxed()).await;
}

/// Inside, changes are seen at once; outside, after the commit.
pub async fn a_write_sees_its_own_changes_and_nobody_else_does(store: Arc<dyn Store>) {
    put(&*store, |tx| {
        async move {
            everything(tx).await?;
            assert_eq!(tx.run(run_id(1)).await?, Some(run_row(1)));
            assert_eq!(tx.user("ana").await?.map(|user| user.version), Some(1));
            assert_eq!(tx.users().await?.len(), 1);
            assert_eq!(tx.run(run_id(2)).await?, None);
            Ok(())
        }
        .boxed()
    })
    .await;

    assert_eq!(store.run(run_id(1)).await.expect("readable"), Some(run_row(1)));
}

/// The next write goes on; the one that panicked leaves nothing.
pub async fn a_panic_costs_one_write_only(store: Arc<dyn Store>) {
    let panicking = store.write(Box::new(|tx| {
        async move {
            everything(tx).await?;
            panic!("this panic is part of the test");
        }
        .boxed()
    }));
    assert!(matches!(panicking.await, Err(Error::Database(_))));
    let before = store.write(Box::new(|_| panic!("this panic is part of the test")));
    assert!(matches!(before.await, Err(Error::Database(_))));

    put(&*store, |tx| async move { tx.append_audit(&draft("after")).await }.boxed()).await;

    assert_eq!(verified(&*store).await.len(), 1);
    assert_eq!(store.users().await.expect("readable"), []);
    assert_eq!(store.run(run_id(1)).await.expect("readable"), None);
}

/// A write that has begun goes on without its caller.
pub async fn a_caller_who_gives_up_does_not_undo_the_write(store: Arc<dyn Store>) {
    let (begun, wait) = oneshot::channel();
    let mut write = store.write(Box::new(move |tx| {
        async move {
            let _ = begun.send(());
            tx.insert_run(&run_row(1)).await?;
            tx.insert_run(&run_row(2)).await?;
            Ok(Verdict::Commit)
        }
        .boxed()
    }));
    tokio::select! {
        biased;
        _ = wait => {}
        _ = &mut write => {}
    }
    drop(write);

    let landed = async {
        while store.run(run_id(2)).await.expect("readable").is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), landed).await.expect("the write lands");
}

/// None is lost, none is made twice, and every number is given once.
pub async fn ten_thousand_concurrent_writes_all_land(store: Arc<dyn Store>) {
    let numbers = at_once(&store, 10_000, |store, number| async move {
        put(&*store, move |tx| {
            async move {
                tx.insert_run(&run_row(number)).await?;
                Ok(tx.append_audit(&draft("many")).await?.seq)
            }
            .boxed()
        })
        .await
    })
    .await;

    let mut numbers = numbers;
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(1..=10_000));
    assert_eq!(store.runs(&RunFilter::default(), ALL).await.expect("readable").total, 10_000);
    assert_eq!(verified(&*store).await.len(), 10_000);
}

/// Thousands of rows in one write.
pub async fn a_large_batch_lands_whole(store: Arc<dyn Store>) {
    put(&*store, |tx| {
        async move {
            tx.insert_run(&run_row(1)).await?;
            let kind = |number| interlock_model::device::EventKind::Log {
                level: "info".to_owned(),
                message: format!("line {number}"),
            };
            let events: Vec<_> =
                (1..=5_000).map(|number| StoredEvent { seq: number, at: NOW, kind: kind(number) }).collect();
            tx.insert_run_events(run_id(1), &events).await?;
            for number in 0..2_000 {
                tx.append_audit(&draft(&format!("entry {number}"))).await?;
            }
            Ok(())
        }
        .boxed()
    })
    .await;

    let events = store.run_events(run_id(1), 0, 10_000).await.expect("readable");
    assert!(events.iter().map(|event| event.seq).eq(1..=5_000));
    assert_eq!(verified(&*store).await.len(), 2_000);
}

/// Writes that were begun are durable, later ones are refused, and closing twice is no error.
pub async fn a_closed_store_says_so(store: Arc<dyn Store>) {
    let before = at_once(&store, 20, |store, number| async move {
        put(&*store, move |tx| async move { tx.insert_run(&run_row(number)).await }.boxed()).await;
    });
    before.await;

    store.close().await;
    store.close().await;

    let write: Result<(), Error> =
        transact(&*store, |tx| async move { tx.insert_run(&run_row(99)).await }.boxed()).await;
    assert!(matches!(write, Err(Error::Closed)), "{write:?}");
    assert!(matches!(store.run(run_id(1)).await, Err(Error::Closed)));
    assert!(matches!(store.ping().await, Err(Error::Closed)));
}
