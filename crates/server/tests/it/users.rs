//! Managing people.

use axum::http::Method;
use serde_json::{Value, json};

use crate::lab::{Lab, PEOPLE};

fn new_user(name: &str) -> Value {
    json!({ "name": name, "password": "seven purple pipettes", "roles": ["viewer"] })
}

#[tokio::test]
async fn an_administrator_makes_lists_and_changes_users() {
    let lab = Lab::start().await;
    let admin = lab.token("ada").await;

    let made = lab.post("/users").signed(&admin).json(&json!({ "name": "Eve.Lab", "password": "seven purple pipettes", "roles": ["viewer", "operator", "viewer"] })).send().await;
    assert_eq!(made.status.as_u16(), 201, "{}", made.text());
    let expected = json!({ "name": "eve.lab", "roles": ["operator", "viewer"], "disabled": false, "created_at": lab.now(), "updated_at": lab.now() });
    assert_eq!(made.json(), expected);

    let listed = lab.get("/users").signed(&admin).send().await;
    let users = listed.ok();
    assert_eq!(users.as_array().map(Vec::len), Some(PEOPLE.len() + 1));
    assert!(users.as_array().expect("users").contains(&expected));
    assert!(!listed.text().contains("argon2") && !listed.text().contains("hash"), "{}", listed.text());

    let changed = lab
        .ask(Method::PATCH, "/users/EVE.lab")
        .signed(&admin)
        .json(&json!({ "roles": ["calibrator"], "disabled": true }))
        .send()
        .await
        .ok();
    assert_eq!((&changed["roles"], &changed["disabled"]), (&json!(["calibrator"]), &json!(true)));
}

#[tokio::test]
async fn what_cannot_be_a_user_is_refused_by_field() {
    let lab = Lab::unscreened().await;
    let admin = lab.token("ada").await;
    let create = |body: Value| lab.post("/users").signed(&admin).json(&body).send();

    for (member, value) in [
        ("name", json!("")),
        ("name", json!("a b")),
        ("name", json!("-x")),
        ("name", json!("<script>")),
        ("name", json!("x".repeat(65))),
        ("roles", json!([])),
        ("roles", json!(["root"])),
        ("roles", json!(["Admin"])),
        ("password", json!("short")),
        ("password", json!("password password")),
        ("password", json!("x".repeat(1025))),
    ] {
        let mut body = new_user("eve");
        body[member] = value.clone();
        let answer = create(body).await;
        let refused = answer.refused(422, "invalid_request");
        let loc = refused["errors"][0]["loc"].as_array().expect("a place");
        assert_eq!(loc[..2], [json!("body"), json!(member)], "{value}");
        assert!(!answer.text().contains("script"), "{}", answer.text());
    }
    let mut incomplete = new_user("eve");
    incomplete.as_object_mut().expect("an object").remove("roles");
    assert_eq!(
        create(incomplete).await.refused(422, "invalid_request")["errors"][0]["loc"],
        json!(["body", "roles"])
    );
    create(new_user("ANA")).await.refused(409, "conflict");
    assert_eq!(
        lab.get("/users").signed(&admin).send().await.ok().as_array().map(Vec::len),
        Some(PEOPLE.len())
    );
}

#[tokio::test]
async fn an_unknown_user_is_not_found_and_not_echoed() {
    let lab = Lab::unscreened().await;
    let admin = lab.token("ada").await;

    for name in ["nobody", "%3Cscript%3E", "a%00b"] {
        let patched = lab
            .ask(Method::PATCH, &format!("/users/{name}"))
            .signed(&admin)
            .json(&json!({ "disabled": true }))
            .send()
            .await;
        patched.refused(404, "user_not_found");
        let set = lab
            .post(&format!("/users/{name}/password"))
            .signed(&admin)
            .json(&json!({ "password": "seven purple pipettes" }))
            .send()
            .await;
        set.refused(404, "user_not_found");
        assert!(!patched.text().contains("script") && !set.text().contains("script"));
    }
    lab.assert_chain().await;
}

#[tokio::test]
async fn the_last_administrator_stays() {
    let lab = Lab::start().await;
    let admin = lab.token("ada").await;
    let patch =
        |name: &'static str, body: Value| lab.ask(Method::PATCH, name).signed(&admin).json(&body).send();

    patch("/users/zoe", json!({ "roles": ["operator"] })).await.ok();
    patch("/users/ada", json!({ "roles": ["viewer"] })).await.refused(409, "conflict");
    patch("/users/ada", json!({ "disabled": true })).await.refused(409, "conflict");
    patch("/users/zoe", json!({ "roles": ["admin"] })).await.ok();
    patch("/users/ada", json!({ "disabled": true })).await.ok();

    patch("/users/zoe", json!({ "roles": ["viewer"] })).await.refused(401, "unauthorized");
}

#[tokio::test]
async fn a_change_of_a_user_is_on_record_without_secrets() {
    let lab = Lab::start().await;
    let admin = lab.token("ada").await;
    lab.post("/users").signed(&admin).json(&new_user("eve")).send().await;
    lab.ask(Method::PATCH, "/users/eve")
        .signed(&admin)
        .json(&json!({ "roles": ["operator"] }))
        .send()
        .await
        .ok();
    lab.post("/users/eve/password")
        .signed(&admin)
        .json(&json!({ "password": "nine yellow burettes" }))
        .send()
        .await
        .ok();

    let trail = lab.trail().await;

    for action in ["user.created", "user.updated", "user.password_set"] {
        let entry = trail.iter().rev().find(|entry| entry.draft.action == action).expect(action);
        assert_eq!(entry.draft.actor.as_deref(), Some("ada"));
        let text = format!("{entry:?}");
        assert!(
            !text.contains("pipettes") && !text.contains("burettes") && !text.contains("argon2"),
            "{text}"
        );
    }
    let updated = trail.iter().find(|entry| entry.draft.action == "user.updated").expect("an update");
    assert_eq!(updated.draft.subject.as_deref(), Some("eve"));
    assert_eq!(updated.draft.details["old_data"]["roles"], json!(["viewer"]));
    assert_eq!(updated.draft.details["new_data"]["roles"], json!(["operator"]));
    lab.assert_chain().await;
}
