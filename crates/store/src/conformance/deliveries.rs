//! Outcomes that are to be told: in the write that ends the run or not at all, by one at a time, until somebody has them.

use std::sync::Arc;

use futures::FutureExt as _;
use interlock_model::task::{TaskRunId, TaskRunState};

use super::orchestrator::{claim, finish, finished, line_up, new_run, run_id, task_id};
use super::{NOW, after, at_once, put};
use crate::orchestrator::{Attempt, DeliveryRow, DeliveryState, Finished, NewRun, Retry, ask};
use crate::{Page, Store, Verdict};

const SECOND: i64 = 1_000_000;
const PAGE: Page = Page { limit: 50, offset: 0 };

async fn told(store: &dyn Store, agent: &'static str) {
    put(store, move |tx| async move { tx.orchestrator().set_told(agent, true).await }.boxed()).await;
}

async fn deliveries(store: &dyn Store, agent: &'static str) -> Vec<DeliveryRow> {
    let found =
        ask(store, move |mut reads| async move { reads.deliveries(agent, None, PAGE).await }.boxed()).await;
    found.expect("readable").items
}

async fn take(store: &dyn Store, holder: &'static str, at: i64, without: &[&str]) -> Vec<Attempt> {
    let without: Vec<String> = without.iter().map(ToString::to_string).collect();
    let times = (after(at * SECOND), after((at + 60) * SECOND));
    put(store, move |tx| {
        async move { tx.orchestrator().take_deliveries(holder, times, 10, &without).await }.boxed()
    })
    .await
}

/// A run of `ana` that is over.
async fn over(store: &dyn Store, number: u32, state: TaskRunState) {
    line_up(store, vec![new_run(number)]).await;
    let held = claim(store, "w", 1).await.remove(0);
    assert_eq!(finish(store, "w", vec![finished(held, state)]).await, [true]);
}

/// Whoever ends a run: its outcome is lined up with it. An attempt that another follows is no outcome.
pub async fn an_outcome_and_that_it_is_told_are_one_write(store: Arc<dyn Store>) {
    over(&*store, 1, TaskRunState::Succeeded).await;
    told(&*store, "ana").await;
    told(&*store, "ana").await;
    let strangers = NewRun { owner: "ben".to_owned(), ..new_run(2) };
    line_up(&*store, vec![strangers, new_run(3)]).await;
    let mut held = claim(&*store, "w", 2).await;
    held.sort_by_key(|entry| entry.run);
    let [bens, anas] = <[_; 2]>::try_from(held).expect("two runs");
    let retry = Some(Retry { run: run_id(4), ready_at: NOW });
    let failed = Finished { retry, ..finished(anas.clone(), TaskRunState::Failed) };
    let undone = store.write(Box::new(|tx| {
        async move {
            let end = finished(anas, TaskRunState::Succeeded);
            tx.orchestrator().finish("w", &[end]).await?;
            Ok(Verdict::RollBack)
        }
        .boxed()
    }));
    undone.await.expect("rolled back");
    assert_eq!(deliveries(&*store, "ana").await, []);

    finish(&*store, "w", vec![finished(bens, TaskRunState::Succeeded), failed]).await;
    assert_eq!(deliveries(&*store, "ana").await, []);
    let again = claim(&*store, "w", 1).await.remove(0);
    finish(&*store, "w", vec![finished(again, TaskRunState::Uncertain)]).await;
    line_up(&*store, vec![new_run(5)]).await;
    put(&*store, |tx| async move { tx.orchestrator().withdraw(task_id(1), "not wanted", NOW).await }.boxed())
        .await;

    let lined_up: Vec<TaskRunId> = deliveries(&*store, "ana").await.iter().map(|row| row.run).collect();
    assert_eq!(lined_up, [run_id(5), run_id(4)]);
    assert_eq!(deliveries(&*store, "ben").await, []);
    put(&*store, |tx| async move { tx.orchestrator().set_told("ana", false).await }.boxed()).await;
    over(&*store, 6, TaskRunState::Succeeded).await;
    assert_eq!(deliveries(&*store, "ana").await.len(), 2);
}

/// Servers that look at once take different ones; what one of them left is due again, and a late word counts for nothing.
pub async fn a_delivery_is_tried_by_one_at_a_time(store: Arc<dyn Store>) {
    told(&*store, "ana").await;
    for number in 1..=20 {
        over(&*store, number, TaskRunState::Failed).await;
    }
    let first = ask(&*store, |mut reads| async move { reads.first_delivery().await }.boxed()).await;
    assert_eq!(first.expect("readable"), Some(after(SECOND)));
    assert!(take(&*store, "here.1", 0, &[]).await.is_empty());
    assert!(take(&*store, "here.1", 1, &["zoe", "ana"]).await.is_empty());

    let taken = at_once(&store, 4, |store, _| async move { take(&*store, "here.1", 1, &[]).await }).await;
    let taken: Vec<Attempt> = taken.into_iter().flatten().collect();
    let mut runs: Vec<TaskRunId> = taken.iter().map(|attempt| attempt.run.id).collect();
    runs.sort();
    assert_eq!(runs, (1..=20).map(run_id).collect::<Vec<_>>());
    assert!(taken.iter().all(|attempt| attempt.number == 1 && attempt.agent == "ana"));
    assert_eq!(taken[0].run.error.as_deref(), Some("it broke"));

    let settle = |holder: &'static str, number: u32, went: Result<(), (&'static str, Option<i64>)>| {
        let went = went.map_err(|(why, next)| (why, next.map(|next| after(next * SECOND))));
        put(&*store, move |tx| {
            let at = after(2 * SECOND);
            async move { tx.orchestrator().settle_delivery(holder, (run_id(1), number), went, at).await }
                .boxed()
        })
    };
    assert!(!settle("there.1", 1, Ok(())).await);
    assert!(!settle("here.1", 2, Ok(())).await);
    assert!(settle("here.1", 1, Err(("no answer", Some(7)))).await);
    assert!(!settle("here.1", 1, Ok(())).await);

    // A process at another place has no say about what this one took; the next one at the same place takes it over.
    for (place, freed) in [("her", 0), ("here", 19), ("here", 0)] {
        let work = put(&*store, move |tx| {
            async move { tx.orchestrator().free_deliveries(place, after(3 * SECOND)).await }.boxed()
        });
        assert_eq!(work.await, freed, "{place}");
    }
    let again = take(&*store, "here.2", 7, &[]).await;
    assert!(again.iter().all(|attempt| attempt.number == 2));
    assert_eq!(again.len(), 10);
    // Nobody said how the rest went: after a minute they are due once more.
    take(&*store, "here.2", 7, &[]).await;
    assert!(take(&*store, "here.2", 66, &[]).await.is_empty());
    assert_eq!(take(&*store, "there.1", 67, &[]).await.len(), 10);
}

/// What is delivered or given up is at rest, until somebody wants it told once more.
pub async fn an_outcome_that_was_told_is_at_rest(store: Arc<dyn Store>) {
    told(&*store, "ana").await;
    for number in 1..=2 {
        over(&*store, number, TaskRunState::Succeeded).await;
        take(&*store, "s.1", 1, &[]).await;
    }
    for (number, went) in [(1, Ok(())), (2, Err(("410 Gone", None)))] {
        let settled = put(&*store, move |tx| {
            let at = after(2 * SECOND);
            async move { tx.orchestrator().settle_delivery("s.1", (run_id(number), 1), went, at).await }
                .boxed()
        });
        assert!(settled.await);
    }
    assert!(take(&*store, "s.1", 1_000, &[]).await.is_empty());
    let rows = deliveries(&*store, "ana").await;
    assert_eq!(rows[0].state, DeliveryState::Failed);
    assert_eq!((rows[0].error.as_deref(), rows[0].tried_at), (Some("410 Gone"), Some(after(2 * SECOND))));
    assert_eq!((rows[1].state, rows[1].error.as_deref()), (DeliveryState::Delivered, None));
    let failed = ask(&*store, |mut reads| {
        async move { reads.deliveries("ana", Some(DeliveryState::Failed), PAGE).await }.boxed()
    });
    assert_eq!(failed.await.expect("readable").total, 1);

    let again = |agent: &'static str, number: u32| {
        put(&*store, move |tx| {
            async move { tx.orchestrator().tell_again(agent, run_id(number), after(5 * SECOND)).await }
                .boxed()
        })
    };
    assert!(!again("ben", 1).await);
    assert!(!again("ana", 3).await);
    assert!(again("ana", 1).await);
    assert_eq!(take(&*store, "s.1", 5, &[]).await[0].number, 1);
    // It is being told.
    assert!(!again("ana", 1).await);

    let deleted = put(&*store, |tx| {
        async move { tx.orchestrator().delete_settled(after(2 * SECOND), NOW, 10).await }.boxed()
    });
    assert_eq!(deleted.await, 2);
}
