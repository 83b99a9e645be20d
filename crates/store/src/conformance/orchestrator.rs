//! Tasks, the queue, runs, events, questions: nothing lost, nothing doubled, whoever works at it at once.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt as _;
use interlock_model::Timestamp;
use interlock_model::task::{
    ApprovalId, ApprovalState, Backoff, EventId, Misfire, ScheduleKind, StreamId, TaskId, TaskRunId,
    TaskRunState, TaskStatus, Trigger,
};
use serde_json::json;

use super::{ALL, NOW, after, at_once, put};
use crate::orchestrator::{
    Claimed, EventRow, Finished, NewApproval, NewRun, Retry, RunsFilter, Suspended, TaskRow, TasksFilter, ask,
};
use crate::{Page, Store};

pub(super) fn task_id(number: u32) -> TaskId {
    let mut bytes = [0; 16];
    bytes[12..].copy_from_slice(&number.to_be_bytes());
    TaskId::from_bytes(bytes)
}

/// The run of a number.
pub fn run_id(number: u32) -> TaskRunId {
    TaskRunId::from_bytes(*task_id(number).as_bytes())
}

fn task(number: u32) -> TaskRow {
    TaskRow {
        id: task_id(number),
        title: format!("Task {number}"),
        description: "a description".to_owned(),
        kind: ScheduleKind::Cron,
        expression: Some("* * * * *".to_owned()),
        zone: "Europe/Berlin".to_owned(),
        anchor: NOW,
        payload: json!({ "pipeline": [{ "uses": "orchestrator.sleep" }], "params": { "é": 1.5 } }),
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

/// A run of nothing in particular, ready at once.
pub fn new_run(number: u32) -> NewRun {
    NewRun {
        run: run_id(number),
        lineage: run_id(number),
        task: task_id(1),
        owner: "ana".to_owned(),
        attempt: 1,
        trigger: Trigger::Manual,
        scheduled_for: None,
        event: None,
        priority: 5,
        ready_at: NOW,
        concurrency_key: None,
        created_at: NOW,
    }
}

pub(super) fn finished(entry: Claimed, state: TaskRunState) -> Finished {
    Finished {
        entry,
        state,
        error: (state != TaskRunState::Succeeded).then(|| "it broke".to_owned()),
        output: Some(json!({ "steps": {} }).to_string()),
        kept: true,
        started_at: NOW,
        finished_at: after(1_000_000),
        retry: None,
    }
}

/// Lines runs up, and makes their tasks where there are none.
pub(super) async fn line_up(store: &dyn Store, runs: Vec<NewRun>) -> u64 {
    put(store, |tx| {
        async move {
            let mut all = tx.orchestrator();
            for run in &runs {
                all.insert_task(&TaskRow { id: run.task, ..task(0) }).await?;
            }
            all.enqueue(&runs).await
        }
        .boxed()
    })
    .await
}

/// Claims for a worker, which is enlisted.
pub(super) async fn claim(store: &dyn Store, worker: &'static str, limit: u32) -> Vec<Claimed> {
    put(store, move |tx| {
        async move {
            let mut all = tx.orchestrator();
            if !all.reads().workers().await?.iter().any(|row| row.id == worker) {
                all.enlist(worker, NOW).await?;
            }
            all.claim(worker, limit).await
        }
        .boxed()
    })
    .await
}

pub(super) async fn finish(store: &dyn Store, worker: &'static str, ends: Vec<Finished>) -> Vec<bool> {
    put(store, move |tx| async move { tx.orchestrator().finish(worker, &ends).await }.boxed()).await
}

async fn state_of(store: &dyn Store, number: u32) -> Option<TaskRunState> {
    let found = ask(store, move |mut reads| async move { reads.run(run_id(number)).await }.boxed()).await;
    found.expect("readable").map(|run| run.state)
}

/// Every member survives, and changes count.
pub async fn a_task_is_read_back_and_changed(store: Arc<dyn Store>) {
    let stored =
        TaskRow { dedupe_key: Some("k".to_owned()), concurrency_key: Some("robot".to_owned()), ..task(1) };
    let row = stored.clone();

    assert!(put(&*store, |tx| async move { tx.orchestrator().insert_task(&row).await }.boxed()).await);
    let changed = put(&*store, |tx| {
        async move {
            let mut all = tx.orchestrator();
            let mut row = all.task(task_id(1)).await?.expect("there");
            "Another".clone_into(&mut row.title);
            row.status = TaskStatus::Paused;
            row.version += 1;
            all.set_due(row.id, Some(after(5))).await?;
            all.set_due(row.id, Some(after(7))).await?;
            all.update_task(&row).await
        }
        .boxed()
    })
    .await;

    assert!(changed);
    let (found, due) = ask(&*store, |mut reads| {
        async move { Ok((reads.task(task_id(1)).await?, reads.due_of(task_id(1)).await?)) }.boxed()
    })
    .await
    .expect("readable");
    let expected = TaskRow { title: "Another".to_owned(), status: TaskStatus::Paused, version: 2, ..stored };
    assert_eq!(found, Some(expected));
    assert_eq!(due, Some(after(7)));
    let other = ask(&*store, |mut reads| async move { reads.task(task_id(2)).await }.boxed()).await;
    assert_eq!(other.expect("readable"), None);
}

/// Unique for each creator, free again when its task is canceled.
pub async fn a_dedupe_key_belongs_to_one_living_task(store: Arc<dyn Store>) {
    let keyed = |number, owner: &str| TaskRow {
        dedupe_key: Some("daily".to_owned()),
        created_by: owner.to_owned(),
        ..task(number)
    };
    let insert = |row: TaskRow| {
        let store = Arc::clone(&store);
        async move { put(&*store, |tx| async move { tx.orchestrator().insert_task(&row).await }.boxed()).await }
    };

    assert!(insert(keyed(1, "ana")).await);
    assert!(!insert(keyed(2, "ana")).await);
    assert!(insert(keyed(3, "ben")).await);
    let cancelled = TaskRow { status: TaskStatus::Canceled, version: 2, ..keyed(1, "ana") };
    assert!(put(&*store, |tx| async move { tx.orchestrator().update_task(&cancelled).await }.boxed()).await);
    assert!(insert(keyed(2, "ana")).await);
    let clash = TaskRow { version: 2, ..keyed(3, "ana") };
    assert!(!put(&*store, |tx| async move { tx.orchestrator().update_task(&clash).await }.boxed()).await);
}

/// Tasks are listed newest first, by creator, status and kind.
pub async fn tasks_are_filtered_and_paged(store: Arc<dyn Store>) {
    put(&*store, |tx| {
        async move {
            for number in 1..=5 {
                let kind = if number == 2 { ScheduleKind::Manual } else { ScheduleKind::Cron };
                let owner = if number > 3 { "ben" } else { "ana" };
                let row = TaskRow { kind, created_by: owner.to_owned(), ..task(number) };
                tx.orchestrator().insert_task(&row).await?;
            }
            Ok(())
        }
        .boxed()
    })
    .await;
    let list = |filter: TasksFilter, page: Page| {
        let store = Arc::clone(&store);
        async move {
            let found =
                ask(&*store, move |mut reads| async move { reads.tasks(&filter, page).await }.boxed()).await;
            let found = found.expect("readable");
            (found.items.iter().map(|(row, _)| row.id).collect::<Vec<_>>(), found.total)
        }
    };

    let ids = |numbers: &[u32]| numbers.iter().map(|number| task_id(*number)).collect::<Vec<_>>();
    let all = TasksFilter::default();
    assert_eq!(list(all.clone(), ALL).await, (ids(&[5, 4, 3, 2, 1]), 5));
    assert_eq!(list(all, Page { limit: 2, offset: 1 }).await, (ids(&[4, 3]), 5));
    let bens = TasksFilter { created_by: Some("ben".to_owned()), ..TasksFilter::default() };
    assert_eq!(list(bens, ALL).await, (ids(&[5, 4]), 2));
    let cron = TasksFilter {
        created_by: Some("ana".to_owned()),
        status: Some(TaskStatus::Active),
        kind: Some(ScheduleKind::Cron),
    };
    assert_eq!(list(cron, ALL).await, (ids(&[3, 1]), 2));
    let odd = TasksFilter { created_by: Some("a\0".to_owned()), ..TasksFilter::default() };
    assert_eq!(list(odd, ALL).await, (ids(&[]), 0));
}

/// Many schedulers at once: each due time becomes one run.
pub async fn a_due_time_is_fired_by_one_of_many(store: Arc<dyn Store>) {
    const TASKS: u32 = 40;
    put(&*store, |tx| {
        async move {
            for number in 1..=TASKS {
                tx.orchestrator().insert_task(&task(number)).await?;
                tx.orchestrator().set_due(task_id(number), Some(after(i64::from(number)))).await?;
            }
            Ok(())
        }
        .boxed()
    })
    .await;

    let fired = at_once(&store, 8, |store, number| async move {
        let mut fired = 0;
        for round in 0..20 {
            fired += put(&*store, move |tx| {
                async move {
                    let mut all = tx.orchestrator();
                    let due = all.due(after(1_000), 7).await?;
                    let moved: Vec<_> = due.iter().map(|due| (due.task, due.due_at, None)).collect();
                    all.move_due(&moved).await?;
                    let runs: Vec<NewRun> = (0..)
                        .zip(&due)
                        .map(|(at, due)| NewRun {
                            task: due.task,
                            ..new_run(10_000 * number + 100 * round + at)
                        })
                        .collect();
                    all.enqueue(&runs).await
                }
                .boxed()
            })
            .await;
        }
        fired
    })
    .await;

    assert_eq!(fired.iter().sum::<u64>(), u64::from(TASKS));
    let runs =
        ask(&*store, |mut reads| async move { reads.runs(&RunsFilter::default(), ALL).await }.boxed()).await;
    let tasks: HashSet<TaskId> = runs.expect("readable").items.iter().map(|run| run.task).collect();
    assert_eq!(tasks.len(), TASKS as usize);
}

/// The id of a due time's run keeps it from being there twice.
pub async fn a_run_lines_up_once(store: Arc<dyn Store>) {
    let due = NewRun { run: TaskRunId::of_due(NOW, &[7; 32]), ..new_run(1) };

    assert_eq!(line_up(&*store, vec![due.clone()]).await, 1);
    assert_eq!(line_up(&*store, vec![due.clone(), new_run(2)]).await, 1);
    let exists = ask(&*store, move |mut reads| async move { reads.run_exists(due.run).await }.boxed()).await;
    assert!(exists.expect("readable"));
}

/// Many workers at once: each run belongs to one.
pub async fn a_run_is_claimed_by_one_of_many(store: Arc<dyn Store>) {
    line_up(&*store, (1..=100).map(new_run).collect()).await;

    let claims = at_once(&store, 8, |store, _| async move {
        let mut mine = Vec::new();
        loop {
            let batch = claim(&*store, "w", 3).await;
            if batch.is_empty() {
                return mine;
            }
            mine.extend(batch.into_iter().map(|claimed| claimed.run));
        }
    })
    .await;

    let mut all: Vec<TaskRunId> = claims.into_iter().flatten().collect();
    all.sort();
    assert_eq!(all, (1..=100).map(run_id).collect::<Vec<_>>());
}

/// A smaller number goes first; one that has waited long enough goes before it.
pub async fn priorities_order_the_queue_and_starve_nobody(store: Arc<dyn Store>) {
    let at = |number: u32, priority: u8, seconds: i64| NewRun {
        priority,
        ready_at: after(seconds * 1_000_000),
        created_at: after(seconds * 1_000_000),
        ..new_run(number)
    };
    line_up(&*store, vec![at(1, 9, 0), at(2, 5, 0), at(3, 1, 0), at(4, 1, 481), at(5, 5, 1)]).await;

    let order: Vec<TaskRunId> = claim(&*store, "w", 10).await.iter().map(|claimed| claimed.run).collect();

    assert_eq!(order, [3, 2, 5, 1, 4].map(run_id));
}

/// What comes with an old fencing number changes nothing.
pub async fn a_late_finish_is_fenced_off(store: Arc<dyn Store>) {
    line_up(&*store, vec![new_run(1)]).await;
    put(&*store, |tx| async move { tx.orchestrator().enlist("old", NOW).await }.boxed()).await;
    let first = claim(&*store, "old", 1).await.remove(0);
    let freed =
        put(&*store, |tx| async move { tx.orchestrator().rescue("old", 0, 5, NOW).await }.boxed()).await;
    assert_eq!(freed, Some(1));
    let second = claim(&*store, "new", 1).await.remove(0);

    assert!(second.fence > first.fence);
    assert_eq!(finish(&*store, "old", vec![finished(first.clone(), TaskRunState::Failed)]).await, [false]);
    let held = put(&*store, move |tx| {
        async move {
            let mut all = tx.orchestrator();
            Ok((
                all.holds("old", first.run, first.fence).await?,
                all.suspend("old", &first, None, NOW).await?,
                all.holds("new", first.run, second.fence).await?,
            ))
        }
        .boxed()
    })
    .await;
    assert_eq!(held, (false, Suspended::Lost, true));
    assert_eq!(state_of(&*store, 1).await, Some(TaskRunState::Leased));
}

/// Whoever is not enlisted claims nothing: nobody watches it, so nobody would free what it holds.
pub async fn the_dead_claim_nothing(store: Arc<dyn Store>) {
    line_up(&*store, vec![new_run(1), new_run(2)]).await;
    assert_eq!(claim(&*store, "w", 1).await.len(), 1);
    let freed =
        put(&*store, |tx| async move { tx.orchestrator().rescue("w", 0, 5, NOW).await }.boxed()).await;
    assert_eq!(freed, Some(1));

    let none = put(&*store, |tx| async move { tx.orchestrator().claim("w", 2).await }.boxed()).await;

    assert_eq!(none, []);
    assert_eq!(state_of(&*store, 1).await, Some(TaskRunState::Queued));
}

/// A worker whose beat stands still loses its runs; one that lives keeps them; a run that kills workers ends.
pub async fn a_dead_workers_runs_are_rescued(store: Arc<dyn Store>) {
    line_up(&*store, vec![new_run(1), new_run(2)]).await;
    for round in 1..=3_u32 {
        put(&*store, |tx| async move { tx.orchestrator().enlist("w", NOW).await }.boxed()).await;
        let held = claim(&*store, "w", 10).await;
        let rescues: BTreeMap<TaskRunId, u32> = held.iter().map(|run| (run.run, run.rescues)).collect();
        // The second run is never begun, so it is never suspected.
        assert_eq!(rescues, BTreeMap::from([(run_id(1), round - 1), (run_id(2), 0)]));
        put(&*store, |tx| {
            async move {
                let mut all = tx.orchestrator();
                let fence = held.iter().find(|run| run.run == run_id(1)).expect("held").fence;
                all.begun("w", &[(run_id(1), fence, NOW)]).await?;
                assert!(all.beat("w", NOW).await?);
                Ok(())
            }
            .boxed()
        })
        .await;
        assert_eq!(state_of(&*store, 1).await, Some(TaskRunState::Running));
        assert_eq!(state_of(&*store, 2).await, Some(TaskRunState::Leased));
        let rescue = |beat| {
            put(&*store, move |tx| async move { tx.orchestrator().rescue("w", beat, 3, NOW).await }.boxed())
        };
        assert_eq!(rescue(0).await, None, "its beat has moved");
        assert_eq!(rescue(1).await, Some(2));
    }

    assert_eq!(state_of(&*store, 1).await, Some(TaskRunState::Failed));
    assert_eq!(state_of(&*store, 2).await, Some(TaskRunState::Queued));
    let alive = put(&*store, |tx| async move { tx.orchestrator().beat("w", NOW).await }.boxed()).await;
    assert!(!alive, "the dead learn that they are");
}

/// A run whose steps began once and that waits between them is not suspected because of workers that die before they go on with it.
pub async fn a_run_is_suspected_only_by_workers_that_went_on_with_it(store: Arc<dyn Store>) {
    line_up(&*store, vec![new_run(1)]).await;
    let first = claim(&*store, "w", 1).await.remove(0);
    put(&*store, |tx| {
        async move {
            let mut all = tx.orchestrator();
            all.begun("w", &[(first.run, first.fence, NOW)]).await?;
            assert_eq!(all.suspend("w", &first, Some(NOW), NOW).await?, Suspended::Waits);
            all.promote(after(1), 10).await
        }
        .boxed()
    })
    .await;
    // Dead before it went on; ended in order while it did; dead while it did, twice.
    let ends =
        [(false, Some(2), 0), (false, Some(2), 0), (true, None, 0), (true, Some(2), 0), (true, Some(2), 1)];
    for (begins, limit, rescues) in ends {
        assert_eq!(state_of(&*store, 1).await, Some(TaskRunState::Queued));
        let held = claim(&*store, "w", 1).await.remove(0);
        assert_eq!((held.rescues, held.started_at), (rescues, Some(NOW)));
        put(&*store, move |tx| {
            async move {
                let mut all = tx.orchestrator();
                if begins {
                    all.begun("w", &[(held.run, held.fence, after(2))]).await?;
                }
                all.discharge("w", limit, NOW).await
            }
            .boxed()
        })
        .await;
    }
    assert_eq!(state_of(&*store, 1).await, Some(TaskRunState::Failed));
}

/// A worker that was declared dead and lives is no reason to suspect what it had begun; one that nobody declared dead changes nothing.
pub async fn a_worker_that_comes_back_acquits_its_runs(store: Arc<dyn Store>) {
    line_up(&*store, vec![new_run(1)]).await;
    for (is_buried, comes_back, rescues) in [(true, false, 1), (true, true, 1), (false, true, 1)] {
        let held = claim(&*store, "w", 1).await.remove(0);
        put(&*store, move |tx| {
            async move {
                let mut all = tx.orchestrator();
                all.begun("w", &[(held.run, held.fence, NOW)]).await?;
                if is_buried {
                    assert_eq!(all.rescue("w", 0, 5, NOW).await?, Some(1));
                }
                if comes_back {
                    all.come_back("w", &[(held.run, held.fence)], NOW).await?;
                    assert!(all.beat("w", NOW).await?);
                }
                all.discharge("w", None, NOW).await
            }
            .boxed()
        })
        .await;
        let after = claim(&*store, "v", 1).await.remove(0);
        assert_eq!(after.rescues, rescues);
        put(&*store, move |tx| {
            async move { tx.orchestrator().give_back("v", &[(after.run, after.fence)]).await }.boxed()
        })
        .await;
    }
}

/// Another attempt lines up after its wait, in the same lineage.
pub async fn a_failed_run_is_tried_again(store: Arc<dyn Store>) {
    line_up(&*store, vec![new_run(1)]).await;
    let held = claim(&*store, "w", 1).await.remove(0);
    let retry = Some(Retry { run: run_id(2), ready_at: after(3_000_000) });
    put(&*store, |tx| {
        async move { tx.orchestrator().put_step(run_id(1), 0, &json!({ "done": true }), NOW).await }.boxed()
    })
    .await;

    assert_eq!(
        finish(&*store, "w", vec![Finished { retry, ..finished(held, TaskRunState::Failed) }]).await,
        [true]
    );
    assert_eq!(state_of(&*store, 1).await, Some(TaskRunState::Failed));
    assert_eq!(state_of(&*store, 2).await, Some(TaskRunState::Queued));
    assert!(claim(&*store, "w", 1).await.is_empty());
    let promote = |micros| {
        put(&*store, move |tx| async move { tx.orchestrator().promote(after(micros), 10).await }.boxed())
    };
    assert_eq!(promote(2_999_999).await, 0);
    let delayed = ask(&*store, |mut reads| async move { reads.first_delayed().await }.boxed()).await;
    assert_eq!(delayed.expect("readable"), Some(after(3_000_000)));
    assert_eq!(promote(3_000_000).await, 1);
    let again = claim(&*store, "w", 1).await.remove(0);
    assert_eq!((again.run, again.lineage, again.attempt), (run_id(2), run_id(1), 2));
    let steps = |store: Arc<dyn Store>| async move {
        ask(&*store, |mut reads| async move { reads.steps(run_id(1)).await }.boxed()).await.expect("readable")
    };
    assert_eq!(steps(Arc::clone(&store)).await, [(0, json!({ "done": true }))]);
    assert_eq!(finish(&*store, "w", vec![finished(again, TaskRunState::Succeeded)]).await, [true]);
    assert_eq!(steps(store).await, []);
}

/// Nobody would tell a run that waits that it shall end: giving it back ends it.
pub async fn a_run_that_was_cancelled_does_not_wait(store: Arc<dyn Store>) {
    line_up(&*store, vec![NewRun { concurrency_key: Some("robot".to_owned()), ..new_run(1) }]).await;
    line_up(&*store, vec![NewRun { concurrency_key: Some("robot".to_owned()), ..new_run(2) }]).await;
    let held = claim(&*store, "w", 1).await.remove(0);
    let suspended = put(&*store, |tx| {
        async move {
            let mut all = tx.orchestrator();
            assert_eq!(all.cancel(run_id(1), "not wanted", NOW).await?, Some(false));
            all.suspend("w", &held, Some(after(600_000_000)), after(1)).await
        }
        .boxed()
    });

    assert_eq!(suspended.await, Suspended::Cancelled);
    let run = ask(&*store, |mut reads| async move { reads.run(run_id(1)).await }.boxed()).await;
    let run = run.expect("readable").expect("a run");
    assert_eq!((run.state, run.error.as_deref()), (TaskRunState::Cancelled, Some("not wanted")));
    assert_eq!(claim(&*store, "w", 1).await[0].run, run_id(2));
}

/// One at a time for each key, while many work at many; and everybody's turn comes.
pub async fn a_concurrency_key_is_held_by_one_run(store: Arc<dyn Store>) {
    let runs = (1..=120).map(|number| NewRun {
        concurrency_key: (number % 4 > 0).then(|| format!("key-{}", number % 4)),
        owner: if number % 8 > 3 { "ana" } else { "ben" }.to_owned(),
        ..new_run(number)
    });
    let inside: Arc<Mutex<HashSet<String>>> = Arc::default();
    let runs: Vec<NewRun> = runs.collect();
    let (first, rest) = runs.split_at(40);
    line_up(&*store, first.to_vec()).await;
    let rest: Vec<Vec<NewRun>> = rest.chunks(10).map(<[NewRun]>::to_vec).collect();

    let done = at_once(&store, 8, |store, number| {
        let (inside, more) = (Arc::clone(&inside), rest[number as usize].clone());
        async move {
            line_up(&*store, more).await;
            let mut done = 0;
            let mut idle = 0;
            while idle < 200 {
                let held = claim(&*store, "w", 2).await;
                idle = if held.is_empty() { idle + 1 } else { 0 };
                for run in &held {
                    if let Some(key) = &run.stored_key {
                        assert!(inside.lock().expect("no panic").insert(key.clone()), "{key} is held twice");
                    }
                }
                tokio::task::yield_now().await;
                for run in &held {
                    if let Some(key) = &run.stored_key {
                        inside.lock().expect("no panic").remove(key);
                    }
                }
                done += held.len();
                let ends: Vec<Finished> =
                    held.into_iter().map(|run| finished(run, TaskRunState::Succeeded)).collect();
                assert!(finish(&*store, "w", ends).await.iter().all(|own| *own));
                let left = ask(&*store, |mut reads| async move { reads.queue_depth().await }.boxed()).await;
                if left.expect("readable").is_empty() {
                    break;
                }
            }
            done
        }
    })
    .await;

    assert_eq!(done.iter().sum::<usize>(), 120);
}

/// Pausing, snoozing and cancelling reach what waits, and tell what runs.
pub async fn waiting_runs_are_held_delayed_and_withdrawn(store: Arc<dyn Store>) {
    let keyed = |number| NewRun { concurrency_key: Some("k".to_owned()), ..new_run(number) };
    line_up(&*store, vec![keyed(1), keyed(2), new_run(3), NewRun { task: task_id(2), ..keyed(4) }]).await;

    let held = put(&*store, |tx| async move { tx.orchestrator().hold(task_id(1)).await }.boxed()).await;
    assert_eq!(held, 3);
    let others = claim(&*store, "w", 10).await;
    assert_eq!(
        others.iter().map(|run| run.run).collect::<Vec<_>>(),
        [run_id(4)],
        "the key went to another task"
    );
    finish(&*store, "w", vec![finished(others[0].clone(), TaskRunState::Succeeded)]).await;
    put(&*store, |tx| {
        async move {
            assert_eq!(tx.orchestrator().unhold(task_id(1)).await?, 3);
            tx.orchestrator().promote(NOW, 10).await
        }
        .boxed()
    })
    .await;
    let running = claim(&*store, "w", 10).await;
    assert_eq!(running.iter().map(|run| run.run).collect::<Vec<_>>(), [run_id(1), run_id(3)]);

    let delayed = put(&*store, |tx| {
        async move { tx.orchestrator().delay(task_id(1), 60_000_000, after(5)).await }.boxed()
    })
    .await;
    assert_eq!(delayed, 1);
    let removed =
        put(&*store, |tx| async move { tx.orchestrator().withdraw(task_id(1), "enough", NOW).await }.boxed())
            .await;
    assert_eq!(removed.removed, 1);
    assert_eq!(removed.told.into_iter().collect::<HashSet<_>>(), HashSet::from([run_id(1), run_id(3)]));
    assert_eq!(state_of(&*store, 2).await, Some(TaskRunState::Cancelled));
    let told =
        ask(&*store, |mut reads| async move { reads.cancelled("w").await }.boxed()).await.expect("readable");
    assert_eq!(told.len(), 2);
    put(&*store, |tx| async move { tx.orchestrator().discharge("w", Some(5), NOW).await }.boxed()).await;
    assert_eq!(
        state_of(&*store, 1).await,
        Some(TaskRunState::Cancelled),
        "nobody takes up what was cancelled"
    );
}

/// Runs in the queue and runs that are over are one list.
pub async fn every_run_is_listed_once_newest_first(store: Arc<dyn Store>) {
    line_up(&*store, (1..=4).map(new_run).collect()).await;
    line_up(&*store, vec![NewRun { task: task_id(2), owner: "ben".to_owned(), ..new_run(5) }]).await;
    let held = claim(&*store, "w", 3).await;
    let ends = vec![
        finished(held[0].clone(), TaskRunState::Succeeded),
        finished(held[1].clone(), TaskRunState::Failed),
        finished(held[2].clone(), TaskRunState::Uncertain),
    ];
    finish(&*store, "w", ends).await;
    let list = |filter: RunsFilter, page: Page| {
        let store = Arc::clone(&store);
        async move {
            let found =
                ask(&*store, move |mut reads| async move { reads.runs(&filter, page).await }.boxed()).await;
            let found = found.expect("readable");
            (found.items.iter().map(|row| row.id).collect::<Vec<_>>(), found.total)
        }
    };

    let ids = |numbers: &[u32]| numbers.iter().map(|number| run_id(*number)).collect::<Vec<_>>();
    assert_eq!(list(RunsFilter::default(), ALL).await, (ids(&[5, 4, 3, 2, 1]), 5));
    assert_eq!(list(RunsFilter::default(), Page { limit: 2, offset: 1 }).await, (ids(&[4, 3]), 5));
    let only = |success| RunsFilter { success: Some(success), ..RunsFilter::default() };
    assert_eq!(list(only(true), ALL).await, (ids(&[1]), 1));
    assert_eq!(list(only(false), ALL).await, (ids(&[2]), 1));
    let bens = RunsFilter { owner: Some("ben".to_owned()), ..RunsFilter::default() };
    assert_eq!(list(bens, ALL).await, (ids(&[5]), 1));
    let first = RunsFilter {
        task: Some(task_id(1)),
        since: Some(NOW),
        until: Some(after(1)),
        ..RunsFilter::default()
    };
    assert_eq!(list(first, ALL).await, (ids(&[4, 3, 2, 1]), 4));
    let waiting = RunsFilter { state: Some(TaskRunState::Queued), ..RunsFilter::default() };
    assert_eq!(list(waiting, ALL).await, (ids(&[5, 4]), 2));
    let one =
        ask(&*store, |mut reads| async move { reads.run(run_id(1)).await }.boxed()).await.expect("readable");
    assert_eq!(one.expect("there").output, Some(json!({ "steps": {} })));
    let figures =
        ask(&*store, |mut reads| async move { reads.run_figures(Some("ana"), None, NOW).await }.boxed())
            .await;
    let figures = figures.expect("readable");
    assert_eq!(
        (figures.total, figures.tasks, figures.succeeded, figures.failed, figures.micros),
        (3, 1, 1, 1, 3_000_000)
    );
    let empty =
        ask(&*store, |mut reads| async move { reads.run_figures(None, Some(task_id(9)), NOW).await }.boxed())
            .await
            .expect("readable");
    assert_eq!((empty.total, empty.last), (0, None));
}

fn event(number: u32, topic: &str) -> EventRow {
    EventRow {
        id: EventId::from_bytes(*task_id(number).as_bytes()),
        position: StreamId::default(),
        topic: topic.to_owned(),
        payload: json!({ "number": number }),
        source: if number.is_multiple_of(2) { "ana" } else { "ben" }.to_owned(),
        published_by: "ana".to_owned(),
        published_at: after(i64::from(number % 3) * 1_000),
    }
}

/// Positions rise in the order of commits, so that whoever reads on misses nothing.
pub async fn a_reader_of_events_misses_nothing(store: Arc<dyn Store>) {
    let reading = tokio::spawn({
        let store = Arc::clone(&store);
        async move {
            let (mut seen, mut after) = (Vec::new(), StreamId::default());
            while seen.len() < 80 {
                let more =
                    ask(&*store, move |mut reads| async move { reads.events_after(after, 7).await }.boxed())
                        .await;
                for event in more.expect("readable") {
                    assert!(event.position > after);
                    after = event.position;
                    seen.push(event.id);
                }
            }
            seen
        }
    });
    at_once(&store, 8, |store, writer| async move {
        for number in 0..10 {
            let event = event(writer * 10 + number, "t");
            put(&*store, |tx| async move { tx.orchestrator().publish(&event).await }.boxed()).await;
        }
    })
    .await;

    let seen =
        tokio::time::timeout(Duration::from_secs(20), reading).await.expect("in time").expect("no panic");
    assert_eq!(seen.iter().collect::<HashSet<_>>().len(), 80);
    let recent = ask(&*store, |mut reads| {
        async move { Ok((reads.recent_events(None, 3).await?, reads.recent_events(Some("ben"), 100).await?)) }
            .boxed()
    })
    .await
    .expect("readable");
    assert_eq!(
        recent.0.iter().map(|event| event.id).collect::<Vec<_>>(),
        seen.iter().rev().take(3).copied().collect::<Vec<_>>()
    );
    assert_eq!(recent.1.len(), 40);
}

/// Tasks that wait for a topic are found; so are conditions; and an event that a run needs is kept.
pub async fn an_event_finds_its_listeners_and_is_kept_for_their_runs(store: Arc<dyn Store>) {
    let listening =
        |number, kind, topic: &str| TaskRow { kind, expression: Some(topic.to_owned()), ..task(number) };
    put(&*store, move |tx| {
        async move {
            let mut all = tx.orchestrator();
            all.insert_task(&listening(1, ScheduleKind::Event, "plate.read")).await?;
            all.insert_task(&listening(2, ScheduleKind::Event, "other")).await?;
            all.insert_task(&listening(3, ScheduleKind::Condition, "event.payload.od > `1`")).await?;
            let paused =
                TaskRow { status: TaskStatus::Paused, ..listening(4, ScheduleKind::Event, "plate.read") };
            all.insert_task(&paused).await?;
            let found: Vec<TaskId> = all.listeners("plate.read").await?.iter().map(|task| task.id).collect();
            assert_eq!(found, [1, 3].map(task_id));
            all.publish(&event(1, "plate.read")).await?;
            all.publish(&event(2, "plate.read")).await?;
            let run = NewRun { event: Some(event(1, "").id), trigger: Trigger::Event, ..new_run(1) };
            all.enqueue(&[run]).await
        }
        .boxed()
    })
    .await;

    let topics =
        ask(&*store, |mut reads| async move { reads.topics(None).await }.boxed()).await.expect("readable");
    assert_eq!(topics.iter().map(|topic| topic.topic.as_str()).collect::<Vec<_>>(), ["other", "plate.read"]);
    let deleted = put(&*store, |tx| {
        async move { tx.orchestrator().delete_events(after(60_000_000), 10).await }.boxed()
    })
    .await;
    assert_eq!(deleted, 1);
    let kept = ask(&*store, |mut reads| async move { reads.event(event(1, "").id).await }.boxed()).await;
    assert_eq!(kept.expect("readable").expect("kept").payload, json!({ "number": 1 }));
}

/// One trigger in each window, whoever asks.
pub async fn a_window_admits_one_trigger(store: Arc<dyn Store>) {
    put(&*store, |tx| async move { tx.orchestrator().insert_task(&task(1)).await }.boxed()).await;
    let trigger = |window, micros| {
        put(&*store, move |tx| {
            async move { tx.orchestrator().trigger(task_id(1), window, after(micros)).await }.boxed()
        })
    };

    assert!(trigger(0, 0).await);
    assert!(trigger(10, 0).await);
    assert!(!trigger(10, 9_999_999).await);
    assert!(trigger(10, 10_000_000).await);
    let admitted = at_once(&store, 8, |store, _| async move {
        put(&*store, |tx| {
            async move { tx.orchestrator().trigger(task_id(1), 10, after(30_000_000)).await }.boxed()
        })
        .await
    })
    .await;
    assert_eq!(admitted.iter().filter(|admitted| **admitted).count(), 1);
}

fn question(number: u32) -> NewApproval {
    NewApproval {
        id: ApprovalId::from_bytes(*task_id(number).as_bytes()),
        lineage: run_id(1),
        run: run_id(1),
        task: task_id(1),
        step: format!("step-{number}"),
        requester: "ana".to_owned(),
        digest: [3; 32],
        subject: json!({ "well": "A1" }),
        reason: "it moves".to_owned(),
        created_at: NOW,
        expires_at: after(60_000_000),
        approvers: 1,
    }
}

/// The first of two words is kept once, decides nothing, and stays beside the second.
pub async fn the_first_of_two_words_is_kept_once(store: Arc<dyn Store>) {
    line_up(&*store, vec![new_run(1)]).await;
    let held = claim(&*store, "w", 1).await.remove(0);
    put(&*store, |tx| {
        async move {
            let mut all = tx.orchestrator();
            assert!(all.ask(&NewApproval { approvers: 2, ..question(1) }).await?);
            assert_eq!(all.suspend("w", &held, None, NOW).await?, Suspended::Waits);
            Ok(())
        }
        .boxed()
    })
    .await;

    let kept = at_once(&store, 6, |store, number| async move {
        put(&*store, move |tx| {
            async move {
                let by = format!("person {number}");
                tx.orchestrator().second(question(1).id, None, &by, NOW).await
            }
            .boxed()
        })
        .await
    })
    .await;

    assert_eq!(kept.iter().filter(|kept| **kept).count(), 1);
    let found = ask(&*store, |mut reads| async move { reads.approval(question(1).id).await }.boxed()).await;
    let row = found.expect("readable").expect("a question");
    assert_eq!((row.state, row.asked.approvers, row.decided_by), (ApprovalState::Pending, 2, None));
    let (first, at) = row.first.expect("a first word");
    assert!(first.starts_with("person ") && at == NOW, "{first}");
    assert_eq!(state_of(&*store, 1).await, Some(TaskRunState::WaitingForApproval));
    put(&*store, |tx| {
        async move {
            let mut all = tx.orchestrator();
            assert!(!all.second(question(1).id, Some("nobody"), "cal", NOW).await?, "it is another's");
            assert!(all.second(question(1).id, Some(&first), "ana", NOW).await?);
            assert!(all.second(question(1).id, Some("ana"), &first, NOW).await?);
            assert!(all.decide(&question(1), ApprovalState::Approved, "ben", None, NOW).await?);
            assert!(!all.second(question(1).id, Some(&first), "cal", NOW).await?, "it is decided");
            let row = all.approval(question(1).id).await?.expect("a question");
            assert_eq!((row.first.map(|(by, _)| by), row.decided_by.as_deref()), (Some(first), Some("ben")));
            Ok(())
        }
        .boxed()
    })
    .await;
}

/// A question is answered once, its answer is used once, and the run that waited goes on.
pub async fn an_approval_is_decided_once_and_used_once(store: Arc<dyn Store>) {
    line_up(&*store, vec![new_run(1)]).await;
    let held = claim(&*store, "w", 1).await.remove(0);
    put(&*store, |tx| {
        async move {
            let mut all = tx.orchestrator();
            assert!(all.ask(&question(1)).await?);
            assert!(!all.ask(&NewApproval { id: question(2).id, ..question(1) }).await?);
            assert!(all.ask(&question(3)).await?);
            assert_eq!(all.suspend("w", &held, None, NOW).await?, Suspended::Waits);
            Ok(())
        }
        .boxed()
    })
    .await;
    assert_eq!(state_of(&*store, 1).await, Some(TaskRunState::WaitingForApproval));

    let decided = at_once(&store, 6, |store, number| async move {
        let state = if number.is_multiple_of(2) { ApprovalState::Approved } else { ApprovalState::Denied };
        put(&*store, move |tx| {
            async move {
                    tx.orchestrator().decide(&question(1), state, "ben", Some("looked at it"), NOW).await
                }
                .boxed()
        })
        .await
    })
    .await;
    assert_eq!(decided.iter().filter(|decided| **decided).count(), 1);
    assert_eq!(state_of(&*store, 1).await, Some(TaskRunState::Queued));
    put(&*store, |tx| {
        async move {
            let mut all = tx.orchestrator();
            assert!(all.decide(&question(3), ApprovalState::Approved, "ben", None, NOW).await?);
            let id = question(3).id;
            assert!(!all.use_approval(id, run_id(2), NOW).await?, "it is for another run");
            assert!(!all.use_approval(id, run_id(1), after(60_000_000)).await?, "it is too old");
            assert!(all.use_approval(id, run_id(1), NOW).await?);
            assert!(!all.use_approval(id, run_id(1), NOW).await?, "it was used");
            assert!(all.ask(&question(4)).await?);
            assert_eq!(all.expire_approvals(after(59_999_999), 10).await?, 0);
            assert_eq!(all.expire_approvals(after(60_000_000), 10).await?, 1);
            Ok(())
        }
        .boxed()
    })
    .await;
    let rows =
        ask(&*store, |mut reads| async move { reads.approvals(None, Some("ana"), ALL).await }.boxed()).await;
    let states: Vec<ApprovalState> =
        rows.expect("readable").items.iter().rev().map(|row| row.state).collect();
    assert_eq!(states[1..], [ApprovalState::Used, ApprovalState::Expired]);
}

/// A request that is repeated under its key gets its first answer until that expires.
pub async fn an_answer_is_kept_under_its_key(store: Arc<dyn Store>) {
    let keep = |digest: [u8; 32], answer: &'static str, now: Timestamp| {
        put(&*store, move |tx| {
            async move {
                let times = (now, now.plus(Duration::from_secs(10)));
                tx.orchestrator().keep_answer("ana", "k", &digest, answer, times).await
            }
            .boxed()
        })
    };
    let kept =
        |now| ask(&*store, move |mut reads| async move { reads.answer("ana", "k", now).await }.boxed());

    assert!(keep([1; 32], "first", NOW).await);
    assert!(!keep([2; 32], "second", NOW).await);
    assert_eq!(kept(NOW).await.expect("readable"), Some(([1; 32], "first".to_owned())));
    assert_eq!(kept(after(10_000_001)).await.expect("readable"), None);
    assert!(keep([2; 32], "second", after(10_000_001)).await);
}

/// Old runs go a batch at a time, the oldest first.
pub async fn old_runs_are_deleted_in_batches(store: Arc<dyn Store>) {
    line_up(&*store, (1..=5).map(new_run).collect()).await;
    let ends = claim(&*store, "w", 5).await.into_iter().zip(1..).map(|(run, number)| Finished {
        finished_at: after(number * 10),
        ..finished(run, TaskRunState::Succeeded)
    });
    finish(&*store, "w", ends.collect()).await;
    let delete = |limit| {
        put(&*store, move |tx| async move { tx.orchestrator().delete_runs(after(40), limit).await }.boxed())
    };

    assert_eq!(delete(2).await, 2);
    assert_eq!(delete(2).await, 1);
    assert_eq!(delete(2).await, 0);
    assert_eq!(state_of(&*store, 3).await, None);
    assert_eq!(state_of(&*store, 4).await, Some(TaskRunState::Succeeded));
}
