//! Random histories: calls, cancels, stops, releases and deaths in any order, and what must hold in all of them.

use std::time::Duration;

use interlock_model::Entropy as _;
use interlock_model::device::{Journaled, NotStarted, Outcome};
use interlock_model::time::TestEntropy;
use serde_json::Value;

use crate::lab::{Lab, bounded, call, call_with, eventually, spawn};

const MORE: &str = r"
@task
def quick(token: str) -> str:
    note(token)
    return token

@task
def slow(token: str) -> str:
    note(token)
    for _ in range(20):
        ctx.checkpoint()
        time.sleep(0.005)
    return token

@task
def mute(token: str) -> str:
    note(token)
    time.sleep(5)
    return token

@task
def dies(token: str):
    note(token)
    os._exit(1)

@task
def raises(token: str):
    note(token)
    raise ValueError(token)
";

const ACTIONS: [&str; 5] = ["quick", "slow", "mute", "dies", "raises"];

async fn history(seed: u64) {
    let mut lab = Lab::new(MORE);
    lab.config.ladder.checkpoint = Duration::from_millis(60);
    lab.config.ladder.interrupt = Duration::from_millis(60);
    lab.config.standby = seed.is_multiple_of(2);
    let host = lab.start().await;
    let entropy = TestEntropy::seeded(seed);
    let random = |below: usize| {
        let mut bytes = [0; 8];
        entropy.fill(&mut bytes);
        usize::try_from(u64::from_le_bytes(bytes) % below as u64).unwrap()
    };
    let mut calls = Vec::new();
    let mut stops = Vec::new();
    for step in 0..40 {
        match random(12) {
            0..=6 => {
                let action = ACTIONS[random(ACTIONS.len())];
                let token = format!("token-{seed}-{step}");
                let mut call = call_with(action, "token", token.as_str());
                call.timeout = Duration::from_millis([100, 400, 5000][random(3)]);
                call.queue_limit = [None, Some(Duration::from_millis(150))][random(2)];
                calls.push((call.run, token, spawn(&host, call)));
            }
            7 => {
                if !calls.is_empty() {
                    host.cancel(&calls[random(calls.len())].0, "chaos");
                }
            }
            8 => {
                let host = host.clone();
                stops.push(tokio::spawn(async move { host.emergency_stop("chaos", None).await }));
            }
            9 => {
                let host = host.clone();
                tokio::spawn(async move { host.test_safe_state().await });
            }
            10 => {
                let _ = bounded(host.release("chaos", "go on")).await;
            }
            _ => tokio::time::sleep(Duration::from_millis(random(60) as u64)).await,
        }
    }
    for stop in stops {
        let report = bounded(stop).await.unwrap();
        assert!(report.confirmed, "seed {seed}: {report:?}");
    }
    eventually("released", || host.status().state != "starting").await;
    while host.status().emergency_stop.engaged {
        let _ = bounded(host.release("chaos", "the end")).await;
    }

    for (run, token, answer) in calls {
        let outcome = bounded(answer).await.unwrap();
        let times = lab.count(&token);
        match &outcome {
            Outcome::NotStarted { reason } => {
                assert_eq!(times, 0, "seed {seed}: {token} {outcome:?}");
                assert_ne!(*reason, NotStarted::JournalFailed);
                eventually("known", || host.journaled(&run) != Journaled::Started).await;
            }
            Outcome::Returned { result, .. } => {
                assert_eq!((times, result), (1, &Value::from(token.as_str())), "seed {seed}");
            }
            Outcome::Raised { error, .. } => assert_eq!((times, error.message.as_str()), (1, token.as_str())),
            // It may have been killed before its first line.
            Outcome::Crashed { .. } | Outcome::Cancelled { .. } | Outcome::TimedOut { .. } => {
                assert!(times <= 1, "seed {seed}: {token} {outcome:?}");
            }
            Outcome::Uncertain { .. } => panic!("seed {seed}: {token} {outcome:?}"),
        }
        if !matches!(outcome, Outcome::NotStarted { .. }) {
            assert_eq!(host.journaled(&run), Journaled::Finished(outcome), "seed {seed}: {token}");
        }
    }
    let held = host.status().attention.is_some_and(|attention| attention.held);
    assert!(!held, "seed {seed}: the hook always works");
    assert!(matches!(bounded(host.call(call("echo"))).await, Outcome::Returned { .. }), "seed {seed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_history_ends_in_a_lie_or_a_hang() {
    let seeds: Vec<u64> = match std::env::var("CHAOS_SEEDS") {
        Ok(range) => {
            let (from, to) = range.split_once("..").expect("FROM..TO");
            (from.parse().unwrap()..to.parse().unwrap()).collect()
        }
        Err(_) => (1..=4).collect(),
    };
    for seed in seeds {
        history(seed).await;
    }
}
