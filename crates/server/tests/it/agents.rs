//! Agents: made, changed, deleted by administrators; what each may do; the secrets it proves itself with.

use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::Lab;

pub(crate) const SYSTEM: &str = "00000000-0000-0000-0000-000000000001";
pub(crate) const UNKNOWN: &str = "11111111-2222-4333-8444-555555555555";

async fn create(lab: &Lab, body: &Value) -> crate::lab::Answer {
    lab.post("/agents").signed(&lab.token("zoe").await).json(body).send().await
}

pub(crate) async fn set_secret(lab: &Lab, id: &str, body: &Value) -> crate::lab::Answer {
    lab.post(&format!("/agents/{id}/credentials")).signed(&lab.token("zoe").await).json(body).send().await
}

pub(crate) async fn sign_in(lab: &Lab, id: &str, secret: &str) -> crate::lab::Answer {
    lab.post("/agents/auth/token").json(&json!({ "agent_id": id, "agent_secret": secret })).send().await
}

#[tokio::test]
async fn a_new_agent_has_the_form_of_the_contract() {
    let lab = Lab::start().await;

    let made = create(
        &lab,
        &json!({ "name": "Scheduler", "scopes": ["tasks:read", "email.send", "tasks:read"], "webhook_url": "https://h.example/x" }),
    )
    .await;

    assert_eq!(made.status, 201, "{}", made.text());
    let agent = made.json();
    assert_eq!(agent["name"], "Scheduler");
    assert_eq!(agent["scopes"], json!(["email.send", "tasks:read"]));
    assert_eq!(agent["webhook_url"], "https://h.example/x");
    assert_eq!(agent["status"], "active");
    assert_eq!(agent["has_credentials"], false);
    assert_eq!(agent["created_at"], lab.now().to_string());
    let id = agent["id"].as_str().expect("an id");
    assert_eq!(id.len(), 36);
    assert_eq!(lab.get(&format!("/agents/{id}")).signed(&lab.token("ada").await).send().await.ok(), agent);
    let entry = lab.trail_of("agent.created").await.pop().expect("an entry");
    assert_eq!(entry.draft.actor.as_deref(), Some("zoe"));
    assert_eq!(entry.draft.subject.as_deref(), Some(id));
    assert_eq!(entry.draft.details, json!({ "name": "Scheduler", "scopes": ["email.send", "tasks:read"] }));
    lab.assert_chain().await;
}

#[tokio::test]
async fn a_malformed_agent_is_refused_and_nothing_is_made() {
    let lab = Lab::unscreened().await;
    let long = "n".repeat(101);
    for (body, place) in [
        (json!({ "name": "", "scopes": [] }), json!(["body", "name"])),
        (json!({ "name": " ", "scopes": [] }), json!(["body", "name"])),
        (json!({ "name": long, "scopes": [] }), json!(["body", "name"])),
        (json!({ "name": "a\u{0}b", "scopes": [] }), json!(["body", "name"])),
        (json!({ "name": "a\nb", "scopes": [] }), json!(["body", "name"])),
        (json!({ "scopes": [] }), json!(["body", "name"])),
        (json!({ "name": "a" }), json!(["body", "scopes"])),
        (json!({ "name": "a", "scopes": ["runs:read", "no:such"] }), json!(["body", "scopes", "1"])),
        (json!({ "name": "a", "scopes": ["*"] }), json!(["body", "scopes", "0"])),
        (json!({ "name": "a", "scopes": ["runs:read\u{0}"] }), json!(["body", "scopes", "0"])),
        (json!({ "name": "a", "scopes": vec!["a.b"; 65] }), json!(["body", "scopes", "64"])),
        (json!({ "name": "a", "scopes": "admin" }), json!(["body", "scopes"])),
        (json!({ "name": 5, "scopes": [] }), json!(["body", "name"])),
        (
            json!({ "name": "a", "scopes": [], "webhook_url": "http://h.example/" }),
            json!(["body", "webhook_url"]),
        ),
        (
            json!({ "name": "a", "scopes": [], "webhook_url": "https://u:p@h.example/" }),
            json!(["body", "webhook_url"]),
        ),
        (json!({ "name": "a", "scopes": [], "webhook_url": "https:///x" }), json!(["body", "webhook_url"])),
        (
            json!({ "name": "a", "scopes": [], "webhook_url": "javascript:alert(1)" }),
            json!(["body", "webhook_url"]),
        ),
        (
            json!({ "name": "a", "scopes": [], "webhook_url": format!("https://h/{}", "x".repeat(500)) }),
            json!(["body", "webhook_url"]),
        ),
    ] {
        let refusal = create(&lab, &body).await;
        let told = refusal.refused(422, "invalid_request");
        assert_eq!(told["errors"][0]["loc"], place, "{body}");
    }
    assert_eq!(
        lab.trail_of("agent.created")
            .await
            .iter()
            .filter(|entry| entry.draft.details.get("name").is_some())
            .count(),
        1
    );
}

#[tokio::test]
async fn a_name_is_taken_in_any_case_until_its_agent_is_deleted() {
    let lab = Lab::start().await;
    let zoe = lab.token("zoe").await;
    let first = create(&lab, &json!({ "name": "Robot", "scopes": [] })).await.json();
    let other = create(&lab, &json!({ "name": "Other", "scopes": [] })).await.json();

    create(&lab, &json!({ "name": "ROBOT", "scopes": [] })).await.refused(400, "agent_exists");
    create(&lab, &json!({ "name": "System", "scopes": [] })).await.refused(400, "agent_exists");
    let path = format!("/agents/{}", other["id"].as_str().expect("id"));
    lab.put(&path).signed(&zoe).json(&json!({ "name": "robot" })).send().await.refused(400, "agent_exists");

    let path = format!("/agents/{}", first["id"].as_str().expect("id"));
    lab.delete(&path).signed(&zoe).send().await.ok();
    assert_eq!(create(&lab, &json!({ "name": "robot", "scopes": [] })).await.status, 201);
}

#[tokio::test]
async fn agents_are_listed_newest_first_and_filtered() {
    let lab = Lab::start().await;
    let ada = lab.token("ada").await;
    for (name, scopes) in
        [("Alpha one", vec!["runs:read"]), ("beta", vec!["tasks:*"]), ("ALPHA two", vec!["tasks:read"])]
    {
        lab.clock.advance(Duration::from_secs(1));
        assert_eq!(create(&lab, &json!({ "name": name, "scopes": scopes })).await.status, 201);
    }
    let names = async |query: &str| -> Vec<String> {
        let list = lab.get(&format!("/agents{query}")).signed(&ada).send().await.ok();
        let list = list.as_array().expect("a bare array").clone();
        list.iter().map(|agent| agent["name"].as_str().expect("a name").to_owned()).collect()
    };

    assert_eq!(names("").await, ["ALPHA two", "beta", "Alpha one", "system"]);
    assert_eq!(names("?name_filter=alpha").await, ["ALPHA two", "Alpha one"]);
    assert_eq!(names("?scope_filter=runs:read").await, ["Alpha one"]);
    assert_eq!(names("?limit=1&offset=1").await, ["beta"]);
    assert_eq!(names("?offset=99").await, Vec::<String>::new());
    for bad in ["?limit=0", "?limit=201", "?limit=x", "?offset=-1"] {
        lab.get(&format!("/agents{bad}")).signed(&ada).send().await.refused(422, "invalid_request");
    }
}

#[tokio::test]
async fn only_administrators_look_after_agents_and_an_agent_sees_itself() {
    let lab = Lab::start().await;
    let (id, secret) = lab.agent(&["runs:read"]).await;
    let (other, _) = lab.agent(&["runs:read"]).await;
    let own = lab.pair(&id, &secret).await.0;

    assert_eq!(lab.get(&format!("/agents/{id}")).signed(&own).send().await.ok()["id"], id);
    // Whether somebody else exists is not told.
    let hidden =
        lab.get(&format!("/agents/{other}")).signed(&own).send().await.refused(404, "agent_not_found");
    let absent =
        lab.get(&format!("/agents/{UNKNOWN}")).signed(&own).send().await.refused(404, "agent_not_found");
    assert_eq!(hidden["detail"], absent["detail"]);
    for token in [own.clone(), lab.token("ana").await, lab.token("vic").await, lab.token("odo").await] {
        lab.get("/agents").signed(&token).send().await.refused(403, "forbidden");
        lab.post("/agents").signed(&token).json(&json!({ "name": 7 })).send().await.refused(403, "forbidden");
        for path in [format!("/agents/{id}"), format!("/agents/{other}")] {
            lab.put(&path)
                .signed(&token)
                .json(&json!({ "scopes": ["admin"] }))
                .send()
                .await
                .refused(403, "forbidden");
            lab.delete(&path).signed(&token).send().await.refused(403, "forbidden");
            lab.post(&format!("{path}/credentials")).signed(&token).send().await.refused(403, "forbidden");
        }
    }
    lab.get("/agents/not-a-uuid").signed(&lab.token("ada").await).send().await.refused(404, "not_found");
    assert!(lab.takes(&own).await);
}

#[tokio::test]
async fn a_refusal_of_a_scope_names_it_in_the_challenge_and_in_no_inventory() {
    let lab = Lab::start().await;
    let token = lab.agent_token(&["runs:read"]).await;

    let answer = lab.get("/agents").signed(&token).send().await;

    answer.refused(403, "forbidden");
    assert_eq!(answer.header("www-authenticate"), Some("Bearer error=\"insufficient_scope\""));
    assert!(!answer.text().contains("agents:read"), "{}", answer.text());
    let denied = lab.trail_of("authorization.denied").await;
    assert_eq!(
        denied.last().map(|entry| entry.draft.subject.clone()),
        Some(Some("agents.listed".to_owned()))
    );
}

#[tokio::test]
async fn nobody_gives_an_agent_more_than_they_hold() {
    let lab = Lab::start().await;
    let (ada, zoe) = (lab.token("ada").await, lab.token("zoe").await);
    let grant = async |token: &str, scopes: &[&str]| {
        let body = json!({ "name": format!("a {}", scopes.join(" ")), "scopes": scopes });
        lab.post("/agents").signed(token).json(&body).send().await
    };

    // An administrator who is no operator moves nothing, by no detour.
    for scope in ["devices:execute", "devices:execute:fake/mix", "devices:execute:fake/*", "devices:*"] {
        grant(&ada, &[scope]).await.refused(403, "forbidden");
    }
    assert_eq!(grant(&zoe, &["devices:execute:fake/mix"]).await.status, 201);
    assert_eq!(grant(&ada, &["admin"]).await.status, 201);
    assert_eq!(grant(&ada, &["tasks:*", "tool:http.*", "email.read"]).await.status, 201);

    // What is for people is for no agent, narrowed or not, whoever asks.
    for scope in [
        "devices:release",
        "devices:attention",
        "users:manage",
        "roles:manage",
        "devices:release:fake",
        "users:manage:x",
    ] {
        grant(&zoe, &[scope]).await.refused(422, "invalid_request");
    }

    // An agent that manages agents is no administrator, and does not become one through another.
    let manager = lab.agent_token(&["agents:manage", "runs:read"]).await;
    for scope in ["admin", "system", "audit:read", "tool:x", "devices:execute"] {
        grant(&manager, &[scope]).await.refused(403, "forbidden");
    }
    assert_eq!(grant(&manager, &["runs:read"]).await.status, 201);
    let path = format!("/agents/{SYSTEM}");
    lab.post(&format!("{path}/credentials")).signed(&manager).send().await.refused(403, "forbidden");
    lab.put(&format!("{path}/keys"))
        .signed(&manager)
        .json(&json!({ "keys": [] }))
        .send()
        .await
        .refused(403, "forbidden");
    lab.put(&path).signed(&manager).json(&json!({ "name": "mine" })).send().await.refused(403, "forbidden");
    let (strong, _) = lab.agent(&["admin"]).await;
    lab.delete(&format!("/agents/{strong}")).signed(&manager).send().await.refused(403, "forbidden");
}

#[tokio::test]
async fn no_agent_holds_what_is_for_people_whatever_its_scopes_say() {
    let lab = Lab::start().await;
    let zoe = lab.token("zoe").await;
    let token = lab.agent_token(&["admin", "devices:execute", "users:*", "roles:*"]).await;

    lab.post("/users")
        .signed(&token)
        .json(&json!({ "name": "eve", "password": "seven purple pipettes", "roles": ["admin"] }))
        .send()
        .await
        .refused(403, "forbidden");
    lab.put("/roles/washer")
        .signed(&token)
        .json(&json!({ "scopes": [] }))
        .send()
        .await
        .refused(403, "forbidden");
    lab.post("/stop").signed(&token).json(&json!({})).send().await.ok();
    lab.post("/stop/release")
        .signed(&token)
        .json(&json!({ "reason": "it is safe" }))
        .send()
        .await
        .refused(403, "forbidden");
    lab.post("/device/attention/clear")
        .signed(&token)
        .json(&json!({ "reason": "it is safe" }))
        .send()
        .await
        .refused(403, "forbidden");
    assert_eq!(lab.get("/users").signed(&zoe).send().await.ok().as_array().map(Vec::len), Some(7));
    assert!(lab.device.releases().is_empty());
}

#[tokio::test]
async fn admin_alone_executes_nothing() {
    let lab = Lab::start().await;
    let body = json!({ "volume": 5 });
    let admin = lab.agent_token(&["admin"]).await;
    let mixer = lab.agent_token(&["devices:execute:fake/mix"]).await;
    let other = lab.agent_token(&["devices:execute:fake/layout"]).await;

    lab.post("/execute/mix").signed(&admin).json(&body).send().await.refused(403, "forbidden");
    lab.post("/execute/mix").signed(&other).json(&body).send().await.refused(403, "forbidden");
    lab.post("/execute/upload").signed(&mixer).json(&body).send().await.refused(403, "forbidden");
    assert!(lab.device.calls().is_empty());
    let done = lab.post("/execute/mix").signed(&mixer).json(&body).send().await.ok();
    assert_eq!(done["status"], "success");
    assert_eq!(lab.device.calls().len(), 1);
}

#[tokio::test]
async fn an_agent_without_admin_sees_its_own_runs_only() {
    let lab = Lab::start().await;
    let run = lab.mix("ana").await.send().await.ok()["run_id"].as_str().expect("a run").to_owned();
    let token = lab.agent_token(&["runs:read", "runs:cancel", "devices:execute"]).await;
    let own = lab.post("/execute/mix").signed(&token).json(&json!({ "volume": 5 })).send().await.ok();

    let listed = lab.get("/runs").signed(&token).send().await.ok();
    assert_eq!(listed["total"], 1);
    assert_eq!(listed["items"][0]["id"], own["run_id"]);
    for path in [format!("/runs/{run}"), format!("/runs/{run}/events")] {
        lab.get(&path).signed(&token).send().await.refused(404, "run_not_found");
    }
    lab.post(&format!("/runs/{run}/cancel"))
        .signed(&token)
        .json(&json!({}))
        .send()
        .await
        .refused(404, "run_not_found");
}

#[tokio::test]
async fn a_scope_taken_away_is_gone_at_once_and_refreshing_ends() {
    let lab = Lab::start().await;
    let zoe = lab.token("zoe").await;
    let (id, secret) = lab.agent(&["audit:read", "runs:read"]).await;
    let (access, refresh) = lab.pair(&id, &secret).await;
    lab.get("/audit").signed(&access).send().await.ok();

    let changed = lab
        .put(&format!("/agents/{id}"))
        .signed(&zoe)
        .json(&json!({ "scopes": ["runs:read", "metrics:read"] }))
        .send()
        .await
        .ok();

    assert_eq!(changed["scopes"], json!(["metrics:read", "runs:read"]));
    lab.get("/audit").signed(&access).send().await.refused(403, "forbidden");
    lab.get("/runs").signed(&access).send().await.ok();
    // Nor does an older token gain what was given later.
    assert_eq!(lab.get("/auth/me").signed(&access).send().await.ok()["scopes"], json!(["runs:read"]));
    lab.post("/agents/auth/refresh")
        .json(&json!({ "refresh_token": refresh }))
        .send()
        .await
        .refused(401, "unauthorized");
    let entry = lab.trail_of("agent.updated").await.pop().expect("an entry");
    assert_eq!(entry.draft.details["updated_fields"], json!(["scopes"]));
    assert_eq!(entry.draft.details["old_data"]["scopes"], json!(["audit:read", "runs:read"]));
    assert_eq!(entry.draft.details["new_data"]["scopes"], json!(["metrics:read", "runs:read"]));
}

#[tokio::test]
async fn an_update_changes_what_it_names_and_null_removes_the_address() {
    let lab = Lab::start().await;
    let zoe = lab.token("zoe").await;
    let made =
        create(&lab, &json!({ "name": "a", "scopes": ["runs:read"], "webhook_url": "https://h.example/" }))
            .await
            .json();
    let path = format!("/agents/{}", made["id"].as_str().expect("id"));
    let update = async |body: Value| lab.put(&path).signed(&zoe).json(&body).send().await.ok();

    assert_eq!(update(json!({})).await["webhook_url"], "https://h.example/");
    let renamed = update(json!({ "name": "b" })).await;
    assert_eq!((&renamed["name"], &renamed["scopes"]), (&json!("b"), &json!(["runs:read"])));
    assert_eq!(update(json!({ "webhook_url": null })).await["webhook_url"], Value::Null);
    lab.put(&format!("/agents/{UNKNOWN}"))
        .signed(&zoe)
        .json(&json!({}))
        .send()
        .await
        .refused(404, "agent_not_found");
}

#[tokio::test]
async fn a_deleted_agent_is_dead_and_its_record_stays() {
    let lab = Lab::start().await;
    let zoe = lab.token("zoe").await;
    let (id, secret) = lab.agent(&["runs:read", "devices:execute"]).await;
    let (access, refresh) = lab.pair(&id, &secret).await;
    lab.post("/execute/mix").signed(&access).json(&json!({ "volume": 5 })).send().await.ok();

    let gone = lab.delete(&format!("/agents/{id}")).signed(&zoe).send().await.ok();

    assert_eq!(gone["success"], true);
    assert_eq!(gone["details"]["agent_id"], id);
    assert!(gone["details"]["agent_name"].as_str().is_some_and(|name| name.starts_with("agent ")));
    assert!(!lab.takes(&access).await);
    lab.post("/agents/auth/refresh")
        .json(&json!({ "refresh_token": refresh }))
        .send()
        .await
        .refused(401, "unauthorized");
    sign_in(&lab, &id, &secret).await.refused(401, "unauthorized");
    lab.get(&format!("/agents/{id}")).signed(&zoe).send().await.refused(404, "agent_not_found");
    lab.delete(&format!("/agents/{id}")).signed(&zoe).send().await.refused(404, "agent_not_found");
    set_secret(&lab, &id, &json!({})).await.refused(404, "agent_not_found");
    let entry = lab.trail_of("agent.deleted").await.remove(0);
    assert_eq!(entry.draft.details["deleted_agent_name"], gone["details"]["agent_name"]);
    // What it did keeps its actor.
    assert!(
        lab.trail_of("device.executed").await.iter().any(|entry| entry.draft.actor.as_ref() == Some(&id))
    );
    let lab = lab.restarted().await;
    assert!(!lab.takes(&access).await);
    sign_in(&lab, &id, &secret).await.refused(401, "unauthorized");
    lab.assert_chain().await;
}

#[tokio::test]
async fn the_first_agent_and_oneself_stay() {
    let lab = Lab::start().await;
    let (id, secret) = lab.agent(&["admin"]).await;
    let own = lab.pair(&id, &secret).await.0;

    lab.delete(&format!("/agents/{SYSTEM}")).signed(&own).send().await.refused(400, "agent_protected");
    lab.delete(&format!("/agents/{id}")).signed(&own).send().await.refused(400, "agent_protected");

    let system = lab.get(&format!("/agents/{SYSTEM}")).signed(&own).send().await.ok();
    assert_eq!((&system["name"], &system["scopes"]), (&json!("system"), &json!(["admin", "system"])));
    assert_eq!(system["has_credentials"], false);
    for secret in ["", "system", SYSTEM, "admin"] {
        sign_in(&lab, SYSTEM, secret).await.refused(401, "unauthorized");
    }
}

#[tokio::test]
async fn an_agent_that_is_given_admin_is_told_of_once() {
    let lab = Lab::start().await;
    let logged = crate::service::Capture::default();
    let _guard = logged.install();
    let zoe = lab.token("zoe").await;
    let told = || logged.text().matches("admin_scope_granted").count();

    // Dotted names of the earlier system are scopes like any other, and one that merely looks like it is not `admin`.
    let body = json!({ "name": "mail", "scopes": ["admin.read", "email.read", "email.send"] });
    let made = lab.post("/agents").signed(&zoe).json(&body).send().await;
    assert_eq!(made.status.as_u16(), 201, "{}", made.text());
    assert_eq!(made.json()["scopes"], body["scopes"]);
    assert_eq!(told(), 0);
    // A star stands in scopes that say what of, and in no dotted one.
    for bad in ["email.*", "*", "admin.*", "email:*"] {
        let body = json!({ "name": "star", "scopes": [bad] });
        lab.post("/agents").signed(&zoe).json(&body).send().await.refused(422, "invalid_request");
    }
    let path = format!("/agents/{}", made.json()["id"].as_str().expect("an id"));

    lab.put(&path).signed(&zoe).json(&json!({ "scopes": ["email.read", "admin"] })).send().await.ok();
    assert_eq!(told(), 1);
    lab.put(&path).signed(&zoe).json(&json!({ "name": "mails", "scopes": ["admin"] })).send().await.ok();
    assert_eq!(told(), 1, "it had it already");
    lab.post("/agents").signed(&zoe).json(&json!({ "name": "root", "scopes": ["admin"] })).send().await;
    assert_eq!(told(), 2);
}
