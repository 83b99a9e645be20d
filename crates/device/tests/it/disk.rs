//! A disk that is full: calls are refused, stops are not.

use interlock_model::device::Journaled;

use crate::helper::Helper;
use crate::lab::{Lab, eventually};

#[tokio::test]
async fn a_full_disk_refuses_calls_but_not_the_stop_and_recovers() {
    let lab = Lab::new("@task\ndef quiet() -> int:\n    return 1\n");
    let helper = Helper::start(&lab, &[]);
    assert!(helper.call("quiet").finished().starts_with("Returned"));
    helper.tell("standby");
    helper.expect("standby");

    helper.tell("limit 0");
    helper.expect("limited");
    let refused = helper.call("quiet").finished();
    assert!(refused.contains("JournalFailed"), "{refused}");
    helper.tell("stop");
    let report = helper.expect("stopped");

    assert!(report.contains("confirmed: true"), "{report}");
    assert!(report.contains("not on disk"), "{report}");
    helper.tell("limit none");
    helper.expect("limited");
    helper.tell("release");
    assert!(helper.expect("released").starts_with("Ok"));
    eventually("written again", || helper.call("quiet").finished().starts_with("Returned")).await;
}

#[tokio::test]
async fn an_end_that_cannot_be_written_is_told_and_written_later() {
    let lab = Lab::new("@task\ndef quiet() -> int:\n    return 1\n");
    let helper = Helper::start(&lab, &[]);
    let held = helper.call("hold");
    lab.noted("hold").await;

    helper.tell("limit 0");
    helper.expect("limited");
    lab.go();
    let outcome = held.finished();
    assert!(outcome.starts_with("Returned"), "{outcome}");
    let run = held.run;
    eventually("a mark", || {
        helper.tell("status");
        helper.expect("status").contains("could not be written")
    })
    .await;
    helper.tell("limit none");
    helper.expect("limited");
    eventually("written again", || helper.call("quiet").finished().starts_with("Returned")).await;
    helper.kill();

    let host = lab.start().await;
    assert!(matches!(host.journaled(&run), Journaled::Finished(_)));
}
