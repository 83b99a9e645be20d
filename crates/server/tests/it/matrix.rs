//! Who may reach what: every route with every kind of caller, against a committed snapshot.
//!
//! A changed line in `routes.snap` is a changed right and wants a reviewer. `UPDATE_ROUTES=1 cargo test -p interlock-server`
//! writes the file anew.

use std::fmt::Write as _;

use interlock_server::routes::Access;
use serde_json::json;

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
