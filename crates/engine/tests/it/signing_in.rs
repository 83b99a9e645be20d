//! Guessing in parallel.

use std::time::Duration;

use interlock_engine::auth::{Origin, SignInError, Wanted};
use interlock_model::secret::Secret;

use crate::bench::{Bench, Scripted, fresh, origin, password};

/// Programs that ask for all there is.
const EVERYTHING: &Wanted = &Wanted { scopes: None, brief: false };

async fn guesses(bench: &Bench, name: &str, count: usize) -> (usize, usize) {
    let attempts = (0..count).map(|guess| {
        bench.identity.sign_ins.person(name, Secret::new(format!("guess {guess}")), None, EVERYTHING, &SHARED)
    });
    let answers = futures::future::join_all(attempts).await;
    let refused = answers.iter().filter(|answer| matches!(answer, Err(SignInError::Refused))).count();
    let waiting = answers
        .iter()
        .filter(|answer| matches!(answer, Err(SignInError::Wait(wait)) if *wait >= Duration::from_millis(1)))
        .count();
    (refused, waiting)
}

static SHARED: std::sync::LazyLock<interlock_engine::auth::Origin> = std::sync::LazyLock::new(origin);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn guesses_that_come_at_once_do_not_slip_past_the_delay() {
    let (_folder, bench) = fresh(Scripted::prompt()).await;
    bench.user("ana", &["operator"]).await;

    for name in ["ana", "nobody"] {
        assert_eq!(guesses(&bench, name, 40).await, (5, 35), "{name}");
    }
    // A wait that was told is a wait that ends: the right password passes afterwards.
    bench.clock.advance(Duration::from_secs(1));
    assert!(
        bench.identity.sign_ins.person("ana", password("ana"), None, EVERYTHING, &origin()).await.is_ok()
    );
}

/// Tries `count` guesses at `name`, at most 50 under way, from as many networks as `networks`; returns how many were evaluated.
async fn evaluated(bench: &Bench, name: &str, count: u32, networks: u32) -> usize {
    use futures::StreamExt as _;

    futures::stream::iter(0..count)
        .map(|guess| async move {
            let from =
                Origin { client_ip: (0x0a00_0000 + guess % networks).to_be_bytes().into(), ..origin() };
            let answer = bench
                .identity
                .sign_ins
                .person(name, Secret::new(format!("guess {guess}")), None, EVERYTHING, &from)
                .await;
            matches!(answer, Err(SignInError::Refused))
        })
        .buffer_unordered(50)
        .filter(|evaluated| std::future::ready(*evaluated))
        .count()
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_ten_thousand_parallel_guesses_exactly_what_the_policy_allows_is_evaluated() {
    let (_folder, bench) = fresh(Scripted::prompt()).await;
    bench.user("ana", &["operator"]).await;
    bench.user("ben", &["operator"]).await;

    for name in ["ana", "nobody"] {
        assert_eq!(evaluated(&bench, name, 10_000, 1).await, 5, "{name} from one network");
    }
    for name in ["ben", "nobody-else"] {
        assert_eq!(evaluated(&bench, name, 10_000, 200).await, 100, "{name} from many networks");
    }
}

#[tokio::test]
async fn strangers_never_lock_the_owner_out_and_an_administrator_can_unlock() {
    let (_folder, bench) = fresh(Scripted::prompt()).await;
    bench.user("ana", &["operator"]).await;
    let home = Origin { client_ip: [192, 0, 2, 7].into(), ..origin() };
    let sign_in = async |from: &Origin| {
        bench.identity.sign_ins.person("ana", password("ana"), None, EVERYTHING, from).await
    };
    sign_in(&home).await.expect("at home");

    evaluated(&bench, "ana", 2_000, 200).await;

    sign_in(&home).await.expect("still at home");
    let hotel = Origin { client_ip: [198, 51, 100, 9].into(), ..origin() };
    assert!(matches!(sign_in(&hotel).await, Err(SignInError::Wait(_))), "the ceiling holds for new places");
    let root = interlock_engine::auth::SystemPermit::root("console");
    let locked = bench.identity.throttle.list_here(&root).await.expect("the list");
    assert_eq!(locked.iter().filter(|lockout| lockout.account.as_deref() == Some("ana")).count(), 1);
    assert!(bench.identity.throttle.unlock_here(&root, "ana").await.expect("unlocked"));
    sign_in(&hotel).await.expect("away from home");
}

#[tokio::test]
async fn guesses_are_counted_over_a_restart() {
    let (folder, bench) = fresh(Scripted::prompt()).await;
    bench.user("ana", &["operator"]).await;
    assert_eq!(evaluated(&bench, "ana", 20, 1).await, 5);
    bench.store.close().await;

    let again = Bench::open(folder.path(), Scripted::prompt(), 2).await;

    assert_eq!(evaluated(&again, "ana", 20, 1).await, 0);
}

#[tokio::test]
async fn a_hundred_failures_cost_a_quarter_of_an_hour_each() {
    let (_folder, bench) = fresh(Scripted::prompt()).await;
    let mut counted = 0;
    let mut seconds = 0;
    while counted < 100 {
        match bench
            .identity
            .sign_ins
            .person("nobody", Secret::new("guess"), None, EVERYTHING, &origin())
            .await
        {
            Err(SignInError::Refused) => counted += 1,
            Err(SignInError::Wait(wait)) => {
                seconds += wait.as_secs();
                bench.clock.advance(wait);
            }
            other => panic!("{other:?}"),
        }
    }

    let Err(SignInError::Wait(wait)) =
        bench.identity.sign_ins.person("nobody", Secret::new("guess"), None, EVERYTHING, &origin()).await
    else {
        panic!("the hundred and first guess must wait");
    };

    assert_eq!(wait, Duration::from_mins(15));
    assert!(seconds > 3_000, "{seconds}");
}

#[tokio::test]
async fn a_password_that_changes_during_the_check_gives_no_living_token() {
    let (_folder, bench) = fresh(Scripted::prompt()).await;
    bench.user("ana", &["operator"]).await;
    let root = interlock_engine::auth::SystemPermit::root("console");
    let console = bench.users.console(&root);

    let (here, there) = (origin(), password("ana"));
    let (signed_in, changed) = tokio::join!(
        bench.identity.sign_ins.person("ana", there, None, EVERYTHING, &here),
        console.set_password("ana", Secret::new("nine yellow burettes"))
    );

    changed.expect("changed");
    let epoch = bench.principals.user("ana").expect("there").tokens_valid_from;
    if let Ok(session) = signed_in {
        let caller = bench.guard.authenticate(Some(session.issued.access.expose()), &origin());
        assert!(caller.is_err(), "a token of the old password outlived {epoch}");
    }
}
