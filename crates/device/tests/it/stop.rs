//! The emergency stop, in every state a device can be in.

use std::time::Duration;

use interlock_device::{Host, ReleaseError};
use interlock_model::device::{Journaled, NotStarted, Outcome, Rung};

use crate::lab::{CHILDREN, Lab, bounded, call, drain, eventually, lives, rungs, spawn, standby_is_ready};

const STOPPED: Outcome = Outcome::NotStarted { reason: NotStarted::EmergencyStop };

#[tokio::test]
async fn a_stop_kills_the_running_call_and_brings_the_device_to_rest() {
    for action in ["spin", "deaf", "wait"] {
        let lab = Lab::new("");
        let host = lab.start().await;
        standby_is_ready(&host).await;
        let mut events = host.events();
        let pid = host.status().worker.pid.unwrap();
        let running = call(action);
        let run = running.run;
        let running = spawn(&host, running);
        lab.noted(action).await;
        let waiting = spawn(&host, call("echo"));
        eventually("queued", || host.status().queued == 1).await;

        let report = bounded(host.emergency_stop("mo", Some("smoke"))).await;

        assert!(report.confirmed, "{action}: {report:?}");
        assert_eq!((report.safe_state.as_str(), report.error), ("done", None), "{action}");
        assert_eq!(report.cancelled_run, Some(run), "{action}");
        assert!(report.killed_ms <= report.safe_state_entered_ms, "{action}");
        assert!(report.safe_state_entered_ms <= report.safe_state_done_ms, "{action}");
        assert!(!lives(pid), "{action}");
        assert_eq!(bounded(running).await.unwrap(), Outcome::Cancelled { rung: Rung::Kill }, "{action}");
        assert_eq!(bounded(waiting).await.unwrap(), STOPPED, "{action}");
        assert_eq!(lab.notes(), ["start", action, "start", "rest emergency_stop"]);
        assert_eq!(
            rungs(&drain(&mut events)),
            [(Rung::Kill, "done"), (Rung::Restart, "done"), (Rung::SafeState, "done")],
            "{action}"
        );
        let status = host.status();
        assert_eq!(status.state, "stopped");
        assert_eq!(status.emergency_stop.by.as_deref(), Some("mo"));
        assert_eq!(status.attention, None);
        assert_eq!(bounded(host.call(call("echo"))).await, STOPPED, "{action}");

        bounded(host.release("ada", "checked")).await.unwrap();
        assert_eq!(host.status().state, "ready");
        assert!(matches!(bounded(host.call(call("echo"))).await, Outcome::Returned { .. }), "{action}");
    }
}

#[tokio::test]
async fn a_stop_of_an_idle_device_runs_the_hook_and_a_second_one_does_so_again() {
    let lab = Lab::new("");
    let host = lab.start().await;

    let first = bounded(host.emergency_stop("mo", None)).await;
    let pid = host.status().worker.pid;
    let second = bounded(host.emergency_stop("ada", Some("again"))).await;

    for report in [&first, &second] {
        assert!(report.confirmed, "{report:?}");
        assert_eq!(report.cancelled_run, None);
    }
    assert_ne!(host.status().worker.pid, pid);
    assert_eq!(lab.count("rest emergency_stop"), 2);
    assert_eq!(host.status().emergency_stop.by.as_deref(), Some("mo"), "the first one is kept");
}

#[tokio::test]
async fn everyone_who_stops_at_once_gets_an_answer_and_the_hook_runs_undisturbed() {
    let lab = Lab::new("@safe_state\ndef slow(reason):\n    time.sleep(0.3)\n    note('slow done')\n");
    let host = lab.start().await;
    standby_is_ready(&host).await;
    let running = spawn(&host, call("spin"));
    lab.noted("spin").await;

    let stops: Vec<_> = (0..10)
        .map(|_| {
            let host = host.clone();
            tokio::spawn(async move { host.emergency_stop("mo", None).await })
        })
        .collect();
    lab.noted("rest emergency_stop").await;
    let late = bounded(host.emergency_stop("late", None)).await;

    for stop in stops {
        let report = bounded(stop).await.unwrap();
        assert!(report.confirmed, "{report:?}");
    }
    assert!(late.confirmed, "{late:?}");
    assert_eq!(lab.count("slow done"), 1);
    assert_eq!(bounded(running).await.unwrap(), Outcome::Cancelled { rung: Rung::Kill });
}

#[tokio::test]
async fn a_stop_survives_a_restart_and_nothing_is_started_until_the_release() {
    let lab = Lab::new("");
    let host = lab.start().await;
    bounded(host.emergency_stop("mo", Some("smoke"))).await;
    bounded(host.shutdown(Duration::ZERO)).await;
    let before = lab.notes();

    let host = lab.start().await;

    assert_eq!(host.status().state, "stopped");
    assert_eq!(host.status().emergency_stop.reason.as_deref(), Some("smoke"));
    assert_eq!(bounded(host.call(call("echo"))).await, STOPPED);
    assert_eq!(lab.notes(), before, "the start hook may move the device");
    bounded(host.release("ada", "checked")).await.unwrap();
    assert!(matches!(bounded(host.call(call("echo"))).await, Outcome::Returned { .. }));
    bounded(host.shutdown(Duration::ZERO)).await;
    assert_eq!(lab.start().await.status().state, "ready");
}

#[tokio::test]
async fn a_stop_works_while_the_worker_is_being_loaded() {
    let lab = Lab::new(
        "if os.path.exists(os.path.join(LAB, 'slow')) and not os.path.exists(os.path.join(LAB, 'loading')):\n    \
         note('loading')\n    open(os.path.join(LAB, 'loading'), 'w').close()\n    time.sleep(600)\n\
         @task\ndef die():\n    os._exit(1)\n",
    );
    let mut lab = lab;
    lab.config.standby = false;
    lab.config.ladder.safe_state = Duration::from_millis(200);
    let host = lab.start().await;
    std::fs::write(lab.path("slow"), "").unwrap();
    let dying = spawn(&host, call("die"));
    lab.noted("loading").await;

    let report = bounded(host.emergency_stop("mo", None)).await;

    // The process that was loading was to run the hook: it is not killed, but it hangs, and that is said.
    assert!(report.killed_ms.is_some(), "{report:?}");
    assert!(!report.confirmed, "{report:?}");
    assert_eq!(host.status().state, "stopped");
    drop(dying);
}

#[tokio::test]
async fn a_stop_kills_a_start_hook_that_hangs() {
    let mut lab = Lab::new(
        "@on_start\ndef hang():\n    if os.path.exists(os.path.join(LAB, 'slow')):\n        \
         os.remove(os.path.join(LAB, 'slow'))\n        note('hanging')\n        time.sleep(600)\n",
    );
    lab.config.standby = false;
    let host = lab.start().await;
    bounded(host.emergency_stop("mo", None)).await;
    bounded(host.shutdown(Duration::ZERO)).await;
    let host = lab.start().await;
    std::fs::write(lab.path("slow"), "").unwrap();
    let releaser = host.clone();
    let release = tokio::spawn(async move { releaser.release("ada", "checked").await });
    lab.noted("hanging").await;

    let report = bounded(host.emergency_stop("mo", None)).await;

    assert!(report.confirmed, "{report:?}");
    assert!(matches!(bounded(release).await.unwrap(), Err(ReleaseError::StoppedAgain)));
}

#[tokio::test]
async fn a_hook_that_fails_or_hangs_is_told_and_holds_the_device_after_the_release() {
    for (hook, word) in [("raise RuntimeError('jammed')", "RuntimeError"), ("time.sleep(600)", "did not end")]
    {
        let mut lab = Lab::new(&format!("@safe_state\ndef bad(reason):\n    {hook}\n"));
        lab.config.ladder.safe_state = Duration::from_millis(500);
        lab.config.start_deadline = Duration::from_millis(500);
        let host = lab.start().await;
        standby_is_ready(&host).await;
        let running = spawn(&host, call("spin"));
        lab.noted("spin").await;

        let report = bounded(host.emergency_stop("mo", None)).await;

        assert!(!report.confirmed, "{report:?}");
        assert_eq!(report.safe_state, "failed");
        assert!(report.killed_ms.is_some() && report.safe_state_entered_ms.is_some(), "{report:?}");
        assert!(report.error.as_ref().is_some_and(|error| error.contains(word)), "{report:?}");
        assert_eq!(bounded(running).await.unwrap(), Outcome::Cancelled { rung: Rung::Kill });
        bounded(host.release("ada", "checked")).await.unwrap();
        assert_eq!(host.status().state, "held");
        let refused = Outcome::NotStarted { reason: NotStarted::NeedsAttention };
        assert_eq!(bounded(host.call(call("echo"))).await, refused);
        bounded(host.clear_attention("ada", "looked")).await.unwrap();
        assert!(matches!(bounded(host.call(call("echo"))).await, Outcome::Returned { .. }));
    }
}

#[tokio::test]
async fn a_stop_without_a_hook_is_confirmed_by_the_kill_alone() {
    let lab = Lab::with_file(
        "from interlock import task\nimport os\n@task\ndef spin():\n    \
         open(os.path.join(os.environ['LAB'], 'notes'), 'w').write('spin\\n')\n    while True: pass\n",
    );
    let host = lab.start().await;
    let running = spawn(&host, call("spin"));
    lab.noted("spin").await;

    let report = bounded(host.emergency_stop("mo", None)).await;

    assert!(report.confirmed && report.killed_ms.is_some(), "{report:?}");
    assert_eq!((report.safe_state.as_str(), report.safe_state_done_ms), ("none", None));
    assert_eq!(bounded(running).await.unwrap(), Outcome::Cancelled { rung: Rung::Kill });
    bounded(host.release("ada", "checked")).await.unwrap();
    assert_eq!(host.status().state, "ready");
}

#[tokio::test]
async fn what_the_action_started_dies_with_it() {
    let lab = Lab::new(CHILDREN);
    let host = lab.start().await;
    let running = spawn(&host, call("children"));
    let children = lab.children().await;

    bounded(host.emergency_stop("mo", None)).await;

    eventually("the children's death", || !children.iter().any(|child| lives(*child))).await;
    bounded(running).await.unwrap();
}

#[tokio::test]
async fn a_call_that_ended_in_the_same_moment_keeps_its_own_end() {
    // A stop that races with the end of calls: whatever was told is what the journal says, and nothing is told twice.
    let lab = Lab::new("");
    let host = lab.start().await;
    for _ in 0..10 {
        standby_is_ready(&host).await;
        let echo = call("echo");
        let run = echo.run;
        let echo = spawn(&host, echo);
        tokio::task::yield_now().await;

        bounded(host.emergency_stop("mo", None)).await;

        let outcome = bounded(echo).await.unwrap();
        match &outcome {
            Outcome::NotStarted { .. } => {
                eventually("known", || host.journaled(&run) != Journaled::Started).await;
            }
            Outcome::Returned { .. } | Outcome::Cancelled { rung: Rung::Kill } => {
                assert_eq!(host.journaled(&run), Journaled::Finished(outcome.clone()));
            }
            other => panic!("{other:?}"),
        }
        bounded(host.release("ada", "next")).await.unwrap();
    }
}

#[tokio::test]
async fn the_very_first_start_can_be_stopped() {
    let lab = Lab::new(
        "@on_start\ndef home():\n    if not os.path.exists(os.path.join(LAB, 'homed')):\n        \
         open(os.path.join(LAB, 'homed'), 'w').close()\n        note('homing')\n        time.sleep(600)\n",
    );
    let (host, starting) = bounded(Host::open(lab.config.clone())).await.unwrap();
    lab.noted("homing").await;

    let report = bounded(host.emergency_stop("mo", None)).await;

    assert!(report.confirmed, "{report:?}");
    assert_eq!(lab.notes(), ["start", "homing", "start", "rest emergency_stop"]);
    bounded(starting.ready()).await.unwrap();
    assert_eq!(host.status().state, "stopped");
    bounded(host.release("ada", "checked")).await.unwrap();
    assert!(matches!(bounded(host.call(call("echo"))).await, Outcome::Returned { .. }));
}

#[tokio::test]
async fn a_second_stop_kills_a_hook_that_has_had_its_time() {
    let mut lab = Lab::new("@safe_state\ndef hangs(reason):\n    note('hangs')\n    time.sleep(600)\n");
    lab.config.ladder.safe_state = Duration::from_millis(200);
    let host = lab.start().await;
    standby_is_ready(&host).await;
    let first = host.clone();
    let first = tokio::spawn(async move { first.emergency_stop("mo", None).await });
    lab.noted("hangs").await;
    let pid = host.status().worker.pid.unwrap();
    tokio::time::sleep(Duration::from_millis(250)).await;

    let second = bounded(host.emergency_stop("ada", None)).await;

    for report in [bounded(first).await.unwrap(), second] {
        assert!(!report.confirmed && report.killed_ms.is_some(), "{report:?}");
        assert!(report.error.as_ref().is_some_and(|error| error.contains("stopped again")), "{report:?}");
    }
    assert!(!lives(pid));
    assert!(host.status().attention.unwrap().held);
}
