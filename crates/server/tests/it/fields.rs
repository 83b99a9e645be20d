//! Who reads and who writes which field: every field of every answer for each kind of caller, against a committed table.
//!
//! A changed line in `docs/reference/fields.md` is a changed right and wants a reviewer. `UPDATE_ROUTES=1 cargo test -p
//! interlock-server` writes the file anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::lab::{Lab, password};

const TABLE: &str = include_str!("../../../../docs/reference/fields.md");
const CALLERS: [&str; 7] =
    ["anyone", "viewer", "operator", "admin", "auditor", "agent with admin", "agent with runs:read"];
/// What is inside belongs to whoever wrote it, or is explained elsewhere.
const FREE: [&str; 9] =
    ["parameters", "result", "details", "schema", "simulated", "payload", "input", "capabilities", "actions"];
/// Documents of a standard form, and pages.
const NO_RECORDS: [&str; 6] = [
    "/openapi.json",
    "/docs",
    "/panel",
    "/device-code",
    "/metrics",
    "/.well-known/oauth-authorization-server",
];

const HEAD: &str = "# Who reads and who writes which field

By kind of caller: `anyone` (no credential), the four built-in roles, an agent with `admin`, and an agent with `runs:read` alone. Whoever
holds the scope of a route by a role of the installation's own is in the place of the built-in role that holds it. A test walks the
answers of every route for each of them and compares (`crates/server/tests/it/fields.rs`); `UPDATE_ROUTES=1` writes this file anew.

Lists of what is one's own (`/auth/keys`, `/auth/sessions`, `/auth/notices`, `/auth/factors`) hold one's own for everybody. Agents
see the runs and tasks that are theirs, and themselves. Streams of events hold what the run itself shows; questions (`/approvals`) and
deliveries are read whole by whoever reads the list. Secrets, hashes and digests are in no answer, but for the one that makes a secret.

What a text of a request may be is in `/openapi.json`: `maxLength` in characters, and `pattern`, `format` or `enum`. `x-free-text: true`
marks declared free text: prose, parameters of actions, and secrets as somebody gives them, which have a bound and say what they like.
The rules stand once, in `crates/model/src/text.rs`; `tests/blackbox/test_fields.py` sends what they rule out. Behind them are grammars of
their own (zones, schedules, scopes, tokens), and what a list of free JSON holds (`payload`) is bounded as a whole. The one exception is
`reason` of `POST /stop`: a stop is never refused for its words, and what is no reason is left out.
";

/// One token for each of [`CALLERS`].
async fn tokens(lab: &Lab) -> Vec<Option<String>> {
    let mut tokens = vec![None];
    for person in ["vic", "ana", "ada", "odo"] {
        tokens.push(Some(lab.sign_in(person).await));
    }
    for scope in ["admin", "runs:read"] {
        tokens.push(Some(lab.agent_token(&[scope]).await));
    }
    tokens
}

fn walk(value: &Value, path: &str, found: &mut BTreeMap<String, bool>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| walk(item, path, found)),
        Value::Object(members) => {
            for (name, inner) in members {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                *found.entry(path.clone()).or_default() |= !inner.is_null();
                if !FREE.contains(&name.as_str()) {
                    walk(inner, &path, found);
                }
            }
        }
        _ => {}
    }
}

/// Callers by their place, in words.
fn words(callers: &BTreeSet<usize>) -> String {
    if callers.len() == CALLERS.len() {
        return "everybody".to_owned();
    }
    if callers.len() + 1 == CALLERS.len() && !callers.contains(&0) {
        return "whoever is signed in".to_owned();
    }
    callers.iter().map(|at| CALLERS[*at]).collect::<Vec<_>>().join(", ")
}

fn rows(out: &mut String, route: &str, by_field: BTreeMap<String, BTreeSet<usize>>) {
    let mut grouped: BTreeMap<BTreeSet<usize>, Vec<String>> = BTreeMap::new();
    for (field, callers) in by_field {
        grouped.entry(callers).or_default().push(field);
    }
    for (callers, fields) in grouped {
        let fields: Vec<String> = fields.iter().map(|field| format!("`{field}`")).collect();
        let _ = writeln!(out, "| {route} | {} | {} |", fields.join(" "), words(&callers));
    }
}

/// What each caller reads of what GET routes answer.
async fn reading(lab: &Lab, fill: impl Fn(&str) -> String) -> String {
    let mut out = String::new();
    let tokens = tokens(lab).await;
    let routes = interlock_server::routes(lab.app.clone());
    let mut table: Vec<_> = routes.table().iter().filter(|route| route.method == "GET").collect();
    table.sort_by_key(|route| route.path);
    for route in table {
        let streams = route.path.ends_with("/events") || route.path.ends_with("/stream");
        if NO_RECORDS.contains(&route.path) || streams {
            continue;
        }
        let path = fill(route.path);
        let mut seen: Vec<BTreeMap<String, bool>> = Vec::new();
        for token in &tokens {
            let ask = lab.get(&path);
            let ask = if let Some(token) = token { ask.signed(token) } else { ask };
            let answer = ask.send().await;
            let mut found = BTreeMap::new();
            let is_json = answer.header("content-type").is_some_and(|kind| kind.contains("json"));
            if answer.status.is_success() && is_json {
                let body = answer.json();
                // Named by whoever made them: the names are no fields.
                let body = if matches!(route.path, "/roles" | "/tools") {
                    json!({ "*": body.as_object().expect("an object").values().collect::<Vec<_>>() })
                } else {
                    body
                };
                walk(&body, "", &mut found);
            }
            seen.push(found);
        }
        let mut by_field: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
        for field in seen.iter().flat_map(BTreeMap::keys) {
            // Null for one where another reads something is not read.
            let filled = seen.iter().any(|found| found.get(field) == Some(&true));
            let reads = |at: &usize| seen[*at].get(field).is_some_and(|value| *value || !filled);
            by_field.insert(field.clone(), (0..CALLERS.len()).filter(reads).collect());
        }
        rows(&mut out, &format!("GET `{}`", route.path), by_field);
    }
    out
}

/// Which callers may send each field of a body, by the API document and by asking.
async fn writing(lab: &Lab, fill: impl Fn(&str) -> String, done: &mut BTreeSet<String>) -> String {
    let mut out = String::new();
    let document = lab.get("/openapi.json").signed(&lab.token("zoe").await).send().await.ok();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            let content = &operation["requestBody"]["content"]["application/json"]["schema"]["$ref"];
            let Some(name) = content.as_str().and_then(|text| text.rsplit('/').next()) else { continue };
            let method = method.to_uppercase();
            if !done.insert(format!("{method} {path}")) {
                continue;
            }
            let fields = document["components"]["schemas"][name]["properties"].as_object();
            let mut admitted = BTreeSet::new();
            for (at, token) in tokens(lab).await.into_iter().enumerate() {
                let ask = lab.ask(method.parse().expect("a method"), &fill(path)).json(&json!({}));
                let ask = if let Some(token) = &token { ask.signed(token) } else { ask };
                if !matches!(ask.send().await.status.as_u16(), 401 | 403) {
                    admitted.insert(at);
                }
            }
            let by_field = fields.into_iter().flat_map(|fields| fields.keys());
            let by_field = by_field.map(|field| (field.clone(), admitted.clone())).collect();
            rows(&mut out, &format!("{method} `{path}`"), by_field);
        }
    }
    out
}

/// An installation in which every list has something.
async fn furnished() -> (Lab, String, String) {
    let lab = Lab::start().await;
    let run = lab.mix("ana").await.send().await.ok()["run_id"].as_str().expect("a run").to_owned();
    let zoe = lab.token("zoe").await;
    let send = async |path: &str, body: Value| {
        let answer = lab.post(path).signed(&zoe).json(&body).send().await;
        assert!(answer.status.is_success(), "{path}: {}", answer.text());
        answer.json()
    };
    send("/bans", json!({ "network": "203.0.113.0/24", "reason": "scans" })).await;
    send("/users/invitations", json!({ "name": "ivy", "roles": ["viewer"] })).await;
    let (agent, _) = lab.agent(&["runs:read"]).await;
    let key = json!({ "name": "k", "scopes": ["runs:read"], "agent_id": agent });
    send("/auth/keys", key).await;
    for _ in 0..12 {
        let guess = json!({ "username": "vic", "password": "wrong wrong wrong" });
        lab.post("/auth/login").from("10.0.0.66").json(&guess).send().await;
    }
    (lab, run, agent)
}

/// A task of an operator with a run that waits; their ids.
async fn line_up(lab: &Lab) -> (String, String) {
    let ana = lab.sign_in("ana").await;
    let body = json!({
        "title": "A task", "description": "For a test", "schedule_kind": "manual", "created_by": "ana",
        "payload": { "pipeline": [{ "uses": "orchestrator.sleep", "with": { "seconds": 0 } }] },
    });
    let made = lab.post("/tasks").signed(&ana).json(&body).send().await;
    assert_eq!(made.status.as_u16(), 201, "{}", made.text());
    let task = made.json()["id"].as_str().expect("an id").to_owned();
    let run = lab.post(&format!("/tasks/{task}/run_now")).signed(&ana).json(&json!({})).send().await.ok();
    (task, run["details"]["run_id"].as_str().expect("a run").to_owned())
}

#[tokio::test]
async fn every_field_is_read_and_written_by_those_whom_the_table_names() {
    let (lab, run, agent) = furnished().await;
    let fill = |path: &str| {
        path.replace("{task}", "mix")
            .replace("{run_id}", &run)
            .replace("{agent_id}", &agent)
            .replace("{name}", "ben")
            .replace("{role}", "washer")
            .replace("{id}", "none")
            .replace("{network}", "203.0.113.0-24")
            .replace("{task_id}", "018f6b1e-2c3d-7a4b-8c9d-0e1f2a3b4c5d")
            .replace("{approval_id}", "018f6b1e-2c3d-7a4b-8c9d-0e1f2a3b4c5d")
    };
    let mut text = format!("{HEAD}\n## Read\n\n| route | fields | who reads them |\n|---|---|---|\n");
    let device = reading(&lab, fill).await;
    text.push_str(&device);
    let tasks = lab.without_device();
    let (task, run) = line_up(&tasks).await;
    let fill = |path: &str| fill(&path.replace("{task_id}", &task).replace("{run_id}", &run));
    let _ = write!(
        text,
        "\n### On an orchestrator, besides\n\n| route | fields | who reads them |\n|---|---|---|\n"
    );
    let besides = reading(&tasks, fill).await;
    for row in besides.lines().filter(|row| !device.lines().any(|known| known == *row)) {
        let _ = writeln!(text, "{row}");
    }
    let mut written = BTreeSet::new();
    let _ = write!(text, "\n## Written\n\n| route | fields | who may send them |\n|---|---|---|\n");
    text.push_str(&writing(&tasks, fill, &mut written).await);
    let (lab, _, _) = furnished().await;
    text.push_str(&writing(&lab, fill, &mut written).await);

    if std::env::var_os("UPDATE_ROUTES").is_some_and(|value| value == "1") {
        let table = format!("{}/../../docs/reference/fields.md", env!("CARGO_MANIFEST_DIR"));
        std::fs::write(table, &text).expect("the table can be written");
    } else {
        assert_eq!(
            text, TABLE,
            "rights by field have changed; if that is meant, run with UPDATE_ROUTES=1 and have fields.md reviewed"
        );
    }
}

#[tokio::test]
async fn no_answer_holds_what_proves_identity() {
    let (lab, run, agent) = furnished().await;
    let zoe = lab.token("zoe").await;
    let routes = interlock_server::routes(lab.app.clone());
    for route in
        routes.table().iter().filter(|route| route.method == "GET" && !route.path.ends_with("/events"))
    {
        let path = route.path.replace("{run_id}", &run).replace("{agent_id}", &agent).replace("{name}", "x");
        let text = lab.get(&path).signed(&zoe).send().await.text();
        for secret in ["$argon2", "$2b$", "password_hash", "\"sealed\"", "ils_", "ilr_"] {
            assert!(!text.contains(secret), "{path} holds {secret}");
        }
        assert!(!text.contains(password("ana").expose()), "{path}");
    }
}

#[tokio::test]
async fn what_cannot_be_written_is_not_written_beside_what_can() {
    let (lab, _, agent) = furnished().await;
    let zoe = lab.token("zoe").await;
    let path = format!("/agents/{agent}");
    let before = lab.get(&path).signed(&zoe).send().await.ok();
    let mut body = json!({ "name": "renamed" });
    for (field, value) in before.as_object().expect("an agent") {
        if !["name", "scopes", "webhook_url", "grant_types", "token_endpoint_auth_method"].contains(&&**field)
        {
            body[field] = if value.is_number() { json!(7) } else { json!("2020-01-01T00:00:00Z") };
        }
    }
    body["disabled"] = json!(true);
    body["tokens_valid_from"] = json!(0);
    let after = lab.put(&path).signed(&zoe).json(&body).send().await.ok();
    let mut expected = before;
    expected["name"] = json!("renamed");
    assert_eq!(after, expected);
    lab.put(&path)
        .signed(&zoe)
        .header("prefer", "handling=strict")
        .json(&body)
        .send()
        .await
        .refused(422, "invalid_request");

    let users = || async { lab.get("/users").signed(&zoe).send().await.ok() };
    let before = users().await;
    let body =
        json!({ "name": "root", "created_at": "2020-01-01T00:00:00Z", "password_hash": "x", "version": 9 });
    lab.ask("PATCH".parse().expect("a method"), "/users/ben").signed(&zoe).json(&body).send().await.ok();
    let after = users().await;
    let bare = |users: &Value| {
        let mut users = users.clone();
        for user in users.as_array_mut().expect("users") {
            user.as_object_mut().expect("a user").remove("updated_at");
        }
        users
    };
    assert_eq!(bare(&before), bare(&after));
}
