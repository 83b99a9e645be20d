//! Every scope against every guarded route: an agent that holds one scope and nothing else, and which doors it opens.
//!
//! A changed line in `scopes.snap` is a changed right. `UPDATE_ROUTES=1 cargo test -p interlock-server` writes the file anew.

use std::fmt::Write as _;

use interlock_model::scope::{KNOWN, PEOPLE_ONLY};
use interlock_server::routes::Access;
use serde_json::json;

use crate::lab::Lab;

const SNAPSHOT: &str = include_str!("scopes.snap");

#[tokio::test]
async fn every_scope_opens_the_doors_that_were_reviewed() {
    let lab = Lab::start().await;
    let run = "run_018f6b1e2c3d7a4b8c9d0e1f2a3b4c5d";
    let routes = interlock_server::routes(lab.app.clone());
    let mut table: Vec<_> =
        routes.table().iter().filter(|route| matches!(route.access, Access::Granted(_))).cloned().collect();
    table.sort_by_key(|route| (route.path, route.method.to_string()));
    let mut holders = Vec::new();
    for scope in KNOWN.iter().filter(|scope| !PEOPLE_ONLY.contains(scope)) {
        let (id, secret) = lab.agent(&[scope]).await;
        holders.push((*scope, id, secret));
    }
    let mut text =
        String::from("# method path | scopes of which one is enough (of those that an agent can hold)\n");

    for route in table {
        let path = route
            .path
            .replace("{task}", "mix")
            .replace("{run_id}", run)
            .replace("{name}", "nobody")
            .replace("{role}", "none")
            .replace("{id}", "none")
            .replace("{agent_id}", "11111111-2222-4333-8444-555555555555");
        let mut open = Vec::new();
        for (scope, id, secret) in &holders {
            // Some routes end the session.
            let (token, _) = lab.pair(id, secret).await;
            let ask = lab.ask(route.method.clone(), &path).signed(&token);
            let ask = if route.method == "GET" { ask } else { ask.json(&json!({ "unknown": true })) };
            let status = ask.send().await.status.as_u16();
            assert!(status < 500 && status != 401, "{} {path} with {scope}: {status}", route.method);
            if status != 403 {
                open.push(*scope);
            }
        }
        let word = match open.len() {
            0 => "none".to_owned(),
            all if all == holders.len() => "any".to_owned(),
            _ => open.join(" "),
        };
        let _ = writeln!(text, "{} {} | {word}", route.method, route.path);
    }

    if std::env::var_os("UPDATE_ROUTES").is_some_and(|value| value == "1") {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/scopes.snap");
        std::fs::write(file, &text).expect("the snapshot can be written");
    } else {
        assert_eq!(
            text, SNAPSHOT,
            "rights have changed; if that is meant, run with UPDATE_ROUTES=1 and have scopes.snap reviewed"
        );
    }
}
