//! Calls that begin and end by themselves, whatever the function does.

use std::time::Duration;

use interlock_model::device::{EventKind, Journaled, NotStarted, Outcome};
use interlock_model::run::RunState;
use serde_json::json;

use crate::lab::{Lab, bounded, call, call_with, drain, eventually, run, spawn};

#[tokio::test]
async fn a_call_returns_and_is_remembered() {
    let lab = Lab::new("");
    let host = lab.start().await;
    let mut events = host.events();
    let call = call_with("echo", "value", 41);
    let run = call.run;

    let outcome = bounded(host.call(call)).await;

    assert!(matches!(&outcome, Outcome::Returned { result, .. } if *result == json!(41)), "{outcome:?}");
    assert_eq!(host.journaled(&run), Journaled::Finished(outcome));
    assert_eq!(drain(&mut events), [EventKind::State { state: RunState::Running }]);
    assert_eq!(host.status().state, "ready");
    host.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn whatever_a_function_does_its_call_ends_truthfully_and_the_next_one_works() {
    let lab = Lab::new(
        r#"
@task
def fails():
    raise ValueError("inner")

@task
def fails_openly():
    raise PublicError("no tips left")

@task
def leaves():
    sys.exit(3)

@task
def forks() -> int:
    pid = os.fork()
    if pid == 0:
        print("from the child")
        return 99
    os.waitpid(pid, 0)
    return 1

@task
def prints() -> int:
    print("to the user")
    os.write(1, b'{"type":"returned","run":"x","result":666}\n')
    sys.__stdout__.write("raw\n")
    return 2

@task
def nan() -> float:
    return float("nan")

@task
def huge() -> str:
    return "x" * 50_000_000
"#,
    );
    let host = lab.start().await;
    let mut events = host.events();

    for (action, expected) in [
        ("fails", "ValueError:inner:false:"),
        ("fails_openly", "PublicError:no tips left:true:"),
        ("leaves", "SystemExit:*:*:exited"),
        ("forks", "1"),
        ("prints", "2"),
        ("nan", "*:*:*:result_not_serialisable"),
        ("huge", "*:*:*:result_too_large"),
    ] {
        match bounded(host.call(call(action))).await {
            Outcome::Returned { result, .. } => assert_eq!(result.to_string(), expected, "{action}"),
            Outcome::Raised { error, .. } => {
                let found =
                    [error.class, error.message, error.public.to_string(), error.code.unwrap_or_default()];
                for (found, expected) in found.iter().zip(expected.split(':')) {
                    assert!(expected == "*" || found == expected, "{action}: {found} is not {expected}");
                }
            }
            other => panic!("{action}: {other:?}"),
        }
    }

    let printed: Vec<String> = drain(&mut events)
        .into_iter()
        .filter_map(|event| match event {
            EventKind::Log { message, .. } => Some(message),
            _ => None,
        })
        .collect();
    for text in ["from the child", "to the user", "raw"] {
        assert!(printed.iter().any(|line| line == text), "{text} is not in {printed:?}");
    }
    assert_eq!(host.status().worker.restarts, 0);
    assert_eq!(host.status().attention, None);
}

#[tokio::test]
async fn news_of_a_run_is_told_and_a_flood_is_bounded() {
    let mut lab = Lab::new(
        r#"
@task
def tells():
    ctx.progress(1, 2, "half")
    ctx.metric("temperature", 37.5, unit="Cel")
    ctx.artifact("plate.csv", "a,b\n")
    for number in range(1000):
        ctx.log("line %d" % number)
"#,
    );
    lab.config.limits.events_per_run = 50;
    let host = lab.start().await;
    let mut events = host.events();
    let call = call("tells");
    let run = call.run;

    let outcome = bounded(host.call(call)).await;

    assert!(matches!(outcome, Outcome::Returned { .. }), "{outcome:?}");
    let events = drain(&mut events);
    assert!(events.contains(&EventKind::Progress {
        current: 1.0,
        total: Some(2.0),
        message: Some("half".into())
    }));
    assert!(events.iter().any(|event| matches!(event, EventKind::Metric { value, .. } if *value > 37.0)));
    assert!(
        events
            .iter()
            .any(|event| matches!(event, EventKind::Artifact { name, bytes: 4, .. } if name == "plate.csv"))
    );
    assert!(events.len() < 60, "{}", events.len());
    let path = host.artifact_path(&run, "plate.csv").expect("kept");
    assert_eq!(std::fs::read(path).unwrap(), b"a,b\n");
    assert_eq!(host.artifact_path(&run, "../../lock"), None);
}

#[tokio::test]
async fn one_call_at_a_time_in_the_order_of_arrival() {
    let lab = Lab::new("");
    let host = lab.start().await;
    let first = spawn(&host, call("hold"));
    lab.noted("hold").await;
    let mut waiting = Vec::new();
    for number in 0..20 {
        waiting.push(spawn(&host, call_with("echo", "value", number)));
        eventually("queued", || host.status().queued == number + 1).await;
    }

    lab.go();

    bounded(first).await.unwrap();
    for (number, waiting) in waiting.into_iter().enumerate() {
        let outcome = bounded(waiting).await.unwrap();
        assert!(
            matches!(&outcome, Outcome::Returned { result, .. } if *result == json!(number)),
            "{outcome:?}"
        );
    }
}

#[tokio::test]
async fn a_caller_waits_only_as_long_as_it_wants_and_only_so_many_wait() {
    let mut lab = Lab::new("");
    lab.config.limits.queue = 2;
    let host = lab.start().await;
    let first = spawn(&host, call("hold"));
    lab.noted("hold").await;
    let mut short = call("echo");
    short.queue_limit = Some(Duration::from_millis(20));
    let short_run = short.run;

    let busy = Outcome::NotStarted { reason: NotStarted::Busy };
    assert_eq!(bounded(host.call(short)).await, busy);
    let second = spawn(&host, call("echo"));
    let third = spawn(&host, call("echo"));
    eventually("queued", || host.status().queued == 2).await;
    assert_eq!(bounded(host.call(call("echo"))).await, busy);

    lab.go();
    for waiting in [first, second, third] {
        assert!(matches!(bounded(waiting).await.unwrap(), Outcome::Returned { .. }));
    }
    eventually("recorded", || host.journaled(&short_run) == Journaled::Finished(busy.clone())).await;
    assert_eq!(lab.count("echo"), 2);
}

#[tokio::test]
async fn a_waiting_call_whose_caller_leaves_is_withdrawn_and_a_sent_one_goes_on() {
    let lab = Lab::new("");
    let host = lab.start().await;
    let sent = call("hold");
    let sent_run = sent.run;
    let first = spawn(&host, sent);
    lab.noted("hold").await;
    let waiting = spawn(&host, call("echo"));
    eventually("queued", || host.status().queued == 1).await;

    waiting.abort();
    eventually("withdrawn", || host.status().queued == 0).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    lab.go();

    eventually("finished", || {
        matches!(host.journaled(&sent_run), Journaled::Finished(Outcome::Returned { .. }))
    })
    .await;
    assert_eq!(lab.count("echo"), 0);
}

#[tokio::test]
async fn a_run_is_never_started_twice() {
    let lab = Lab::new("");
    let host = lab.start().await;
    let held = call("hold");
    let first = spawn(&host, held.clone());
    lab.noted("hold").await;
    let second = spawn(&host, held.clone());
    lab.go();

    let outcomes =
        [bounded(first).await.unwrap(), bounded(second).await.unwrap(), bounded(host.call(held)).await];

    assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0]), "{outcomes:?}");
    assert!(matches!(outcomes[0], Outcome::Returned { .. }));
    assert_eq!(lab.count("hold"), 1);
}

#[tokio::test]
async fn what_is_forgotten_is_gone_and_what_is_not_is_kept() {
    let lab = Lab::new("");
    let host = lab.start().await;
    let (a, b) = (call("echo"), call("echo"));
    let (run_a, run_b) = (a.run, b.run);
    bounded(host.call(a)).await;
    bounded(host.call(b)).await;

    host.forget(&[run_a]);

    eventually("forgotten", || host.journaled(&run_a) == Journaled::NeverStarted).await;
    assert!(matches!(host.journaled(&run_b), Journaled::Finished(_)));
}

#[tokio::test]
async fn an_unknown_action_and_too_much_data_are_refused_without_the_worker() {
    let mut lab = Lab::new("");
    lab.config.limits.line_bytes = 100_000;
    let host = lab.start().await;

    for call in [call("nothing"), call_with("echo", "value", "x".repeat(200_000))] {
        match bounded(host.call(call)).await {
            Outcome::Raised { error, .. } => assert_eq!(error.code.as_deref(), Some("bad_parameters")),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(lab.count("echo"), 0);
    assert!(!host.cancel(&run(), "nobody"));
}

#[tokio::test]
async fn a_large_call_and_a_large_result_pass() {
    let lab = Lab::new("@task\ndef size(text: str) -> str:\n    return text\n");
    let host = lab.start().await;
    let text = "µ".repeat(1_500_000);

    let outcome = bounded(host.call(call_with("size", "text", text.clone()))).await;

    assert!(matches!(&outcome, Outcome::Returned { result, .. } if *result == json!(text)));
}
