//! People's own side of identity: passwords, second factors, step-up, invitations, devices without a browser, emergencies.

use std::time::Duration;

use interlock_engine::auth::SystemPermit;
use interlock_model::secret::Secret;
use serde_json::{Value, json};

use crate::lab::{Answer, Lab, password};
use crate::service::Capture;

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

const DEVICE_CODE: &str = "urn:ietf:params:oauth:grant-type:device_code";

async fn begin(lab: &Lab, extra: &str) -> Value {
    let form = "application/x-www-form-urlencoded";
    lab.post("/oauth/device_authorization").typed(form, format!("client_id=cli{extra}")).send().await.ok()
}

async fn poll(lab: &Lab, begun: &Value) -> Answer {
    let code = begun["device_code"].as_str().expect("a code");
    let form = format!("grant_type={}&client_id=cli&device_code={code}", DEVICE_CODE.replace(':', "%3A"));
    lab.post("/oauth/token").typed("application/x-www-form-urlencoded", form).send().await
}

#[track_caller]
fn oauth_error(answer: &Answer, code: &str) {
    assert_eq!(answer.status.as_u16(), 400, "{}", answer.text());
    assert_eq!(answer.json()["error"], code, "{}", answer.text());
}

async fn decide(lab: &Lab, token: &str, what: &str, code: &Value) -> Answer {
    lab.post(&format!("/auth/device/{what}")).signed(token).json(&json!({ "user_code": code })).send().await
}

#[tokio::test]
async fn a_device_is_let_in_by_a_code_that_a_person_approves() {
    let lab = Lab::start().await;
    let begun = begin(&lab, "").await;
    assert_eq!(begun["verification_uri"], "http://localhost/device-code");
    assert_eq!((&begun["expires_in"], &begun["interval"]), (&json!(600), &json!(7)));
    oauth_error(&poll(&lab, &begun).await, "authorization_pending");
    let token = lab.sign_in("ana").await;

    // People type it as they like.
    let typed = json!(begun["user_code"].as_str().expect("a code").to_lowercase().replace('-', " "));
    let shown = decide(&lab, &token, "show", &typed).await.ok();
    assert_eq!((&shown["client"], &shown["client_ip"]), (&json!("cli"), &json!("10.0.0.7")));
    assert_eq!(decide(&lab, &token, "approve", &typed).await.ok()["decision"], "approved");
    decide(&lab, &token, "approve", &typed).await.refused(404, "device_code_not_found");
    lab.clock.advance(Duration::from_secs(7));
    let answer = poll(&lab, &begun).await;
    oauth_error(&poll(&lab, &begun).await, "invalid_grant");

    let me = lab.get("/auth/me").signed(&access(&answer)).send().await.ok();
    assert_eq!((&me["user"], &me["roles"]), (&json!("ana"), &json!(["operator"])));
    let sessions = lab.get("/auth/sessions").signed(&token).send().await.text();
    assert!(sessions.contains("device_code"), "{sessions}");
    let stored = format!("{:?}", lab.trail().await);
    assert!(!stored.contains(begun["device_code"].as_str().expect("a code")));
    lab.assert_chain().await;
}

#[tokio::test]
async fn a_device_that_asks_too_often_or_too_late_or_is_unwanted_gets_nothing() {
    let lab = Lab::start().await;
    let token = lab.sign_in("ana").await;
    let (impatient, denied, late) = (begin(&lab, "").await, begin(&lab, "").await, begin(&lab, "").await);

    oauth_error(&poll(&lab, &impatient).await, "authorization_pending");
    lab.clock.advance(Duration::from_secs(6));
    oauth_error(&poll(&lab, &impatient).await, "slow_down");
    lab.clock.advance(Duration::from_secs(11));
    oauth_error(&poll(&lab, &impatient).await, "slow_down");
    lab.clock.advance(Duration::from_secs(17));
    oauth_error(&poll(&lab, &impatient).await, "authorization_pending");

    assert_eq!(decide(&lab, &token, "deny", &denied["user_code"]).await.ok()["decision"], "denied");
    oauth_error(&poll(&lab, &denied).await, "access_denied");

    lab.clock.advance(Duration::from_mins(10));
    oauth_error(&poll(&lab, &late).await, "expired_token");
    decide(&lab, &token, "approve", &late["user_code"]).await.refused(404, "device_code_not_found");
    let mut forged = late.clone();
    forged["device_code"] = json!(late["device_code"].as_str().expect("a code").replace("ild_", "ild-"));
    oauth_error(&poll(&lab, &forged).await, "invalid_grant");
}

#[tokio::test]
async fn user_codes_are_not_guessed_and_approving_wants_a_fresh_person() {
    let lab = Lab::start().await;
    let token = lab.sign_in("ana").await;
    let begun = begin(&lab, "").await;
    for _ in 0..5 {
        decide(&lab, &token, "show", &json!("BBBB-BBBB")).await.refused(404, "device_code_not_found");
    }
    decide(&lab, &token, "show", &begun["user_code"]).await.refused(429, "rate_limited");
    let agent = lab.agent_token(&["admin"]).await;
    decide(&lab, &agent, "approve", &begun["user_code"]).await.refused(403, "forbidden");
    lab.clock.advance(Duration::from_mins(16));
    let fresh = begin(&lab, "").await;

    decide(&lab, &token, "approve", &fresh["user_code"]).await.refused(403, "step_up_required");
    oauth_error(&poll(&lab, &fresh).await, "authorization_pending");
}

#[tokio::test]
async fn what_changes_after_the_approval_counts() {
    let lab = Lab::start().await;
    let token = lab.sign_in("zoe").await;
    let (limited, void) = (begin(&lab, "&scope=runs%3Aread").await, begin(&lab, "").await);
    decide(&lab, &token, "approve", &limited["user_code"]).await.ok();
    decide(&lab, &token, "approve", &void["user_code"]).await.ok();

    let narrow = access(&poll(&lab, &limited).await);
    lab.get("/runs").signed(&narrow).send().await.ok();
    lab.get("/users").signed(&narrow).send().await.refused(403, "forbidden");
    // What is limited does not let in what is not.
    let wide = begin(&lab, "").await;
    decide(&lab, &narrow, "approve", &wide["user_code"]).await.refused(403, "forbidden");
    change(&lab, &token, password("zoe").expose(), NEW).await.ok();

    oauth_error(&poll(&lab, &void).await, "access_denied");
    lab.get("/runs").signed(&narrow).send().await.refused(401, "unauthorized");
}

const SEALED: &str = "4f1c2-9d7e0-b35aa-71c6e-0d2f8";

async fn seal(lab: &Lab, word: &str) {
    let console = SystemPermit::root("console:test");
    lab.app.users.console(&console).break_glass(Secret::new(word)).await.expect("sealed");
}

#[tokio::test]
async fn the_account_for_emergencies_is_loud_short_and_renewed_after_use() {
    let lab = Lab::start().await;
    let log = Capture::default();
    let _captured = log.install();
    sign_in(&lab, "break-glass", SEALED).await.refused(401, "unauthorized");
    seal(&lab, SEALED).await;
    lab.clock.advance(Duration::from_hours(24 * 400));

    let first = sign_in(&lab, "Break-Glass", SEALED).await;
    assert_eq!(first.ok()["roles"], json!(["admin"]));
    assert!(first.ok().get("refresh_token").is_none());
    let told = log.text();
    let line = told.lines().find(|line| line.contains("break_glass_used")).expect("a line");
    assert!(line.contains("ERROR") && line.contains("security"), "{line}");
    assert!(!told.contains(SEALED));
    lab.get("/users").signed(&access(&first)).send().await.ok();
    lab.clock.advance(Duration::from_hours(23));
    let second = access(&sign_in(&lab, "break-glass", SEALED).await);
    let used = lab.trail_of("break_glass.used").await;
    let firsts: Vec<&Value> = used.iter().map(|entry| &entry.draft.details["first"]).collect();
    assert_eq!(firsts, [&json!(true), &json!(false)]);

    lab.clock.advance(Duration::from_mins(59));
    lab.get("/users").signed(&second).send().await.ok();
    lab.clock.advance(Duration::from_mins(1));
    sign_in(&lab, "break-glass", SEALED).await.refused(401, "unauthorized");
    assert_eq!(lab.trail_of("break_glass.used").await[2].draft.details["result"], "failed");
    lab.clock.advance(Duration::from_secs(1));
    seal(&lab, NEW).await;
    lab.get("/users").signed(&second).send().await.refused(401, "unauthorized");
    sign_in(&lab, "break-glass", SEALED).await.refused(401, "unauthorized");
    sign_in(&lab, "break-glass", NEW).await.ok();
    lab.assert_chain().await;
}

#[tokio::test]
async fn strangers_cannot_lock_the_account_for_emergencies_and_nobody_takes_its_name() {
    let lab = Lab::start().await;
    seal(&lab, SEALED).await;
    for guess in 0..200 {
        let from = format!("203.0.113.{}", guess % 20);
        let body = json!({ "username": "break-glass", "password": "a wrong but long password" });
        lab.post("/auth/login").from(&from).json(&body).send().await;
        lab.clock.advance(Duration::from_secs(1));
    }
    access(&sign_in(&lab, "break-glass", SEALED).await);

    invite(&lab, "break-glass", json!(["viewer"])).await.refused(422, "invalid_request");
    let admin = lab.token("ada").await;
    let set = lab.post("/users/break-glass/password").signed(&admin).json(&json!({ "password": NEW }));
    set.send().await.refused(409, "conflict");
    sign_in(&lab, "break-glass", SEALED).await.ok();
}
