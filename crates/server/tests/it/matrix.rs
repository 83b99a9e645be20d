//! Who may reach what: every route with every kind of caller, against a committed snapshot.
//!
//! A changed line in `routes.snap` is a changed right and wants a reviewer. `UPDATE_ROUTES=1 cargo test -p interlock-server`
//! writes the file anew.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use interlock_server::routes::Access;
use serde_json::{Value, json};

use crate::lab::Lab;

const SNAPSHOT: &str = include_str!("routes.snap");
const ORCHESTRATOR: &str = include_str!("orchestrator.snap");
/// The id of no task, no run, no question.
const NOBODY: &str = "018f6b1e-2c3d-7a4b-8c9d-0e1f2a3b4c5d";
/// The first agent.
const AGENT: &str = "00000000-0000-0000-0000-000000000001";
const CALLERS: [(&str, Option<&str>); 8] = [
    ("none", None),
    ("garbage", Some("")),
    ("viewer", Some("vic")),
    ("operator", Some("ana")),
    ("admin", Some("ada")),
    ("auditor", Some("odo")),
    ("agent_admin", Some("admin")),
    ("agent_runs", Some("runs:read")),
];

#[tokio::test]
async fn every_route_answers_every_caller_as_reviewed() {
    let lab = Lab::with(|config| config.production = true).await;
    let run = lab.mix("ben").await.send().await.ok()["run_id"].as_str().expect("a run").to_owned();
    answers(lab, &run, "routes.snap", SNAPSHOT).await;
}

#[tokio::test]
async fn every_route_of_the_orchestrator_answers_every_caller_as_reviewed() {
    let lab = Lab::with(|config| config.production = true).await.without_device();
    answers(lab, NOBODY, "orchestrator.snap", ORCHESTRATOR).await;
}

/// Compares what every route answers every caller with a snapshot.
async fn answers(lab: Lab, run: &str, file: &str, snapshot: &str) {
    let routes = interlock_server::routes(lab.app.clone());
    let mut table: Vec<_> = routes.table().to_vec();
    table.sort_by_key(|route| (route.path, route.method.to_string()));
    let mut text = String::from(
        "# method path | access | caller status ... ; written by UPDATE_ROUTES=1, reviewed by people\n",
    );

    for route in table {
        let name = if route.path.starts_with("/users") { "ben" } else { "plate.csv" };
        let path = route
            .path
            .replace("{task}", "mix")
            .replace("{run_id}", run)
            .replace("{task_id}", NOBODY)
            .replace("{approval_id}", NOBODY)
            .replace("{name}", name)
            .replace("{role}", "washer")
            .replace("{id}", "none")
            .replace("{agent_id}", AGENT)
            .replace("{network}", "203.0.113.0-24");
        assert!(!path.contains('{'), "{path}: teach this test the new parameter");
        let access = match route.access {
            Access::Public(reason) => format!("public {reason:?}"),
            Access::Granted(action) => action.to_owned(),
        };
        let mut line = format!("{} {} | {access} |", route.method, route.path);
        for (label, person) in CALLERS {
            let ask = lab.ask(route.method.clone(), &path);
            let ask = if route.method == "GET" { ask } else { ask.json(&json!({})) };
            // A fresh token for each, because one of the routes ends the session.
            let ask = match person {
                None => ask,
                Some("") => ask.signed("eyJhbGciOiJIUzI1NiJ9.e30.c2lnbmF0dXJl"),
                Some(scope) if label.starts_with("agent") => {
                    let token = lab.agent_token(&[scope]).await;
                    ask.signed(&token)
                }
                Some(person) => {
                    let token = lab.sign_in(person).await;
                    ask.signed(&token)
                }
            };
            let status = ask.open().await.status().as_u16();
            if matches!(route.access, Access::Granted(_)) && matches!(label, "none" | "garbage") {
                assert_eq!(status, 401, "{} {} must not be open", route.method, route.path);
            }
            assert!(status < 500, "{} {} as {label}: {status}", route.method, route.path);
            let _ = write!(line, " {label} {status}");
        }
        text.push_str(&line);
        text.push('\n');
    }

    if std::env::var_os("UPDATE_ROUTES").is_some_and(|value| value == "1") {
        let file = format!("{}/tests/it/{file}", env!("CARGO_MANIFEST_DIR"));
        std::fs::write(file, &text).expect("the snapshot can be written");
    } else {
        assert_eq!(
            text, snapshot,
            "routes or rights have changed; if that is meant, run with UPDATE_ROUTES=1 and have routes.snap reviewed"
        );
    }
    lab.assert_chain().await;
}

#[tokio::test]
async fn a_refused_caller_leaves_no_trace_but_the_refusal() {
    let lab = Lab::start().await;
    let routes = interlock_server::routes(lab.app.clone());

    for route in routes
        .table()
        .iter()
        .filter(|route| matches!(route.access, Access::Granted(_)) && route.method != "GET")
    {
        let path = route
            .path
            .replace("{task}", "mix")
            .replace("{run_id}", "run_018f6b1e2c3d7a4b8c9d0e1f2a3b4c5d")
            .replace("{name}", "ana")
            .replace("{role}", "washer")
            .replace("{id}", "none")
            .replace("{agent_id}", AGENT)
            .replace("{network}", "203.0.113.0-24");
        let body = json!({ "volume": 5, "reason": "it is safe", "name": "eve", "password": "seven purple pipettes", "roles": ["admin"] });
        lab.ask(route.method.clone(), &path).json(&body).send().await.refused(401, "unauthorized");
    }

    let trail = lab.trail().await;
    assert!(
        trail
            .iter()
            .skip(crate::lab::PEOPLE.len() + 1)
            .all(|entry| entry.draft.action == "authentication.failed"),
        "{trail:?}"
    );
    assert!(
        lab.device.calls().is_empty() && lab.device.stops().is_empty() && lab.device.releases().is_empty()
    );
}

/// Routes that read although they are not GET.
const READING: [&str; 2] = ["policy.tested", "token.introspected"];

/// What wants a receiver that refuses: its record is looked at in tests/blackbox/test_webhooks.py.
const ELSEWHERE: [&str; 1] = ["webhook.repeated"];

/// What only administrators can change, by the reviewed tables.
fn administration() -> BTreeSet<&'static str> {
    SNAPSHOT
        .lines()
        .chain(ORCHESTRATOR.lines())
        .filter(|line| !line.starts_with("GET ") && line.contains(" viewer 403 operator 403 "))
        .filter(|line| !line.contains(" admin 403 "))
        .filter_map(|line| line.split(" | ").nth(1))
        .filter(|action| !READING.contains(action) && !ELSEWHERE.contains(action))
        .collect()
}

/// Action, method, path, body, and a word of the change that the record must hold.
type Deed = (&'static str, &'static str, String, Value, &'static str);

/// One of each, that succeeds in this order.
async fn administrative_deeds(lab: &Lab, tasks: &Lab) -> [Deed; 23] {
    let (id, _) = lab.agent(&["runs:read"]).await;
    let (told, _) = tasks.agent(&["runs:read"]).await;
    let webhook = json!({ "webhook_url": "https://lims.example/hook" });
    tasks.put(&format!("/agents/{told}")).signed(&tasks.token("zoe").await).json(&webhook).send().await.ok();
    for _ in 0..12 {
        let guess = json!({ "username": "vic", "password": "wrong wrong wrong" });
        lab.post("/auth/login").from("10.0.0.66").json(&guess).send().await;
    }
    let zoe = lab.token("zoe").await;
    let lockouts = lab.get("/security/lockouts").signed(&zoe).send().await.ok();
    let locked = lockouts[0]["id"].as_str().expect("somebody is locked out").to_owned();
    let invited = lab
        .post("/users/invitations")
        .signed(&zoe)
        .json(&json!({ "name": "ivy", "roles": ["viewer"] }))
        .send()
        .await;
    let invitation = invited.json()["id"].as_str().expect("an id").to_owned();
    let agent = |rest: &str| format!("/agents/{id}{rest}");
    let key = json!({ "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" });
    let made = json!({ "name": "eve", "password": "seven purple pipettes", "roles": ["viewer"] });
    [
        (
            "agent.created",
            "POST",
            "/agents".to_owned(),
            json!({ "name": "new", "scopes": ["runs:read"] }),
            "runs:read",
        ),
        ("agent.updated", "PUT", agent(""), json!({ "name": "renamed" }), "renamed"),
        (
            "agent.certificates_set",
            "PUT",
            agent("/certificates"),
            json!({ "names": ["dns:a.lab.example"] }),
            "a.lab.example",
        ),
        ("agent.keys_set", "PUT", agent("/keys"), json!({ "keys": [key] }), "11qYAYKxCrfVS"),
        ("agent.credentials_created", "POST", agent("/credentials"), json!({}), "zoe"),
        ("agent.deleted", "DELETE", agent(""), json!({}), "renamed"),
        (
            "ban.added",
            "POST",
            "/bans".to_owned(),
            json!({ "network": "203.0.113.0/24", "reason": "scans" }),
            "scans",
        ),
        ("ban.removed", "DELETE", "/bans/203.0.113.0-24".to_owned(), json!({}), ""),
        (
            "device.released",
            "POST",
            "/stop/release".to_owned(),
            json!({ "reason": "it was steam" }),
            "it was steam",
        ),
        (
            "invitation.made",
            "POST",
            "/users/invitations".to_owned(),
            json!({ "name": "ida", "roles": ["viewer"] }),
            "viewer",
        ),
        ("invitation.revoked", "DELETE", format!("/users/invitations/{invitation}"), json!({}), ""),
        ("role.changed", "PUT", "/roles/washer".to_owned(), json!({ "scopes": ["runs:read"] }), "runs:read"),
        ("role.deleted", "DELETE", "/roles/washer".to_owned(), json!({}), ""),
        ("security.unlocked", "DELETE", format!("/security/lockouts/{locked}"), json!({}), ""),
        ("token.revoked", "POST", "/tokens/revoke".to_owned(), json!({ "principal": "ana" }), "ana"),
        ("user.created", "POST", "/users".to_owned(), made, "viewer"),
        ("user.updated", "PATCH", "/users/eve".to_owned(), json!({ "roles": ["operator"] }), "operator"),
        (
            "user.password_set",
            "POST",
            "/users/eve/password".to_owned(),
            json!({ "password": "nine yellow yaks" }),
            "",
        ),
        (
            "user.reset_started",
            "POST",
            "/users/eve/reset".to_owned(),
            json!({ "what": "password" }),
            "password",
        ),
        ("user.reset_revoked", "DELETE", "/users/eve/reset".to_owned(), json!({}), "1"),
        ("user.factors_reset", "DELETE", "/users/eve/factors".to_owned(), json!({}), ""),
        ("agent.webhook_secret_made", "POST", format!("/agents/{told}/webhook/secret"), json!({}), ""),
        ("event.stream_cleaned", "DELETE", "/events/stream/cleanup".to_owned(), json!({}), "deleted"),
    ]
}

#[tokio::test]
async fn every_administrative_change_is_one_record_of_who_did_what_to_what() {
    let lab = Lab::start().await;
    let tasks = Lab::start().await.without_device();
    let deeds = administrative_deeds(&lab, &tasks).await;
    let tested: BTreeSet<&str> = deeds.iter().map(|deed| deed.0).collect();
    assert_eq!(tested, administration(), "teach this test the new route");

    for (action, method, path, body, change) in deeds {
        let lab = if action.starts_with("event.") || action.contains("webhook") { &tasks } else { &lab };
        let zoe = lab.token("zoe").await;
        let before = lab.trail().await.len();
        let answer = lab.ask(method.parse().expect("a method"), &path).signed(&zoe).json(&body).send().await;
        assert!(answer.status.is_success(), "{method} {path}: {} {}", answer.status, answer.text());
        let trail = lab.trail().await;
        let new: Vec<_> = trail[before..].iter().map(|entry| &entry.draft).collect();
        // What acts outside the database is on record before and after.
        let phases = if action == "device.released" { 2 } else { 1 };
        assert_eq!(new.len(), phases, "{action}: {new:#?}");
        for draft in new {
            assert_eq!((draft.action.as_str(), draft.actor.as_deref()), (action, Some("zoe")));
            assert_eq!(draft.client_ip.as_deref(), Some("10.0.0.7"), "{action}");
            assert_eq!(draft.request_id.as_deref(), answer.header("x-request-id"), "{action}");
            assert!(
                draft.subject.is_some()
                    || ["event.stream_cleaned", "device.released", "token.revoked"].contains(&action),
                "{action} names nothing: {draft:?}"
            );
        }
        let tells = trail[before..].iter().any(|entry| entry.draft.details.to_string().contains(change));
        assert!(tells, "{action} does not tell the change: {trail:#?}");
    }
}
