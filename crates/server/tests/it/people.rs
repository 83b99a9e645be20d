//! People's own side of identity: passwords, second factors, step-up, invitations, devices without a browser, emergencies.

use std::time::Duration;

use interlock_engine::auth::SystemPermit;
use serde_json::json;

use crate::lab::{Answer, Lab, password};

const NEW: &str = "eleven silent centrifuges";

/// Tokens of a person, signed in with this password.
async fn sign_in(lab: &Lab, name: &str, word: &str) -> Answer {
    lab.post("/auth/login").json(&json!({ "username": name, "password": word })).send().await
}

fn access(answer: &Answer) -> String {
    answer.ok()["access_token"].as_str().expect("a token").to_owned()
}

fn refresh(answer: &Answer) -> String {
    answer.ok()["refresh_token"].as_str().expect("a token").to_owned()
}

async fn change(lab: &Lab, token: &str, current: &str, new: &str) -> Answer {
    lab.post("/auth/password").signed(token).json(&json!({ "current": current, "new": new })).send().await
}

#[tokio::test]
async fn changing_the_password_ends_every_other_session_and_renews_this_one() {
    let lab = Lab::start().await;
    let (here, there) = (
        sign_in(&lab, "ana", password("ana").expose()).await,
        sign_in(&lab, "ana", password("ana").expose()).await,
    );
    lab.clock.advance(Duration::from_mins(5));

    let changed = change(&lab, &access(&here), password("ana").expose(), NEW).await;

    let (token, next) = (access(&changed), refresh(&changed));
    assert_eq!(changed.header("cache-control"), Some("no-store"));
    lab.get("/auth/me").signed(&token).send().await.ok();
    for dead in [access(&here), access(&there)] {
        lab.get("/auth/me").signed(&dead).send().await.refused(401, "unauthorized");
    }
    for dead in [refresh(&here), refresh(&there)] {
        lab.post("/auth/refresh")
            .json(&json!({ "refresh_token": dead }))
            .send()
            .await
            .refused(401, "unauthorized");
    }
    lab.post("/auth/refresh").json(&json!({ "refresh_token": next })).send().await.ok();
    sign_in(&lab, "ana", password("ana").expose()).await.refused(401, "unauthorized");
    sign_in(&lab, "ana", NEW).await.ok();
    let trail = lab.trail_of("user.password_changed").await;
    assert_eq!(trail.len(), 1);
    assert_eq!(trail[0].draft.actor.as_deref(), Some("ana"));
    lab.assert_chain().await;
}

#[tokio::test]
async fn a_new_password_must_differ_be_long_and_not_be_guessable() {
    let lab = Lab::start().await;
    let token = lab.token("ana").await;
    let current = password("ana");

    for (bad, why) in [
        ("short", "15 characters"),
        ("Password-Password-1", "easy to guess"),
        ("Correct Horse Battery Staple", "easy to guess"),
        ("opentronsopentrons", "easy to guess"),
        ("1qaz2wsx3edc4rfv", "easy to guess"),
        ("tab\tin the middle of it", "control character"),
        (current.expose(), "current one"),
    ] {
        let refused = change(&lab, &token, current.expose(), bad).await.refused(422, "invalid_request");
        assert!(refused["detail"].as_str().is_some_and(|text| text.contains(why)), "{bad}: {refused}");
        assert_eq!(refused["errors"][0]["loc"], json!(["body", "new"]));
    }
    lab.get("/auth/me").signed(&token).send().await.ok();
    let long = "ö".repeat(64).replacen("öööööööö", "ab cd ef", 1) + " and many words more";
    change(&lab, &token, current.expose(), &long).await.ok();
}

#[tokio::test]
async fn guessing_the_current_password_is_slowed_like_signing_in() {
    let lab = Lab::start().await;
    let token = lab.token("ana").await;

    for _ in 0..5 {
        let refused =
            change(&lab, &token, "not my password at all", NEW).await.refused(422, "invalid_request");
        assert_eq!(refused["errors"][0]["loc"], json!(["body", "current"]));
    }
    change(&lab, &token, password("ana").expose(), NEW).await.refused(429, "rate_limited");
    lab.get("/auth/me").signed(&token).send().await.ok();
    lab.clock.advance(Duration::from_secs(2));
    change(&lab, &token, password("ana").expose(), NEW).await.ok();
}

#[tokio::test]
async fn neither_software_nor_a_key_changes_a_password() {
    let lab = Lab::start().await;
    let agent = lab.agent_token(&["admin"]).await;
    let body = json!({ "name": "script", "scopes": ["runs:read"] });
    let made = lab.post("/auth/keys").signed(&lab.token("ana").await).json(&body).send().await;
    let key = made.json()["key"].as_str().expect("a key").to_owned();

    for token in [agent, key] {
        let refused = change(&lab, &token, password("ana").expose(), NEW).await.refused(403, "forbidden");
        assert!(refused["detail"].as_str().is_some_and(|text| text.contains("person")), "{refused}");
    }
    sign_in(&lab, "ana", password("ana").expose()).await.ok();
}

/// bcrypt of "seven purple pipettes", made with libxcrypt at cost 4.
const IMPORTED: &str = "$2b$04$abcdefghijklmnopqrstuuMFEtp0NvQWPHD.mgO2/73/DsOITSZ/6";

async fn import(lab: &Lab, name: &str, hash: &str) -> Result<(), interlock_engine::users::UserError> {
    let console = SystemPermit::root("console:test");
    let roles = ["operator".to_owned()];
    lab.app.users.console(&console).import(name, hash.to_owned(), &roles).await.map(drop)
}

#[tokio::test]
async fn an_imported_hash_signs_in_and_is_replaced_without_ending_the_session() {
    let lab = Lab::start().await;
    for (name, prefix) in [("ida", "$2a$"), ("ian", "$2b$"), ("ivy", "$2y$")] {
        import(&lab, name, &IMPORTED.replace("$2b$", prefix)).await.expect("imported");

        sign_in(&lab, name, "seven purple pipette").await.refused(401, "unauthorized");
        let first = sign_in(&lab, name, "seven purple pipettes").await;

        let stored = lab.app.identity.principals.user(name).expect("a user").password_hash.clone();
        assert!(stored.starts_with("$argon2id$"), "{stored}");
        let second = sign_in(&lab, name, "seven purple pipettes").await;
        for token in [access(&first), access(&second)] {
            lab.get("/auth/me").signed(&token).send().await.ok();
        }
    }
    let upgrades = lab.trail_of("user.password_upgraded").await;
    assert_eq!(upgrades.len(), 3);
    assert_eq!(upgrades[0].draft.details["meets_policy"], true);
    lab.assert_chain().await;
}

#[tokio::test]
async fn what_is_no_bcrypt_hash_is_not_imported() {
    let lab = Lab::start().await;
    for bad in [
        "",
        "plain text",
        "$2b$04$short",
        "$1$salt$md5",
        "$2b$31$cccccccccccccccccccccccccccccccccccccccccccccccccccccc",
    ] {
        let refused = import(&lab, "ida", bad).await;
        assert!(matches!(refused, Err(interlock_engine::users::UserError::Hash)), "{bad}");
    }
    assert!(lab.app.identity.principals.user("ida").is_none());
}
