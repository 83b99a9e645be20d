//! What people are told about their accounts, and access reviews.

use std::time::Duration;

use interlock_engine::auth::SystemPermit;
use serde_json::{Value, json};

use crate::factors::enrol;
use crate::lab::{Lab, password};

/// Signs in from an address with a program, and returns the token.
async fn sign_in(lab: &Lab, name: &str, from: &str, program: &str) -> String {
    let body = json!({ "username": name, "password": password(name).expose() });
    let ask = lab.post("/auth/login").from(from).header("user-agent", program).json(&body);
    let answer = ask.send().await.ok();
    answer["access_token"].as_str().expect("a token").to_owned()
}

async fn notices(lab: &Lab, token: &str) -> Vec<Value> {
    lab.get("/auth/notices").signed(token).send().await.ok().as_array().expect("a list").clone()
}

fn kinds(notices: &[Value]) -> Vec<&str> {
    notices.iter().map(|notice| notice["kind"].as_str().expect("a kind")).collect()
}

#[tokio::test]
async fn a_sign_in_unlike_the_ones_before_is_told_and_a_usual_one_is_not() {
    let lab = Lab::start().await;
    let home = "192.0.2.1";
    sign_in(&lab, "ana", home, "interlock/1").await;
    let token = sign_in(&lab, "ana", home, "interlock/2").await;
    assert_eq!(notices(&lab, &token).await, Vec::<Value>::new(), "the first sign-in and one like it");

    lab.clock.advance(Duration::from_mins(1));
    let token = sign_in(&lab, "ana", "198.51.100.9", "curl/8").await;
    let told = notices(&lab, &token).await;
    assert_eq!(told[0]["details"]["reasons"], json!(["new_network", "new_program"]));
    assert_eq!((&told[0]["from"], &told[0]["read"]), (&json!("198.51.100.9"), &json!(false)));
    assert!(
        told[0]["text"].as_str().is_some_and(|text| text.contains("where you had not signed in")),
        "{told:?}"
    );

    // Somebody guesses elsewhere; the owner hears of it.
    lab.clock.advance(Duration::from_secs(1));
    let wrong = json!({ "username": "ana", "password": "wrong wrong wrong" });
    for _ in 0..2 {
        lab.post("/auth/login").from("203.0.113.5").json(&wrong).send().await.refused(401, "unauthorized");
    }
    lab.clock.advance(Duration::from_mins(1));
    let token = sign_in(&lab, "ana", home, "interlock/2").await;
    let told = notices(&lab, &token).await;
    assert_eq!(told[0]["details"]["reasons"], json!(["after_failures"]));
    assert_eq!(told[0]["details"]["failures"], 2);

    lab.clock.advance(Duration::from_hours(24 * 91));
    let token = sign_in(&lab, "ana", home, "interlock/2").await;
    let told = notices(&lab, &token).await;
    let reasons = told[0]["details"]["reasons"].as_array().expect("reasons").clone();
    assert!(reasons.contains(&json!("after_long_silence")), "{reasons:?}");
    assert_eq!(told.len(), 3);
}

#[tokio::test]
async fn a_mistake_of_one_s_own_is_no_news() {
    let lab = Lab::start().await;
    sign_in(&lab, "ana", "192.0.2.1", "interlock/1").await;
    let wrong = json!({ "username": "ana", "password": "wrong wrong wrong" });
    lab.clock.advance(Duration::from_secs(1));
    for _ in 0..2 {
        lab.post("/auth/login").from("192.0.2.1").json(&wrong).send().await.refused(401, "unauthorized");
    }

    let token = sign_in(&lab, "ana", "192.0.2.1", "interlock/1").await;

    assert_eq!(notices(&lab, &token).await, Vec::<Value>::new());
}

#[tokio::test]
async fn the_right_password_without_the_second_factor_is_told_unless_the_factor_follows() {
    let lab = Lab::start().await;
    sign_in(&lab, "ana", "192.0.2.1", "interlock/1").await;
    let (app, _) = enrol(&lab, "ana").await;
    let word = password("ana");
    let body = json!({ "username": "ana", "password": word.expose() });
    let with = |code: &str| json!({ "username": "ana", "password": word.expose(), "otp": code });

    // A thief.
    lab.post("/auth/login")
        .from("203.0.113.5")
        .json(&body)
        .send()
        .await
        .refused(401, "second_factor_required");
    lab.clock.advance(Duration::from_secs(31));
    lab.post("/auth/login")
        .from("203.0.113.5")
        .json(&with("000000"))
        .send()
        .await
        .refused(401, "second_factor_required");
    // The owner, in two steps.
    lab.clock.advance(Duration::from_secs(31));
    let ask = lab.post("/auth/login").from("192.0.2.1").header("user-agent", "interlock/1").json(&body);
    ask.send().await.refused(401, "second_factor_required");
    let code = app.next_code(&lab);
    let ask =
        lab.post("/auth/login").from("192.0.2.1").header("user-agent", "interlock/1").json(&with(&code));
    let answer = ask.send().await.ok();

    let token = answer["access_token"].as_str().expect("a token");
    let told = notices(&lab, token).await;
    let half: Vec<_> = told.iter().filter(|notice| notice["kind"] == "sign_in.incomplete").collect();
    let of: Vec<_> = half.iter().map(|n| (&n["from"], &n["details"]["second_factor"])).collect();
    let thief = json!("203.0.113.5");
    assert_eq!(of, [(&thief, &json!("wrong")), (&thief, &json!("missing"))]);
    assert_eq!(answer["notices"], told.len(), "{told:?}");
}

#[tokio::test]
async fn every_change_of_a_credential_is_told_to_its_owner_and_to_nobody_else() {
    let lab = Lab::start().await;
    let (ana, ada) = (lab.token("ana").await, lab.token("ada").await);
    let key = json!({ "name": "script", "scopes": ["runs:read"], "expires_in_days": 90 });
    let made = lab.post("/auth/keys").signed(&ana).json(&key).send().await.json();
    let path = format!("/auth/keys/{}", made["id"].as_str().expect("an id"));
    lab.ask(axum::http::Method::DELETE, &path).signed(&ana).send().await.ok();
    enrol(&lab, "ana").await;
    let roles = json!({ "roles": ["operator", "viewer"] });
    lab.ask(axum::http::Method::PATCH, "/users/ana").signed(&ada).json(&roles).send().await.ok();
    lab.ask(axum::http::Method::DELETE, "/users/ana/factors").signed(&ada).send().await.ok();
    let password = json!({ "password": "another seven pipettes" });
    lab.post("/users/ana/password").signed(&ada).json(&password).send().await.ok();

    lab.clock.advance(Duration::from_secs(1));
    let body = json!({ "username": "ana", "password": "another seven pipettes" });
    let answer = lab.post("/auth/login").json(&body).send().await.ok();
    let token = answer["access_token"].as_str().expect("a token");
    let told = notices(&lab, token).await;

    assert_eq!(
        kinds(&told),
        [
            "user.password_set",
            "user.factors_reset",
            "user.updated",
            "factor.confirmed",
            "api_key.revoked",
            "api_key.created"
        ]
    );
    assert_eq!((&told[0]["by"], &told[5]["by"]), (&json!("ada"), &Value::Null));
    assert!(told[5]["text"].as_str().is_some_and(|text| text.contains("script")));
    assert_eq!(notices(&lab, &lab.token("ben").await).await, Vec::<Value>::new());
    assert_eq!(notices(&lab, &ada).await, Vec::<Value>::new());

    // Seen up to a time; never beyond the present, so that nothing that comes later is hidden.
    let until = json!({ "until": "2100-01-01T00:00:00Z" });
    lab.post("/auth/notices/read").signed(token).json(&until).send().await.ok();
    assert!(notices(&lab, token).await.iter().all(|notice| notice["read"] == true));
    lab.clock.advance(Duration::from_secs(1));
    let change = json!({ "current": "another seven pipettes", "new": "yet another seven pipettes" });
    let answer = lab.post("/auth/password").signed(token).json(&change).send().await.ok();
    let told = notices(&lab, answer["access_token"].as_str().expect("a token")).await;
    assert_eq!((&told[0]["kind"], &told[0]["read"]), (&json!("user.password_changed"), &json!(false)));
}

#[tokio::test]
async fn notices_are_bounded_and_for_people_only() {
    let lab = Lab::start().await;
    let ana = lab.token("ana").await;
    for number in 0..60 {
        let key = json!({ "name": format!("key {number}"), "scopes": ["runs:read"], "expires_in_days": 90 });
        let made = lab.post("/auth/keys").signed(&ana).json(&key).send().await.json();
        let path = format!("/auth/keys/{}", made["id"].as_str().expect("an id"));
        lab.ask(axum::http::Method::DELETE, &path).signed(&ana).send().await.ok();
    }
    assert_eq!(notices(&lab, &ana).await.len(), 50);

    let agent = lab.agent_token(&["runs:read"]).await;
    lab.get("/auth/notices").signed(&agent).send().await.refused(403, "forbidden");
    let key = json!({ "name": "key", "scopes": ["runs:read"], "expires_in_days": 90 });
    let made = lab.post("/auth/keys").signed(&ana).json(&key).send().await.json();
    let text = made["key"].as_str().expect("a key");
    lab.get("/auth/notices").signed(text).send().await.refused(403, "forbidden");
    let junk = json!({ "until": "tomorrow" });
    lab.post("/auth/notices/read").signed(&ana).json(&junk).send().await.refused(422, "invalid_request");
}

#[tokio::test]
async fn whoever_must_renew_a_credential_is_reminded_twice_and_in_time() {
    let lab = Lab::start().await;
    let (ana, ada) = (lab.token("ana").await, lab.token("ada").await);
    let key = json!({ "name": "nightly", "scopes": ["runs:read"], "expires_in_days": 30 });
    lab.post("/auth/keys").signed(&ana).json(&key).send().await;
    let (agent, _) = lab.agent(&["runs:read"]).await;
    let end = lab.now().plus(Duration::from_hours(24 * 30));
    let secret = json!({ "expires_at": end });
    lab.post(&format!("/agents/{agent}/credentials")).signed(&ada).json(&secret).send().await.ok();
    let permit = SystemPermit::root("system");
    let remind = async || lab.app.identity.notices.remind(&permit).await.expect("reminded");

    assert_eq!(remind().await, 0, "a month is enough time");
    lab.clock.advance(Duration::from_hours(24 * 17));
    // The key for its owner, the secret for both administrators.
    assert_eq!(remind().await, 3);
    assert_eq!(remind().await, 0, "once is enough");
    lab.clock.advance(Duration::from_hours(24 * 11));
    assert_eq!(remind().await, 3, "and again when it becomes pressing");
    assert_eq!(remind().await, 0);

    let ana = sign_in(&lab, "ana", "10.0.0.7", "").await;
    let told = notices(&lab, &ana).await;
    let expiring: Vec<_> = told.iter().filter(|n| n["kind"] == "credential.expiring").collect();
    assert_eq!(expiring.len(), 2, "{told:?}");
    assert!(expiring[0]["text"].as_str().is_some_and(|text| text.contains("interlock key create")));
    let ada = sign_in(&lab, "ada", "10.0.0.7", "").await;
    let told = notices(&lab, &ada).await;
    let expiring: Vec<_> = told.iter().filter(|n| n["kind"] == "credential.expiring").collect();
    assert_eq!(expiring[0]["details"]["credential"], "secret");

    // What was renewed is not told about any more.
    let secret = json!({ "overlap_seconds": 3600 });
    lab.post(&format!("/agents/{agent}/credentials")).signed(&ada).json(&secret).send().await.ok();
    lab.clock.advance(Duration::from_hours(24));
    assert_eq!(remind().await, 0);
}

#[tokio::test]
async fn a_password_that_is_guessed_early_is_told_at_sign_in() {
    let lab = Lab::start().await;
    // Such a password cannot be chosen here; it comes with an import.
    let hash = "$2b$04$abcdefghijklmnopqrstuup3Sqms13NMbfjsiOrnUZxz68hUyJuty";
    let weak = "password password";
    let console = SystemPermit::root("console:test");
    let roles = ["operator".to_owned()];
    lab.app.users.console(&console).import("ida", hash.to_owned(), &roles).await.expect("imported");

    let answer =
        lab.post("/auth/login").json(&json!({ "username": "ida", "password": weak })).send().await.ok();

    let told = notices(&lab, answer["access_token"].as_str().expect("a token")).await;
    assert_eq!(kinds(&told), ["password.guessable"]);
    assert_eq!(answer["notices"], 1);
}

#[tokio::test]
async fn a_review_names_everybody_with_every_credential_and_no_secret() {
    let lab = Lab::start().await;
    let (odo, ada) = (lab.token("odo").await, lab.token("ada").await);
    lab.token("ana").await;
    let (_, codes) = enrol(&lab, "ana").await;
    let key = json!({ "name": "nightly", "scopes": ["audit:read"], "expires_in_days": 30 });
    let made = lab.post("/auth/keys").signed(&ada).json(&key).send().await.json();
    let (agent, secret) = lab.agent(&["runs:read"]).await;
    let body = json!({ "agent_id": agent, "agent_secret": secret });
    lab.post("/agents/auth/token").json(&body).send().await.ok();

    let answer = lab.get("/security/access").signed(&odo).send().await;
    let found = answer.json();
    let who = |id: &str| {
        let all = found.as_array().expect("a list");
        all.iter().find(|one| one["id"] == id).unwrap_or_else(|| panic!("no {id} in {all:?}")).clone()
    };
    let kinds_of = |id: &str| -> Vec<String> {
        let all = who(id)["credentials"].as_array().expect("credentials").clone();
        let mut kinds: Vec<_> = all.iter().map(|c| c["kind"].as_str().expect("a kind").to_owned()).collect();
        kinds.dedup();
        kinds
    };

    assert_eq!(kinds_of("ana"), ["password", "totp", "recovery_code"]);
    assert_eq!(kinds_of("ada"), ["password", "api_key"]);
    assert_eq!(kinds_of(&agent), ["secret"]);
    assert_eq!(who("ada")["credentials"][1]["scopes"], json!(["audit:read"]));
    assert!(who("ada")["credentials"][1]["expires_at"].is_string());
    assert!(who("ana")["last_seen_at"].is_string() && who("ben")["last_seen_at"].is_null());
    assert!(who(&agent)["last_seen_at"].is_string());
    assert!(who(&agent)["credentials"][0]["last_used_at"].is_string());
    assert_eq!(who("ana")["roles"], json!(["operator"]));
    assert!(who("ana")["scopes"].as_array().is_some_and(|scopes| scopes.len() > 2));
    let text = answer.text();
    for secret in [&secret, &codes[0], made["key"].as_str().expect("a key"), "$argon2", "digest", "sealed"] {
        assert!(!text.contains(secret), "{secret}");
    }
    for name in ["ana", "vic", "cal"] {
        lab.get("/security/access").signed(&lab.token(name).await).send().await.refused(403, "forbidden");
    }
}
