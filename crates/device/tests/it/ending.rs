//! Calls that do not end by themselves: the cancel ladder and the deadline.

use std::time::Duration;

use interlock_model::device::{NotStarted, Outcome, Rung};

use crate::lab::{Lab, bounded, call, drain, eventually, lives, rungs, spawn, standby_is_ready};

#[tokio::test]
async fn a_checkpoint_ends_a_cancelled_call_and_the_same_worker_goes_to_rest() {
    let lab = Lab::new("");
    let host = lab.start().await;
    let mut events = host.events();
    let call = call("wait");
    let run = call.run;
    let waiting = spawn(&host, call);
    lab.noted("wait").await;

    assert!(host.cancel(&run, "enough"));

    assert_eq!(bounded(waiting).await.unwrap(), Outcome::Cancelled { rung: Rung::Checkpoint });
    assert_eq!(lab.notes(), ["start", "wait", "rest cancelled"]);
    let events = drain(&mut events);
    let expected = [(Rung::Checkpoint, "asked"), (Rung::Checkpoint, "done"), (Rung::SafeState, "done")];
    assert_eq!(rungs(&events), expected);
    assert_eq!(host.status().attention, None);
    assert_eq!(host.status().worker.restarts, 0);
}

#[tokio::test]
async fn an_interrupt_ends_a_call_that_reaches_no_checkpoint() {
    let lab = Lab::new("");
    let host = lab.start().await;
    let call = call("spin");
    let run = call.run;
    let spinning = spawn(&host, call);
    lab.noted("spin").await;

    assert!(host.cancel(&run, "enough"));

    assert_eq!(bounded(spinning).await.unwrap(), Outcome::Cancelled { rung: Rung::Interrupt });
    assert_eq!(lab.notes(), ["start", "spin", "rest cancelled"]);
    assert_eq!(host.status().worker.restarts, 0);
}

#[tokio::test]
async fn a_call_that_ignores_everything_is_killed_and_the_standby_takes_over() {
    let lab = Lab::new("");
    let host = lab.start().await;
    standby_is_ready(&host).await;
    let pid = host.status().worker.pid.unwrap();
    let mut events = host.events();
    let mut deaf = call("deaf");
    deaf.timeout = Duration::from_millis(200);

    let outcome = bounded(host.call(deaf)).await;

    assert_eq!(outcome, Outcome::TimedOut { rung: Rung::Kill });
    assert!(!lives(pid));
    assert_eq!(lab.notes(), ["start", "deaf", "start", "rest timed_out"]);
    let events = drain(&mut events);
    let expected = [
        (Rung::Checkpoint, "asked"),
        (Rung::Checkpoint, "failed"),
        (Rung::Interrupt, "asked"),
        (Rung::Interrupt, "failed"),
        (Rung::Kill, "asked"),
        (Rung::Kill, "done"),
        (Rung::Restart, "done"),
        (Rung::SafeState, "done"),
    ];
    assert_eq!(rungs(&events), expected);
    let attention = host.status().attention.expect("a mark");
    assert!(!attention.held);
    assert!(matches!(bounded(host.call(call("echo"))).await, Outcome::Returned { .. }));
    standby_is_ready(&host).await;
}

#[tokio::test]
async fn an_endless_loop_is_stopped_at_its_deadline() {
    let lab = Lab::new("");
    let host = lab.start().await;
    let mut spin = call("spin");
    spin.timeout = Duration::from_millis(100);

    assert_eq!(bounded(host.call(spin)).await, Outcome::TimedOut { rung: Rung::Interrupt });
    assert_eq!(lab.notes(), ["start", "spin", "rest timed_out"]);
}

#[tokio::test]
async fn without_a_standby_a_cold_process_runs_the_hook() {
    let mut lab = Lab::new("");
    lab.config.standby = false;
    let host = lab.start().await;
    let mut deaf = call("deaf");
    deaf.timeout = Duration::from_millis(100);

    assert_eq!(bounded(host.call(deaf)).await, Outcome::TimedOut { rung: Rung::Kill });

    assert_eq!(lab.notes(), ["start", "deaf", "start", "rest timed_out"]);
    assert!(matches!(bounded(host.call(call("echo"))).await, Outcome::Returned { .. }));
}

#[tokio::test]
async fn a_file_without_a_hook_gets_a_new_worker_all_the_same() {
    let lab = Lab::with_file(
        "from interlock import task\nimport os\n@task\ndef die():\n    os._exit(9)\n@task\ndef ok() -> int:\n    return 1\n",
    );
    let host = lab.start().await;

    let outcome = bounded(host.call(call("die"))).await;

    assert!(matches!(&outcome, Outcome::Crashed { reason } if reason.contains("exit code 9")), "{outcome:?}");
    assert!(matches!(bounded(host.call(call("ok"))).await, Outcome::Returned { .. }));
    assert!(!host.status().worker.standby);
}

#[tokio::test]
async fn a_waiting_call_is_cancelled_without_being_sent() {
    let lab = Lab::new("");
    let host = lab.start().await;
    let first = spawn(&host, call("hold"));
    lab.noted("hold").await;
    let second = call("echo");
    let run = second.run;
    let waiting = spawn(&host, second);
    eventually("queued", || host.status().queued == 1).await;

    assert!(host.cancel(&run, "changed my mind"));

    assert_eq!(bounded(waiting).await.unwrap(), Outcome::NotStarted { reason: NotStarted::Cancelled });
    lab.go();
    assert!(matches!(bounded(first).await.unwrap(), Outcome::Returned { .. }));
    assert_eq!(lab.count("echo"), 0);
}

#[tokio::test]
async fn a_hook_that_fails_after_a_cancel_holds_the_device_until_a_person_has_looked() {
    let lab = Lab::new("@safe_state\ndef fails(reason):\n    raise RuntimeError('jammed')\n");
    let host = lab.start().await;
    let call_1 = call("wait");
    let run = call_1.run;
    let waiting = spawn(&host, call_1);
    lab.noted("wait").await;
    host.cancel(&run, "enough");

    assert_eq!(bounded(waiting).await.unwrap(), Outcome::Cancelled { rung: Rung::Checkpoint });

    let status = host.status();
    assert_eq!(status.state, "held");
    assert!(status.attention.unwrap().held);
    let refused = bounded(host.call(call("echo"))).await;
    assert_eq!(refused, Outcome::NotStarted { reason: NotStarted::NeedsAttention });
    bounded(host.clear_attention("mo", "looked")).await.unwrap();
    assert!(matches!(bounded(host.call(call("echo"))).await, Outcome::Returned { .. }));
}

#[tokio::test]
async fn a_hook_that_hangs_is_killed_and_holds_the_device() {
    let mut lab = Lab::new("@safe_state\ndef hangs(reason):\n    note('hangs')\n    time.sleep(600)\n");
    lab.config.ladder.safe_state = Duration::from_millis(300);
    let host = lab.start().await;
    let call_1 = call("wait");
    let run = call_1.run;
    let waiting = spawn(&host, call_1);
    lab.noted("wait").await;
    host.cancel(&run, "enough");

    assert_eq!(bounded(waiting).await.unwrap(), Outcome::Cancelled { rung: Rung::Checkpoint });

    assert!(host.status().attention.unwrap().held);
    bounded(host.clear_attention("mo", "looked")).await.unwrap();
    assert!(matches!(bounded(host.call(call("echo"))).await, Outcome::Returned { .. }));
}

#[tokio::test]
async fn the_safe_state_can_be_tested_while_nothing_runs() {
    let lab = Lab::new("");
    let host = lab.start().await;

    let report = bounded(host.test_safe_state()).await;

    assert!(report.confirmed, "{report:?}");
    assert_eq!(report.safe_state, "done");
    assert_eq!(lab.notes(), ["start", "rest test"]);
    let held = spawn(&host, call("hold"));
    lab.noted("hold").await;
    assert!(!bounded(host.test_safe_state()).await.confirmed);
    lab.go();
    assert!(matches!(bounded(held).await.unwrap(), Outcome::Returned { .. }));
}

#[tokio::test]
async fn a_shutdown_lets_the_running_call_end_and_refuses_the_rest() {
    let lab = Lab::new("");
    let host = lab.start().await;
    let pid = host.status().worker.pid.unwrap();
    let first = spawn(&host, call("hold"));
    lab.noted("hold").await;
    let second = spawn(&host, call("echo"));
    eventually("queued", || host.status().queued == 1).await;

    let closer = host.clone();
    let closing = tokio::spawn(async move { closer.shutdown(Duration::from_secs(20)).await });
    let stopped = Outcome::NotStarted { reason: NotStarted::HostStopped };
    assert_eq!(bounded(second).await.unwrap(), stopped);
    lab.go();

    assert!(matches!(bounded(first).await.unwrap(), Outcome::Returned { .. }));
    bounded(closing).await.unwrap();
    assert!(!lives(pid));
    assert_eq!(bounded(host.call(call("echo"))).await, stopped);
    assert_eq!(lab.count("rest host_lost"), 0);
}

#[tokio::test]
async fn a_shutdown_stops_a_call_that_does_not_end() {
    let lab = Lab::new("");
    let host = lab.start().await;
    let spinning = spawn(&host, call("spin"));
    lab.noted("spin").await;

    bounded(host.shutdown(Duration::from_millis(50))).await;

    assert_eq!(bounded(spinning).await.unwrap(), Outcome::Cancelled { rung: Rung::Interrupt });
    assert_eq!(lab.notes(), ["start", "spin", "rest cancelled"]);
    // The folder is free again.
    lab.start().await;
}
