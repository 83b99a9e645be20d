//! People's own side of identity: passwords, second factors, step-up, invitations, devices without a browser, emergencies.

use std::time::Duration;

use interlock_engine::auth::SystemPermit;
use serde_json::{Value, json};

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

async fn invite(lab: &Lab, name: &str, roles: Value) -> Answer {
    let admin = lab.token("ada").await;
    lab.post("/users/invitations").signed(&admin).json(&json!({ "name": name, "roles": roles })).send().await
}

async fn accept(lab: &Lab, token: &str, word: &str) -> Answer {
    lab.post("/auth/invitations/accept").json(&json!({ "token": token, "password": word })).send().await
}

fn token_of(invited: &Answer) -> String {
    assert_eq!(invited.status.as_u16(), 201, "{}", invited.text());
    assert_eq!(invited.header("cache-control"), Some("no-store"));
    invited.json()["token"].as_str().expect("a token").to_owned()
}

#[tokio::test]
async fn an_invitation_becomes_a_user_once() {
    let lab = Lab::start().await;
    let token = token_of(&invite(&lab, "Eve", json!(["viewer", "operator"])).await);

    accept(&lab, &token, "short").await.refused(422, "invalid_request");
    accept(&lab, &token, "Password-Password-1").await.refused(422, "invalid_request");
    let made = accept(&lab, &token, NEW).await;
    assert_eq!(made.status.as_u16(), 201, "{}", made.text());
    assert_eq!(made.json(), json!({ "name": "eve", "roles": ["operator", "viewer"] }));
    accept(&lab, &token, NEW).await.refused(404, "invitation_not_found");

    assert_eq!(sign_in(&lab, "eve", NEW).await.ok()["roles"], json!(["operator", "viewer"]));
    let listed = lab.get("/users/invitations").signed(&lab.token("ada").await).send().await;
    assert_eq!(listed.ok()[0]["state"], "accepted");
    let secret = token.rsplit('_').next().expect("a part");
    assert!(!listed.text().contains(secret) && !format!("{:?}", lab.trail().await).contains(secret));
    let made = lab.trail_of("user.created").await.pop().expect("an entry");
    assert_eq!(made.draft.details["invited_by"], "ada");
    lab.assert_chain().await;
}

#[tokio::test]
async fn an_invitation_ends_by_time_by_its_maker_and_with_its_maker() {
    let lab = Lab::start().await;
    let admin = lab.token("ada").await;
    let (late, taken_back, orphan) = (
        token_of(&invite(&lab, "eve", json!(["viewer"])).await),
        invite(&lab, "eva", json!(["viewer"])).await,
        lab.post("/users/invitations")
            .signed(&lab.token("zoe").await)
            .json(&json!({ "name": "evi", "roles": ["viewer"] }))
            .send()
            .await,
    );
    let path = format!("/users/invitations/{}", taken_back.json()["id"].as_str().expect("an id"));
    let delete = || lab.ask("DELETE".parse().expect("method"), &path).signed(&admin).send();

    delete().await.ok();
    delete().await.refused(404, "invitation_not_found");
    accept(&lab, &token_of(&taken_back), NEW).await.refused(404, "invitation_not_found");
    let disable = lab.ask("PATCH".parse().expect("method"), "/users/zoe").signed(&admin);
    disable.json(&json!({ "disabled": true })).send().await.ok();
    accept(&lab, &token_of(&orphan), NEW).await.refused(404, "invitation_not_found");
    lab.clock.advance(Duration::from_hours(72));
    accept(&lab, &late, NEW).await.refused(404, "invitation_not_found");

    for name in ["eve", "eva", "evi"] {
        sign_in(&lab, name, NEW).await.refused(401, "unauthorized");
    }
}

#[tokio::test]
async fn a_bad_invitation_is_neither_made_nor_taken() {
    let lab = Lab::start().await;
    invite(&lab, "no name!", json!(["viewer"])).await.refused(422, "invalid_request");
    invite(&lab, "eve", json!(["king"])).await.refused(422, "invalid_request");
    invite(&lab, "eve", json!([])).await.refused(422, "invalid_request");
    invite(&lab, "ANA", json!(["viewer"])).await.refused(409, "conflict");
    let token = token_of(&invite(&lab, "eve", json!(["viewer"])).await);
    let last = if token.ends_with('0') { "1" } else { "0" };
    let wrong = format!("{}{last}", &token[..token.len() - 1]);

    for bad in ["", "ili_", "ili_x_y", &token[..token.len() - 1], &wrong, "ilk_0123456789abcdef_x"] {
        accept(&lab, bad, NEW).await.refused(404, "invitation_not_found");
    }
    // Of two that accept at once, one becomes the user.
    let (one, two) = futures::join!(accept(&lab, &token, NEW), accept(&lab, &token, NEW));
    let mut statuses = [one.status.as_u16(), two.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 404]);
}

#[tokio::test]
async fn a_custom_role_is_given_like_any_other() {
    let lab = Lab::start().await;
    let admin = lab.token("ada").await;
    let role = lab.ask("PUT".parse().expect("method"), "/roles/watcher").signed(&admin);
    role.json(&json!({ "scopes": ["runs:read"] })).send().await.ok();

    let token = token_of(&invite(&lab, "eve", json!(["watcher"])).await);
    accept(&lab, &token, NEW).await;

    let eve = access(&sign_in(&lab, "eve", NEW).await);
    lab.get("/runs").signed(&eve).send().await.ok();
    lab.get("/users").signed(&eve).send().await.refused(403, "forbidden");
}
