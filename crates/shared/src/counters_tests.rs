//! The script against the reference, on a real Redis (`INTERLOCK_TEST_REDIS`, see `tools/redis`), and what a bad one does.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use interlock_model::rate::{Limits, Verdict, Windows};
use interlock_model::secret::Secret;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::{RedisConfig, SharedError};

const LIMITS: Limits = Limits { minute: 60, hour: 1000 };

/// What `tools/redis start` printed: `(url, URL with TLS, file of authorities)`.
fn redis() -> (String, String, String) {
    let told = std::env::var("INTERLOCK_TEST_REDIS")
        .expect("INTERLOCK_TEST_REDIS must hold what `tools/redis start DIR` prints");
    let member = |name: &str| {
        let from = told.find(&format!("\"{name}\": \"")).expect("a member") + name.len() + 5;
        told[from..].split('"').next().expect("its end").to_owned()
    };
    (member("url"), member("tls"), member("ca"))
}

/// Redis with a database number, which keeps tests apart.
fn config(db: u8) -> RedisConfig {
    let url = Secret::new(format!("{}/{db}", redis().0));
    let mut config = RedisConfig::new(&url, None, false).expect("a URL");
    config.deadline = Duration::from_secs(5);
    config
}

async fn connection(db: u8) -> MultiplexedConnection {
    let client = config(db).client().expect("a client");
    let mut connection = client.get_multiplexed_async_connection().await.expect("a connection");
    redis::cmd("FLUSHDB").query_async::<()>(&mut connection).await.expect("emptied");
    connection
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What the script must answer: all of the clients or none.
fn reference(state: &mut HashMap<u8, Windows>, now: u64, clients: &[u8], limits: Limits) -> Vec<Verdict> {
    let judge = |state: &mut HashMap<u8, Windows>| -> Vec<Verdict> {
        clients
            .iter()
            .map(|client| state.entry(*client).or_insert_with(|| Windows::new(now)).judge(now, limits))
            .collect()
    };
    let verdicts = judge(state);
    if verdicts.iter().all(|verdict| verdict.refused.is_none()) {
        return verdicts;
    }
    // One refuses: the others are as they would be without this request.
    let counted: Vec<bool> = verdicts.iter().map(|verdict| verdict.refused.is_none()).collect();
    for (client, counted) in clients.iter().zip(&counted) {
        let windows = state.get_mut(client).expect("judged");
        if *counted {
            windows.minute.count -= 1;
            windows.hour.count -= 1;
        }
    }
    let left = |verdict: &Verdict, counted: &bool| Verdict {
        remaining: verdict.remaining + u32::from(*counted),
        ..*verdict
    };
    verdicts.iter().zip(&counted).map(|(verdict, counted)| left(verdict, counted)).collect()
}

/// Steps of one sequence: milliseconds that pass (rarely the clock goes back), then the clients of a request.
fn steps() -> impl Strategy<Value = (u32, u32, Vec<(i64, Vec<u8>)>)> {
    let passes = prop_oneof![
        6 => 0_i64..400,
        3 => 0_i64..30_000,
        2 => prop_oneof![Just(59_999_i64), Just(60_000), Just(60_001), Just(3_599_999), Just(3_600_000)],
        1 => 0_i64..5_000_000,
        1 => -100_000_i64..0,
    ];
    let clients =
        prop_oneof![Just(vec![0]), Just(vec![1]), Just(vec![0, 1]), Just(vec![1, 2]), Just(vec![2, 0]),];
    (1_u32..6, 1_u32..12, proptest::collection::vec((passes, clients), 1..25))
}

#[test]
fn the_script_decides_as_the_reference_on_ten_thousand_sequences() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let connection = runtime.block_on(connection(8));
    let sequence = AtomicU64::new(0);
    let decisions = AtomicU64::new(0);
    let refusals = AtomicU64::new(0);
    let config =
        Config { cases: 10_000, max_shrink_iters: 2_000, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&steps(), |(minute, hour, steps)| {
        let number = sequence.fetch_add(1, Ordering::Relaxed);
        let limits = Limits { minute, hour };
        let (mut state, mut now) = (HashMap::new(), 1_767_225_600_123_u64);
        for (passed, clients) in steps {
            now = now.saturating_add_signed(passed);
            let names: Vec<String> = clients.iter().map(|client| format!("{number}:{client}")).collect();
            let asked: Vec<(&str, Limits)> = names.iter().map(|name| (name.as_str(), limits)).collect();
            let script =
                runtime.block_on(take_at(&mut connection.clone(), Some(now), &asked)).expect("an answer");
            let expected = reference(&mut state, now, &clients, limits);
            decisions.fetch_add(1, Ordering::Relaxed);
            refusals.fetch_add(
                u64::from(expected.iter().any(|verdict| verdict.refused.is_some())),
                Ordering::Relaxed,
            );
            prop_assert_eq!(&script, &expected);
        }
        Ok(())
    });
    outcome.expect("the same decisions");
    let (decisions, refusals) = (decisions.into_inner(), refusals.into_inner());
    assert!(
        refusals > decisions / 20 && refusals < decisions,
        "{refusals} of {decisions}: both outcomes occur"
    );
}

#[tokio::test]
async fn servers_that_race_admit_the_limit_and_not_one_more() {
    connection(9).await;
    let mut admitting = Vec::new();
    for server in 0..3 {
        let link = Link::open(&config(9), &format!("server-{server}")).await.expect("taken");
        assert!(link.is_up());
        admitting.extend((0..60).map(|_| {
            let link = link.clone();
            tokio::spawn(async move { link.take(&[("address:10.0.0.1", LIMITS)]).await.expect("an answer") })
        }));
    }
    let mut admitted = 0;
    for verdict in admitting {
        admitted += usize::from(verdict.await.expect("no panic")[0].refused.is_none());
    }
    assert_eq!(admitted, 60);
    let link = Link::open(&config(9), "server-0").await.expect("taken");
    assert_eq!(link.servers(), 3);
}

/// Passes bytes on, each piece after a delay that the test sets; 0 milliseconds is none.
async fn proxy(delay: Arc<AtomicU64>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let target = redis().0.rsplit_once('@').expect("a password").1.to_owned();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(&target).await.expect("Redis");
            let ((mut near_in, mut near_out), (mut far_in, mut far_out)) =
                (near.into_split(), far.into_split());
            tokio::spawn(async move { tokio::io::copy(&mut near_in, &mut far_out).await });
            let delay = Arc::clone(&delay);
            tokio::spawn(async move {
                let mut piece = vec![0; 4096];
                while let Ok(length @ 1..) = far_in.read(&mut piece).await {
                    tokio::time::sleep(Duration::from_millis(delay.load(Ordering::Acquire))).await;
                    if near_out.write_all(&piece[..length]).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    port
}

fn through(port: u16, db: u8) -> RedisConfig {
    let url = redis().0;
    let password = url.split_once("://").and_then(|(_, rest)| rest.rsplit_once('@')).expect("a password").0;
    let url = Secret::new(format!("redis://{password}@127.0.0.1:{port}/{db}"));
    RedisConfig::new(&url, None, false).expect("a URL")
}

#[tokio::test]
async fn a_slow_redis_is_given_up_and_found_again() {
    connection(10).await;
    let delay = Arc::new(AtomicU64::new(0));
    let mut config = through(proxy(Arc::clone(&delay)).await, 10);
    config.deadline = Duration::from_millis(200);
    let link = Link::open(&config, "server").await.expect("taken");
    let keeping = tokio::spawn(link.clone().keep());
    until("the link is up", || link.is_up()).await;

    delay.store(60_000, Ordering::Release);
    let mut answers = Vec::new();
    for _ in 0..10 {
        answers.push(link.take(&[("address:10.0.0.2", LIMITS)]).await);
    }

    // Nobody waited for the answer that comes in a minute; after some misses nobody waits at all.
    assert!(answers.iter().all(Result::is_err) && !link.is_up());
    delay.store(0, Ordering::Release);
    until("the link is up again", || link.is_up()).await;
    assert!(link.take(&[("address:10.0.0.2", LIMITS)]).await.is_ok());
    keeping.abort();
}

#[tokio::test]
async fn a_redis_that_is_not_there_is_waited_for() {
    let url = Secret::new("redis://127.0.0.1:1/0");
    let config = RedisConfig::new(&url, None, false).expect("a URL");

    let link = Link::open(&config, "server").await.expect("no refusal");

    assert!(!link.is_up());
    assert!(link.take(&[("address:10.0.0.3", LIMITS)]).await.is_err());
    assert_eq!(link.servers(), 1);
}

#[tokio::test]
async fn a_wrong_password_database_or_certificate_is_a_refusal() {
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let (url, tls, ca) = redis();
    let wrong = url.replacen("://:", "://:x", 1);
    let none = format!("redis://{}", url.rsplit_once('@').expect("a password").1);
    let password = url["redis://:".len()..].split('@').next().expect("a password").to_owned();
    for url in [wrong, none, format!("{url}/64000"), tls.clone()] {
        let config = RedisConfig::new(&Secret::new(url.clone()), None, false).expect("a URL");
        let SharedError::Refused { place, reason } = Link::open(&config, "server").await.expect_err(&url);
        assert!(!format!("{place} {reason}").contains(&password), "{reason}");
    }
    assert!(!tls.is_empty(), "this build of Redis has TLS");
    let ca = std::fs::read_to_string(ca).expect("the authority");
    let mut config = RedisConfig::new(&Secret::new(format!("{tls}/11")), Some(ca), false).expect("a URL");
    config.deadline = Duration::from_secs(5);
    let link = Link::open(&config, "server").await.expect("taken");
    assert!(link.is_up() && link.take(&[("address:10.0.0.4", LIMITS)]).await.is_ok());
}

#[tokio::test]
async fn an_account_that_is_taken_away_later_is_a_redis_that_is_away() {
    let mut admin = connection(13).await;
    let acl = |words: &'static [&'static str]| {
        let mut command = redis::cmd("ACL");
        for word in words {
            command.arg(*word);
        }
        command
    };
    let make = acl(&["SETUSER", "interlock-later", "on", ">sesame", "~*", "&*", "+@all"]);
    make.query_async::<()>(&mut admin).await.expect("made");
    let host = redis().0.rsplit_once('@').expect("a password").1.to_owned();
    let url = Secret::new(format!("redis://interlock-later:sesame@{host}/13"));
    let mut config = RedisConfig::new(&url, None, false).expect("a URL");
    config.deadline = Duration::from_secs(5);
    let link = Link::open(&config, "server").await.expect("taken");
    let keeping = tokio::spawn(link.clone().keep());
    assert!(link.take(&[("address:10.0.0.5", LIMITS)]).await.is_ok());

    acl(&["DELUSER", "interlock-later"]).query_async::<u32>(&mut admin).await.expect("taken away");
    until("the link is down", || !link.is_up()).await;
    assert!(link.take(&[("address:10.0.0.5", LIMITS)]).await.is_err());
    make.query_async::<()>(&mut admin).await.expect("made again");
    until("the link is up again", || link.is_up()).await;
    assert!(link.take(&[("address:10.0.0.5", LIMITS)]).await.is_ok());

    acl(&["DELUSER", "interlock-later"]).query_async::<u32>(&mut admin).await.expect("taken away");
    keeping.abort();
}

#[tokio::test]
async fn a_server_that_ends_leaves_no_share_behind() {
    connection(14).await;
    let links = [
        Link::open(&config(14), "one").await.expect("taken"),
        Link::open(&config(14), "two").await.expect("taken"),
    ];
    let keeping = tokio::spawn(links[0].clone().keep());
    until("both are counted", || links[0].servers() == 2).await;

    links[1].leave().await;

    until("one is left", || links[0].servers() == 1).await;
    keeping.abort();
}

#[tokio::test]
async fn news_reach_the_other_server_and_one_that_comes_late_looks_once() {
    connection(12).await;
    let (one, two) = (
        Link::open(&config(12), "one").await.expect("taken"),
        Link::open(&config(12), "two").await.expect("taken"),
    );
    let mut heard = two.news();
    let tasks = [tokio::spawn(one.clone().tell()), tokio::spawn(two.clone().listen())];
    // Whoever begins to listen looks once.
    tokio::time::timeout(Duration::from_secs(20), heard.changed())
        .await
        .expect("in time")
        .expect("listening");

    for _ in 0..3 {
        heard.mark_unchanged();
        one.publish();
        tokio::time::timeout(Duration::from_secs(20), heard.changed()).await.expect("in time").expect("news");
    }
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
}
