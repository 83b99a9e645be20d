//! Bans: what leads to one, what does not, who may look and change.

use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::{Lab, eventually};

const ATTACK: &str = "/tasks?filter=';%20DROP%20TABLE%20tasks;%20--";

async fn attack(lab: &Lab, from: &str, times: usize) {
    for _ in 0..times {
        lab.get(ATTACK).from(from).send().await.refused(400, "request_blocked");
    }
}

async fn status(lab: &Lab, from: &str) -> u16 {
    lab.get("/nothing").from(from).send().await.status.as_u16()
}

#[tokio::test]
async fn five_attacks_in_an_hour_ban_the_address_for_an_hour() {
    let lab = Lab::start().await;
    let viewer = lab.token("vic").await;

    attack(&lab, "10.0.0.9", 5).await;

    let blocked = lab.get("/nothing").from("10.0.0.9").send().await;
    let body = blocked.refused(403, "client_blocked");
    assert_eq!(blocked.header("retry-after"), Some("3601"));
    assert!(!body.to_string().contains("sql"));
    // A token does not help; the stop and the probes are never refused; nobody else is touched.
    lab.get("/tasks").from("10.0.0.9").signed(&viewer).send().await.refused(403, "client_blocked");
    lab.post("/stop").from("10.0.0.9").signed(&viewer).send().await.ok();
    lab.get("/health/live").from("10.0.0.9").send().await.ok();
    assert_eq!(status(&lab, "10.0.0.8").await, 404);

    lab.clock.advance(Duration::from_secs(3_599));
    assert_eq!(status(&lab, "10.0.0.9").await, 403);
    lab.clock.advance(Duration::from_secs(2));
    assert_eq!(status(&lab, "10.0.0.9").await, 404);
    eventually("the ban is on record", || async { lab.trail_of("ban.imposed").await.len() == 1 }).await;
    lab.assert_chain().await;
}

#[tokio::test]
async fn attacks_that_are_far_apart_do_not_add_up() {
    let lab = Lab::start().await;

    for _ in 0..12 {
        attack(&lab, "10.0.0.9", 1).await;
        lab.clock.advance(Duration::from_mins(16));
    }

    assert_eq!(status(&lab, "10.0.0.9").await, 404);
}

#[tokio::test]
async fn each_further_ban_is_twice_as_long_up_to_a_day() {
    let lab = Lab::start().await;
    let mut hours = Vec::new();

    for _ in 0..7 {
        attack(&lab, "10.0.0.9", 5).await;
        let blocked = lab.get("/nothing").from("10.0.0.9").send().await;
        blocked.refused(403, "client_blocked");
        let seconds: u64 = blocked.header("retry-after").and_then(|text| text.parse().ok()).expect("seconds");
        hours.push(seconds / 3_600);
        lab.clock.advance(Duration::from_secs(seconds));
    }

    assert_eq!(hours, [1, 2, 4, 8, 16, 24, 24]);
    lab.clock.advance(Duration::from_hours(25));
    attack(&lab, "10.0.0.9", 5).await;
    let blocked = lab.get("/nothing").from("10.0.0.9").send().await;
    assert_eq!(blocked.header("retry-after"), Some("3601"), "a day of quiet is forgiven");
}

#[tokio::test]
async fn our_own_refusals_and_doubtful_hits_never_count() {
    let lab = Lab::with(|config| config.rate.enabled = true).await;
    let viewer = lab.token("vic").await;

    for _ in 0..30 {
        lab.get("/users").from("10.0.0.9").send().await;
        lab.get("/users").from("10.0.0.9").signed(&viewer).send().await;
        lab.get("/nothing").from("10.0.0.9").send().await;
        lab.post("/auth/login")
            .from("10.0.0.9")
            .json(&json!({ "username": "x", "password": "y" }))
            .send()
            .await;
        lab.get("/tasks?x=%00").from("10.0.0.10").send().await;
    }

    assert!(lab.app.bans.standing("10.0.0.9".parse().expect("address")).is_none());
    assert!(lab.app.bans.standing("10.0.0.10".parse().expect("address")).is_none());
}

#[tokio::test]
async fn an_ipv6_network_of_64_bits_is_one_client() {
    let lab = Lab::start().await;

    for host in 0..5 {
        attack(&lab, &format!("2001:db8::{host:x}"), 1).await;
    }

    assert_eq!(status(&lab, "2001:db8::ffff").await, 403);
    assert_eq!(status(&lab, "2001:db8:0:1::1").await, 404);
}

#[tokio::test]
async fn the_allow_list_and_trusted_proxies_are_never_banned() {
    let lab = Lab::allowing(&["10.0.0.0/24"], |config| {
        config.trusted_proxies = vec!["10.9.0.0/16".parse().expect("a network")];
    })
    .await;
    let admin = lab.token("ada").await;

    attack(&lab, "10.0.0.9", 12).await;
    attack(&lab, "10.9.0.1", 12).await;
    assert_eq!(status(&lab, "10.0.0.9").await, 404);
    assert_eq!(status(&lab, "10.9.0.1").await, 404);

    // Not by hand either; and a wider ban leaves them out.
    let add = |network: &str| json!({ "network": network, "reason": "test" });
    let ask = lab.post("/bans").from("192.0.2.1").signed(&admin);
    ask.json(&add("10.0.0.9")).send().await.refused(409, "conflict");
    let ask = lab.post("/bans").from("192.0.2.1").signed(&admin);
    assert_eq!(ask.json(&add("10.0.0.0/8")).send().await.status.as_u16(), 201);
    assert_eq!(status(&lab, "10.0.0.9").await, 404);
    assert_eq!(status(&lab, "10.3.0.1").await, 403);
}

#[tokio::test]
async fn behind_a_trusted_proxy_the_client_is_banned_and_not_the_proxy() {
    let lab =
        Lab::with(|config| config.trusted_proxies = vec!["10.9.0.1/32".parse().expect("a network")]).await;
    for _ in 0..5 {
        let ask = lab.get(ATTACK).from("10.9.0.1").header("x-forwarded-for", "203.0.113.7");
        ask.send().await.refused(400, "request_blocked");
    }

    let through = async |client: &str| {
        let ask = lab.get("/nothing").from("10.9.0.1").header("x-forwarded-for", client);
        ask.send().await.status.as_u16()
    };
    assert_eq!(through("203.0.113.7").await, 403);
    assert_eq!(through("203.0.113.8").await, 404);
    // A stranger cannot put the blame on another.
    for _ in 0..5 {
        lab.get(ATTACK).from("192.0.2.9").header("x-forwarded-for", "203.0.113.8").send().await;
    }
    assert_eq!(through("203.0.113.8").await, 404);
    assert_eq!(status(&lab, "192.0.2.9").await, 403);
}

#[tokio::test]
async fn an_administrator_lists_adds_and_lifts_bans() {
    let lab = Lab::start().await;
    let admin = lab.token("ada").await;
    let list = async || lab.get("/bans").signed(&admin).send().await.ok();
    assert_eq!(list().await, json!([]));

    let body = json!({ "network": "203.0.113.0/24", "reason": "scans every night", "seconds": 7200 });
    let added = lab.post("/bans").signed(&admin).json(&body).send().await;
    assert_eq!(added.status.as_u16(), 201, "{}", added.text());
    assert_eq!(
        (&added.json()["network"], &added.json()["added_by"]),
        (&json!("203.0.113.0/24"), &json!("ada"))
    );
    let endless = json!({ "network": "2001:db8::1", "reason": "a stolen tablet" });
    lab.post("/bans").signed(&admin).json(&endless).send().await;
    assert_eq!(list().await[0]["ends_at"], Value::Null);
    assert_eq!(list().await[0]["network"], "2001:db8::/64");
    assert_eq!(status(&lab, "203.0.113.200").await, 403);
    assert_eq!(status(&lab, "2001:db8::2").await, 403);

    lab.ask(axum::http::Method::DELETE, "/bans/203.0.113.0%2F24").signed(&admin).send().await.ok();
    lab.ask(axum::http::Method::DELETE, "/bans/2001:db8::-64").signed(&admin).send().await.ok();
    let again = lab.ask(axum::http::Method::DELETE, "/bans/203.0.113.0%2F24").signed(&admin).send().await;
    again.refused(404, "ban_not_found");
    assert_eq!(status(&lab, "203.0.113.200").await, 404);
    assert_eq!(list().await, json!([]));
    assert_eq!(lab.trail_of("ban.added").await.len(), 2);

    lab.post("/bans").signed(&admin).json(&body).send().await;
    lab.clock.advance(Duration::from_secs(7199));
    assert_eq!(status(&lab, "203.0.113.200").await, 403);
    lab.clock.advance(Duration::from_secs(2));
    assert_eq!(status(&lab, "203.0.113.200").await, 404);
    let removed = lab.trail_of("ban.removed").await;
    assert_eq!(removed[0].draft.subject.as_deref(), Some("203.0.113.0/24"));
    lab.assert_chain().await;
}

#[tokio::test]
async fn what_a_ban_must_not_be_is_refused() {
    let lab = Lab::start().await;
    let admin = lab.token("ada").await;
    let add = async |body: Value| lab.post("/bans").signed(&admin).json(&body).send().await;

    for body in [
        json!({ "network": "lab.example", "reason": "x" }),
        json!({ "network": "10.0.0.1/8", "reason": "x" }),
        json!({ "network": "0.0.0.0/0", "reason": "x" }),
        json!({ "network": "::/0", "reason": "x" }),
        json!({ "network": "203.0.113.7", "reason": " " }),
        json!({ "network": "203.0.113.7", "reason": "a\nb" }),
        json!({ "network": "203.0.113.7", "reason": "x", "seconds": 59 }),
        json!({ "network": "203.0.113.7", "reason": "x", "seconds": 999_999_999_999_u64 }),
        json!({ "network": "203.0.113.7" }),
    ] {
        add(body).await.refused(422, "invalid_request");
    }
    // The network that the administrator calls from.
    add(json!({ "network": "10.0.0.0/8", "reason": "x" })).await.refused(409, "conflict");
    assert_eq!(lab.get("/bans").signed(&admin).send().await.ok(), json!([]));
}

#[tokio::test]
async fn lifting_a_ban_forgives_what_led_to_it() {
    let lab = Lab::start().await;
    let admin = lab.token("ada").await;
    attack(&lab, "10.0.0.9", 5).await;
    eventually("the ban is stored", || async { !lab.trail_of("ban.imposed").await.is_empty() }).await;

    lab.ask(axum::http::Method::DELETE, "/bans/10.0.0.9").signed(&admin).send().await.ok();
    assert_eq!(status(&lab, "10.0.0.9").await, 404);
    attack(&lab, "10.0.0.9", 4).await;
    assert_eq!(status(&lab, "10.0.0.9").await, 404);
    attack(&lab, "10.0.0.9", 1).await;
    let blocked = lab.get("/nothing").from("10.0.0.9").send().await;
    assert_eq!(blocked.header("retry-after"), Some("3601"));
}

#[tokio::test]
async fn a_ban_holds_although_it_cannot_be_stored() {
    let lab = Lab::start().await;
    lab.store.fail_writes_after(0);

    attack(&lab, "10.0.0.9", 5).await;

    assert_eq!(status(&lab, "10.0.0.9").await, 403);
    lab.app.bans.reload().await.expect("readable");
    assert_eq!(status(&lab, "10.0.0.9").await, 403);
    lab.store.mend();
}

#[tokio::test]
async fn attacks_by_somebody_who_is_signed_in_count_against_that_principal_and_not_its_network() {
    let lab = Lab::start().await;
    let (vic, ana, ada) = (lab.token("vic").await, lab.token("ana").await, lab.token("ada").await);

    for _ in 0..5 {
        lab.get(ATTACK).from("10.0.0.9").signed(&vic).send().await.refused(400, "request_blocked");
    }

    for from in ["10.0.0.9", "10.0.0.8"] {
        lab.get("/tasks").from(from).signed(&vic).send().await.refused(403, "client_blocked");
    }
    lab.get("/auth/me").from("10.0.0.9").signed(&ana).send().await.ok();
    assert_eq!(status(&lab, "10.0.0.9").await, 404);
    lab.post("/stop").from("10.0.0.9").signed(&vic).send().await.ok();
    eventually("the ban is on record", || async { lab.trail_of("ban.imposed").await.len() == 1 }).await;
    let blocked = lab.trail_of("request.blocked").await;
    assert!(blocked.iter().any(|entry| entry.draft.actor.as_deref() == Some("vic")), "{blocked:?}");

    // On record, for other servers and after a restart, and an administrator can lift it.
    lab.app.bans.reload().await.expect("the bans");
    lab.get("/tasks").signed(&vic).send().await.refused(403, "client_blocked");
    let listed = lab.get("/bans").signed(&ada).send().await.ok();
    assert_eq!(listed[0]["network"], "user:vic");
    lab.delete("/bans/user:vic").signed(&ada).send().await.ok();
    lab.get("/tasks").signed(&vic).send().await.ok();
}

#[tokio::test]
async fn a_banned_principal_that_goes_on_counts_against_its_network() {
    let lab = Lab::start().await;
    let vic = lab.token("vic").await;

    for _ in 0..10 {
        lab.get(ATTACK).from("10.0.0.9").signed(&vic).send().await.refused(400, "request_blocked");
    }

    assert_eq!(status(&lab, "10.0.0.9").await, 403);
}

#[tokio::test]
async fn a_token_that_is_not_in_force_makes_nobody_else_pay() {
    let lab = Lab::start().await;
    let vic = lab.token("vic").await;
    let forged = format!("{vic}x");

    for _ in 0..5 {
        lab.get(ATTACK).from("10.0.0.9").signed(&forged).send().await.refused(400, "request_blocked");
    }

    assert_eq!(status(&lab, "10.0.0.9").await, 403);
    lab.get("/tasks").from("10.0.0.8").signed(&vic).send().await.ok();
}

#[tokio::test]
async fn attacks_in_bodies_count_against_who_sent_them() {
    let lab = Lab::start().await;
    let ada = lab.token("ada").await;
    let body = json!({ "name": "';DROP TABLE users;--", "password": "seven purple pipettes", "roles": [] });

    for _ in 0..5 {
        lab.post("/users")
            .from("10.0.0.9")
            .signed(&ada)
            .json(&body)
            .send()
            .await
            .refused(400, "request_blocked");
    }

    lab.get("/users").from("10.0.0.8").signed(&ada).send().await.refused(403, "client_blocked");
    assert_eq!(status(&lab, "10.0.0.9").await, 404);
}
