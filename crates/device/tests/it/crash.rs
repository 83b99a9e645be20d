//! Workers and hosts that die.

use std::time::Duration;

use interlock_device::Host;
use interlock_model::device::{Journaled, Outcome};

use crate::helper::Helper;
use crate::lab::{CHILDREN, Lab, bounded, call, eventually, lives, spawn, standby_is_ready};

fn kill_9(pid: u32) {
    let target = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(target, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn a_worker_that_dies_in_a_call_is_told_and_replaced() {
    let lab = Lab::new(
        "@task\ndef segfaults():\n    ctypes.string_at(0)\n@task\ndef exits():\n    os._exit(9)\n\
         @task\ndef aborts():\n    os.abort()\n",
    );
    let host = lab.start().await;
    for (action, word) in [("segfaults", "segmentation fault"), ("exits", "exit code 9"), ("aborts", "abort")]
    {
        standby_is_ready(&host).await;

        let outcome = bounded(host.call(call(action))).await;

        assert!(matches!(&outcome, Outcome::Crashed { reason } if reason.contains(word)), "{outcome:?}");
        let attention = host.status().attention.expect("a mark");
        assert!(!attention.held, "{attention:?}");
        assert!(matches!(bounded(host.call(call("echo"))).await, Outcome::Returned { .. }));
    }
    assert_eq!(lab.count("rest crashed"), 3);
    assert_eq!(host.status().worker.restarts, 3);
}

#[tokio::test]
async fn an_idle_worker_that_dies_is_replaced_by_way_of_the_hook() {
    let lab = Lab::new("");
    let host = lab.start().await;
    standby_is_ready(&host).await;
    let pid = host.status().worker.pid.unwrap();

    kill_9(pid);

    eventually("replaced", || {
        let status = host.status();
        status.state == "ready" && status.worker.pid.is_some_and(|new| new != pid)
    })
    .await;
    assert!(matches!(bounded(host.call(call("echo"))).await, Outcome::Returned { .. }));
    assert_eq!(lab.notes(), ["start", "start", "rest crashed", "echo"]);
}

#[tokio::test]
async fn a_standby_that_dies_is_replaced_and_nobody_notices() {
    let lab = Lab::new("");
    let host = lab.start().await;
    standby_is_ready(&host).await;
    let worker = host.status().worker.pid.unwrap();
    let me = std::process::id();
    let children = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let parent: u32 = stat.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()?;
        let environment = std::fs::read(entry.path().join("environ")).ok()?;
        let ours = lab.folder.path().to_str()?.as_bytes();
        (parent == me && pid != worker && environment.windows(ours.len()).any(|part| part == ours))
            .then_some(pid)
    });
    let standby: Vec<u32> = children.collect();
    assert_eq!(standby.len(), 1, "{standby:?}");

    kill_9(standby[0]);

    eventually("noticed", || !host.status().worker.standby).await;
    assert!(matches!(bounded(host.call(call("echo"))).await, Outcome::Returned { .. }));
    standby_is_ready(&host).await;
    assert_eq!(host.status().worker.restarts, 0);
}

/// Kills a host that has one call running and two waiting. Gives back the runs.
async fn killed_host(lab: &Lab) -> [interlock_model::RunId; 3] {
    let helper = Helper::start(lab, &[]);
    helper.tell("standby");
    helper.expect("standby");
    let running = helper.call("spin").run;
    lab.noted("spin").await;
    let waiting = [helper.call("echo").run, helper.call("echo").run];
    helper.tell("queued 2");
    helper.expect("queued");
    helper.kill();
    [running, waiting[0], waiting[1]]
}

#[tokio::test]
async fn when_the_host_is_killed_the_worker_dies_and_the_standby_brings_the_device_to_rest() {
    let lab = Lab::new("");
    let [running, first, second] = killed_host(&lab).await;
    lab.noted("rest host_lost").await;

    let host = lab.start().await;

    assert_eq!(host.journaled(&running), Journaled::Started);
    assert_eq!(host.journaled(&first), Journaled::NeverStarted, "same boot: the missing mark is proof");
    assert_eq!(host.journaled(&second), Journaled::NeverStarted);
    let attention = host.status().attention.expect("a mark");
    assert!(!attention.held, "{attention:?}");
    assert_eq!(lab.notes(), ["start", "spin", "start", "rest host_lost", "start", "rest host_lost"]);
    let mut again = call("echo");
    again.run = running;
    assert!(matches!(bounded(host.call(again)).await, Outcome::Uncertain { .. }), "never twice");
    assert_eq!(lab.count("echo"), 0);
    let mut again = call("echo");
    again.run = first;
    assert!(matches!(bounded(host.call(again)).await, Outcome::Returned { .. }));
    let mut again = call("look");
    again.run = running;
    assert!(matches!(bounded(host.call(again)).await, Outcome::Returned { .. }), "idempotent");
}

#[tokio::test]
async fn after_a_power_cut_what_was_armed_counts_as_started() {
    let lab = Lab::new("");
    let [running, first, second] = killed_host(&lab).await;
    lab.noted("rest host_lost").await;

    let host = bounded(Host::start_in_boot(lab.config.clone(), "another boot")).await.unwrap();

    for run in [running, first, second] {
        assert_eq!(host.journaled(&run), Journaled::Started);
    }
    bounded(host.shutdown(Duration::ZERO)).await;
    let rests = lab.count("rest host_lost");
    let host = lab.start().await;
    assert_eq!(host.journaled(&running), Journaled::Started, "still not known");
    assert_eq!(lab.count("rest host_lost"), rests, "the hook is owed once");
}

#[tokio::test]
async fn the_outcome_of_a_call_survives_the_host() {
    let lab = Lab::new("");
    let helper = Helper::start(&lab, &[]);
    let echo = helper.call("echo");
    let run = echo.run;
    assert!(echo.finished().starts_with("Returned"));
    helper.kill();

    let host = lab.start().await;

    assert!(matches!(host.journaled(&run), Journaled::Finished(Outcome::Returned { .. })));
    assert_eq!(host.status().attention, None);
}

#[tokio::test]
async fn the_process_of_a_killed_host_is_gone() {
    let lab = Lab::new(
        "@task\ndef stubborn():\n    note('pid %d' % os.getpid())\n    ctypes.CDLL(None).sleep(600)\n",
    );
    let helper = Helper::start(&lab, &[]);
    helper.call("stubborn");
    eventually("a pid", || lab.notes().iter().any(|note| note.starts_with("pid "))).await;
    let pid: u32 = lab.notes().iter().find_map(|note| note.strip_prefix("pid ")?.parse().ok()).unwrap();
    assert!(lives(pid));

    helper.kill();

    eventually("its death", || !lives(pid)).await;
}

#[tokio::test]
async fn what_a_crashed_worker_started_dies_with_it() {
    let lab = Lab::new(CHILDREN);
    let host = lab.start().await;
    let running = spawn(&host, call("children"));
    let children = lab.children().await;

    kill_9(host.status().worker.pid.unwrap());

    assert!(matches!(bounded(running).await.unwrap(), Outcome::Crashed { .. }));
    eventually("the children's death", || !children.iter().any(|child| lives(*child))).await;
}

#[tokio::test]
async fn what_the_worker_of_a_killed_host_started_is_gone() {
    let lab = Lab::new(CHILDREN);
    let helper = Helper::start(&lab, &[]);
    helper.tell("standby");
    helper.expect("standby");
    helper.call("children");
    let children = lab.children().await;

    helper.kill();

    eventually("the children's death", || !children.iter().any(|child| lives(*child))).await;
}

/// A device whose safe-state hook ends when the file `rested` appears, and which notes every process that loads it.
const RESTS_LONG: &str = r#"
note("load %d" % os.getpid())

@safe_state
def rests(reason):
    note("resting %d" % os.getpid())
    while not os.path.exists(os.path.join(LAB, "rested")):
        time.sleep(0.002)
    note("rested")
"#;

/// Kills a host whose standby then brings the device to rest, without end. Gives back the standby.
async fn resting_without_host(lab: &Lab) -> u32 {
    let helper = Helper::start(lab, &[]);
    helper.tell("standby");
    helper.expect("standby");
    helper.call("spin");
    lab.noted("spin").await;
    helper.kill();
    eventually("a hook", || lab.beginning("resting ") == 1).await;
    lab.notes().iter().find_map(|note| note.strip_prefix("resting ")?.parse().ok()).unwrap()
}

#[tokio::test]
async fn nothing_is_started_beside_a_process_of_an_earlier_host() {
    let lab = Lab::new(RESTS_LONG);
    resting_without_host(&lab).await;
    let loads = lab.beginning("load ");

    let (host, starting) = bounded(Host::open(lab.config.clone())).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;

    assert_eq!(lab.beginning("load "), loads, "two processes would drive the device");
    std::fs::write(lab.folder.path().join("rested"), "").unwrap();
    bounded(starting.ready()).await.unwrap();
    assert!(lab.beginning("load ") > loads);
    bounded(host.shutdown(Duration::ZERO)).await;
}

#[tokio::test]
async fn a_process_of_an_earlier_host_that_does_not_end_is_killed() {
    let mut lab = Lab::new(RESTS_LONG);
    let old = resting_without_host(&lab).await;
    lab.config.start_deadline = Duration::from_millis(500);
    lab.config.ladder.safe_state = Duration::from_millis(200);
    let loads = lab.beginning("load ");

    let (host, _starting) = bounded(Host::open(lab.config.clone())).await.unwrap();
    eventually("another process", || lab.beginning("load ") > loads).await;

    assert!(!lives(old), "the old one was killed before");
    bounded(host.shutdown(Duration::ZERO)).await;
}

#[tokio::test]
async fn an_emergency_stop_ends_a_process_of_an_earlier_host_too() {
    let lab = Lab::new(RESTS_LONG);
    let old = resting_without_host(&lab).await;

    let (host, _starting) = bounded(Host::open(lab.config.clone())).await.unwrap();
    assert!(lives(old));
    let stopping = tokio::spawn({
        let host = host.clone();
        async move { host.emergency_stop("mo", None).await }
    });
    eventually("a hook in a process of this host", || lab.beginning("resting ") == 2).await;

    assert!(!lives(old), "what could still act was killed first");
    std::fs::write(lab.folder.path().join("rested"), "").unwrap();
    let report = bounded(stopping).await.unwrap();
    assert!(report.confirmed, "{report:?}");
    bounded(host.shutdown(Duration::ZERO)).await;
}

#[tokio::test]
async fn many_callers_and_a_dying_worker_all_get_a_true_end() {
    let lab = Lab::new(
        "@task\ndef maybe(value: int = 0) -> int:\n    if value % 7 == 3:\n        os._exit(1)\n    return value\n",
    );
    let host = lab.start().await;
    let calls: Vec<_> =
        (0..21).map(|value| (value, spawn(&host, crate::lab::call_with("maybe", "value", value)))).collect();

    for (value, call) in calls {
        let outcome = bounded(call).await.unwrap();
        match outcome {
            Outcome::Returned { result, .. } => assert_eq!(result, value),
            Outcome::Crashed { .. } => assert_eq!(value % 7, 3),
            other => panic!("{value}: {other:?}"),
        }
    }
}
