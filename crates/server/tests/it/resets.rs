//! Resets: a lost credential is replaced by its owner with a token that works once.

use std::time::Duration;

use interlock_model::secret::Secret;
use serde_json::{Value, json};

use crate::factors::{enrol, full_token, sign_in};
use crate::lab::{Answer, Lab, password};

const NEW: &str = "nine yellow burettes";

async fn start(lab: &Lab, by: &str, whose: &str, what: &str) -> Answer {
    let token = lab.sign_in(by).await;
    lab.post(&format!("/users/{whose}/reset")).signed(&token).json(&json!({ "what": what })).send().await
}

fn token_of(started: &Answer) -> String {
    assert_eq!(started.status.as_u16(), 201, "{}", started.text());
    assert_eq!(started.header("cache-control"), Some("no-store"));
    started.json()["token"].as_str().expect("a token").to_owned()
}

async fn finish(lab: &Lab, token: &str, word: &str) -> Answer {
    lab.post("/auth/reset").json(&json!({ "token": token, "password": word })).send().await
}

async fn edit(lab: &Lab, name: &str, body: &Value) {
    lab.ask("PATCH".parse().expect("a method"), &format!("/users/{name}"))
        .signed(&lab.sign_in("zoe").await)
        .json(body)
        .send()
        .await
        .ok();
}

#[tokio::test]
async fn a_reset_lets_its_owner_choose_a_password_once() {
    let lab = Lab::start().await;
    let session = lab.sign_in("ana").await;
    let started = start(&lab, "ada", "Ana", "password").await;
    let token = token_of(&started);
    assert_eq!((&started.json()["name"], &started.json()["what"]), (&json!("ana"), &json!("password")));

    assert!(lab.takes(&session).await, "nothing changes before the token is used");
    for weak in ["short", "ana ana ana ana ana", "password password"] {
        finish(&lab, &token, weak).await.refused(422, "invalid_request");
    }
    let done = finish(&lab, &token, NEW).await.ok();

    assert_eq!(done, json!({ "name": "ana", "what": "password" }));
    assert!(!lab.takes(&session).await);
    sign_in(&lab, "ana", password("ana").expose(), None).await.refused(401, "unauthorized");
    let session = sign_in(&lab, "ana", NEW, None).await.ok();
    finish(&lab, &token, "eleven green flasks").await.refused(404, "reset_not_found");
    let begun = lab.trail_of("user.reset_started").await.pop().expect("an entry").draft;
    assert_eq!((begun.actor.as_deref(), begun.subject.as_deref()), (Some("ada"), Some("ana")));
    let ended = lab.trail_of("user.password_reset").await.pop().expect("an entry").draft;
    assert_eq!((ended.actor.as_deref(), &ended.details["started_by"]), (Some("ana"), &json!("ada")));
    assert_eq!(ended.details["reset"], begun.details["reset"]);
    assert!(!format!("{:?}", lab.trail().await).contains(&token), "the token is on record");
    let session = session["access_token"].as_str().expect("a token");
    let told = lab.get("/auth/notices").signed(session).send().await.ok();
    let kinds: Vec<_> = told.as_array().expect("notices").iter().map(|notice| &notice["kind"]).collect();
    assert!(
        kinds.contains(&&json!("user.reset_started")) && kinds.contains(&&json!("user.password_reset")),
        "{told}"
    );
}

#[tokio::test]
async fn a_reset_of_a_password_leaves_the_second_factor_in_force() {
    let lab = Lab::start().await;
    let (app, _) = enrol(&lab, "ana").await;
    let token = token_of(&start(&lab, "ada", "ana", "password").await);

    finish(&lab, &token, NEW).await.ok();

    sign_in(&lab, "ana", NEW, None).await.refused(401, "second_factor_required");
    sign_in(&lab, "ana", NEW, Some(&app.next_code(&lab))).await.ok();
}

#[tokio::test]
async fn a_lost_second_factor_is_removed_by_who_has_the_password_and_by_nobody_else() {
    let lab = Lab::start().await;
    let (app, _) = enrol(&lab, "ana").await;
    let session = full_token(&lab, "ana", &app).await;
    let token = token_of(&start(&lab, "ada", "ana", "factors").await);

    let wrong = finish(&lab, &token, "some other long password").await.refused(422, "invalid_request");
    assert_eq!(wrong["errors"][0]["loc"], json!(["body", "password"]));
    sign_in(&lab, "ana", password("ana").expose(), None).await.refused(401, "second_factor_required");
    // The token is no way to guess the password faster.
    let mut waits = 0;
    for _ in 0..12 {
        waits += usize::from(finish(&lab, &token, "some other long password").await.status == 429);
    }
    assert!(waits >= 5, "{waits}");
    lab.clock.advance(Duration::from_mins(10));
    assert_eq!(
        finish(&lab, &token, password("ana").expose()).await.ok(),
        json!({ "name": "ana", "what": "factors" })
    );

    sign_in(&lab, "ana", password("ana").expose(), None).await.ok();
    assert!(!lab.takes(&session).await, "whoever found the lost device has no session either");
    finish(&lab, &token, password("ana").expose()).await.refused(404, "reset_not_found");
    let entries = lab.trail_of("user.factors_reset").await;
    let done: Vec<_> = entries.iter().filter(|entry| entry.draft.details["started_by"] == "ada").collect();
    assert_eq!(done.len(), 1);
    assert_eq!(done[0].draft.actor.as_deref(), Some("ana"));
}

#[tokio::test]
async fn a_reset_ends_by_time_by_a_newer_one_by_hand_and_with_what_it_was_made_on() {
    let lab = Lab::start().await;
    let dead = async |lab: &Lab, token: &str, why: &str| {
        let answer = finish(lab, token, NEW).await;
        assert_eq!(answer.status.as_u16(), 404, "{why}: {}", answer.text());
        assert_eq!(answer.json()["code"], "reset_not_found");
    };
    for bad in ["", "ilr_", "x", &format!("ilr_{}_{}", "0".repeat(16), "0".repeat(64))] {
        dead(&lab, bad, "no token").await;
    }

    let late = token_of(&start(&lab, "zoe", "ana", "password").await);
    lab.clock.advance(Duration::from_hours(24));
    dead(&lab, &late, "after a day").await;

    let first = token_of(&start(&lab, "zoe", "ana", "password").await);
    let second = token_of(&start(&lab, "zoe", "ana", "factors").await);
    dead(&lab, &first, "a newer one").await;
    let zoe = lab.sign_in("zoe").await;
    let answer = lab.delete("/users/ana/reset").signed(&zoe).send().await.ok();
    assert_eq!(answer["details"]["ended"], 1);
    dead(&lab, &second, "taken back").await;

    let token = token_of(&start(&lab, "zoe", "ana", "password").await);
    let ana = lab.sign_in("ana").await;
    let body = json!({ "current": password("ana").expose(), "new": "eleven green flasks" });
    lab.post("/auth/password").signed(&ana).json(&body).send().await.ok();
    dead(&lab, &token, "its owner has remembered").await;

    let token = token_of(&start(&lab, "zoe", "vic", "password").await);
    edit(&lab, "vic", &json!({ "disabled": true })).await;
    dead(&lab, &token, "disabled").await;
    edit(&lab, "vic", &json!({ "disabled": false })).await;
    dead(&lab, &token, "disabled once").await;

    let token = token_of(&start(&lab, "ada", "ben", "password").await);
    edit(&lab, "ada", &json!({ "roles": ["viewer"] })).await;
    dead(&lab, &token, "its maker is no administrator").await;
    edit(&lab, "ada", &json!({ "roles": ["admin"], "disabled": true })).await;
    dead(&lab, &token, "its maker was dismissed").await;
    edit(&lab, "ada", &json!({ "disabled": false })).await;
    let lab = lab.restarted().await;
    finish(&lab, &token, NEW).await.ok();
}

#[tokio::test]
async fn a_reset_is_for_others_and_for_those_who_have_what_is_lost() {
    let lab = Lab::start().await;
    for by in ["ana", "vic", "odo"] {
        start(&lab, by, "ben", "password").await.refused(403, "forbidden");
    }
    start(&lab, "ada", "ada", "password").await.refused(409, "conflict");
    start(&lab, "ada", "nobody", "password").await.refused(404, "user_not_found");
    start(&lab, "ada", "ana", "everything").await.refused(422, "invalid_request");
    let system = interlock_engine::auth::SystemPermit::root("console");
    let glass = lab.app.users.console(&system).break_glass(Secret::new("purple pipettes by night")).await;
    start(&lab, "ada", &glass.expect("sealed").name, "password").await.refused(409, "conflict");
    // An administrator who has a second factor shows it first.
    let stale = lab.token("ada").await;
    enrol(&lab, "ada").await;
    lab.clock.advance(Duration::from_mins(20));
    let body = json!({ "what": "password" });
    lab.post("/users/ana/reset").signed(&stale).json(&body).send().await.refused(403, "step_up_required");
}

#[tokio::test]
async fn where_people_choose_their_own_passwords_administrators_only_help_them_to() {
    let lab = Lab::start().await.with_passwords_by_link();
    let zoe = lab.sign_in("zoe").await;
    enrol(&lab, "ana").await;

    let new = json!({ "name": "eve", "password": NEW, "roles": ["viewer"] });
    lab.post("/users").signed(&zoe).json(&new).send().await.refused(403, "forbidden");
    let body = json!({ "password": NEW });
    lab.post("/users/ana/password").signed(&zoe).json(&body).send().await.refused(403, "forbidden");
    lab.delete("/users/ana/factors").signed(&zoe).send().await.refused(403, "forbidden");
    sign_in(&lab, "ana", password("ana").expose(), None).await.refused(401, "second_factor_required");

    let invited = json!({ "name": "eve", "roles": ["viewer"] });
    let invited = lab.post("/users/invitations").signed(&zoe).json(&invited).send().await;
    let body = json!({ "token": invited.json()["token"], "password": NEW });
    assert_eq!(lab.post("/auth/invitations/accept").json(&body).send().await.status.as_u16(), 201);
    for (what, word) in [("password", "eleven green flasks"), ("factors", "eleven green flasks")] {
        let token = token_of(&start(&lab, "zoe", "ana", what).await);
        finish(&lab, &token, word).await.ok();
    }
    sign_in(&lab, "ana", "eleven green flasks", None).await.ok();
    // Whoever owns the machine still can.
    let system = interlock_engine::auth::SystemPermit::root("console");
    lab.app.users.console(&system).set_password("ana", Secret::new(NEW)).await.expect("set");
    sign_in(&lab, "ana", NEW, None).await.ok();
}
