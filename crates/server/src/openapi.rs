//! The API document (OpenAPI 3.1), made from the route table and, for callers who may list them, the device's actions.
//!
//! Paths, methods and access come from the table, so they cannot differ from what is served; a test asserts that every route
//! has a description here.

mod identity;
mod orchestrator;

use axum::http::Method;
use interlock_model::device::{Catalogue, DeviceAction};
use serde_json::{Map, Value, json};

use crate::config::ServerConfig;
use crate::routes::{Access, RouteEntry};

/// `(method, path, operation id, tag, summary, schema of the body, schema of the answer)`.
type Entry =
    (&'static str, &'static str, &'static str, &'static str, &'static str, &'static str, &'static str);

const OPERATIONS: &[Entry] = &[
    (
        "POST",
        "/auth/login",
        "login",
        "Sign-in",
        "Sign in with name and password; JSON or form",
        "LoginRequest",
        "LoginAnswer",
    ),
    (
        "POST",
        "/auth/certificate",
        "sign_in_by_certificate",
        "Sign-in",
        "Sign in as the person whom the client certificate of the connection names",
        "CertificateRequest",
        "LoginAnswer",
    ),
    (
        "POST",
        "/page-reports",
        "report_page",
        "Service",
        "What browsers report when a page tries what its policy forbids",
        "",
        "",
    ),
    ("POST", "/auth/logout", "logout", "Sign-in", "End this session; the token is dead", "", "Operation"),
    ("GET", "/auth/me", "who_am_i", "Sign-in", "Who one is and which roles are in force", "", "WhoAmI"),
    (
        "GET",
        "/tasks",
        "list_tasks",
        "Actions",
        "Actions by name, in the form of the earlier system",
        "",
        "Object",
    ),
    (
        "GET",
        "/actions",
        "list_actions",
        "Actions",
        "Actions with types, units, limits and rules",
        "",
        "Actions",
    ),
    (
        "POST",
        "/execute/{task}",
        "execute",
        "Actions",
        "Execute an action and wait for its result",
        "Object",
        "ExecuteAnswer",
    ),
    (
        "POST",
        "/check/{task}",
        "check",
        "Actions",
        "Check parameters; nothing is executed",
        "Object",
        "CheckAnswer",
    ),
    ("GET", "/runs", "list_runs", "Runs", "Runs, newest first", "", "RunPage"),
    ("GET", "/runs/{run_id}", "show_run", "Runs", "One run", "", "Run"),
    (
        "GET",
        "/runs/{run_id}/events",
        "run_events",
        "Runs",
        "What happened in a run; a live stream with Accept: text/event-stream",
        "",
        "Events",
    ),
    (
        "POST",
        "/runs/{run_id}/cancel",
        "cancel_run",
        "Runs",
        "Ask a run to end: checkpoint, interrupt, kill, safe state",
        "Reason",
        "Run",
    ),
    (
        "GET",
        "/runs/{run_id}/artifacts/{name}",
        "artifact",
        "Runs",
        "Download a file that a run produced",
        "",
        "",
    ),
    ("GET", "/device", "show_device", "Device", "The device as it is now", "", "DeviceStatus"),
    (
        "POST",
        "/stop",
        "emergency_stop",
        "Device",
        "Software emergency stop: kill, safe state, latch. Not a safety-rated stop",
        "Reason",
        "StopReport",
    ),
    ("POST", "/stop/release", "release_stop", "Device", "Release the emergency stop", "Reason", "Operation"),
    (
        "POST",
        "/device/attention/clear",
        "clear_attention",
        "Device",
        "Confirm that a person has looked at the device",
        "Reason",
        "Operation",
    ),
    ("GET", "/users", "list_users", "People", "Everyone", "", "Users"),
    ("POST", "/users", "create_user", "People", "Make a user", "NewUser", "User"),
    ("PATCH", "/users/{name}", "update_user", "People", "Change roles or disable", "UserEdit", "User"),
    (
        "POST",
        "/users/{name}/password",
        "set_password",
        "People",
        "Set a password; earlier tokens are dead",
        "NewPassword",
        "Operation",
    ),
    ("GET", "/bans", "list_bans", "Bans", "Networks that are refused", "", "Bans"),
    (
        "POST",
        "/bans",
        "add_ban",
        "Bans",
        "Refuse a network, for some time or without an end",
        "NewBan",
        "Ban",
    ),
    (
        "DELETE",
        "/bans/{network}",
        "remove_ban",
        "Bans",
        "Serve a network again; its slash may be written as %2F or a hyphen",
        "",
        "Operation",
    ),
    ("GET", "/audit", "read_audit", "Audit", "The audit trail, newest first", "", "AuditPage"),
    (
        "GET",
        "/audit/counts",
        "count_audit",
        "Audit",
        "How many entries of the audit trail there are of each value, the most frequent first",
        "",
        "AuditCounts",
    ),
    (
        "GET",
        "/audit/checkpoint",
        "read_checkpoint",
        "Audit",
        "What the audit trail holds, as a signed note (C2SP)",
        "",
        "",
    ),
    (
        "GET",
        "/audit/proof",
        "prove_entry",
        "Audit",
        "The proof that an entry is in the audit trail",
        "",
        "AuditProof",
    ),
    ("GET", "/", "banner", "Service", "The name of the service", "", "Object"),
    ("GET", "/health", "health", "Service", "Whether the server can work", "", "Health"),
    ("GET", "/health/live", "live", "Service", "Whether the process lives", "", "Object"),
    ("GET", "/health/ready", "ready", "Service", "Whether requests should be sent here", "", "Object"),
    (
        "GET",
        "/.well-known/security.txt",
        "security_txt",
        "Service",
        "Where to report weaknesses (RFC 9116)",
        "",
        "",
    ),
    ("GET", "/metrics", "metrics", "Service", "Metrics in Prometheus text form", "", ""),
    ("GET", "/docs", "docs", "Service", "This reference and forms for every action", "", ""),
    ("GET", "/panel", "panel", "Service", "The same page, to sign in on", "", ""),
    ("GET", "/docs/app.js", "script", "Service", "Script of the page", "", ""),
    ("GET", "/docs/app.css", "style", "Service", "Style of the page", "", ""),
    ("GET", "/openapi.json", "document", "Service", "This document", "", "Object"),
];

/// The document. `catalogue` is given when the caller may list actions.
pub(crate) fn document(config: &ServerConfig, table: &[RouteEntry], catalogue: Option<&Catalogue>) -> Value {
    let mut paths = Map::new();
    let profile = Profile::of(table);
    for route in table {
        let operation = operation(route, profile);
        insert(&mut paths, route.path, &route.method, operation);
    }
    if let Some(catalogue) = catalogue {
        for action in catalogue.actions() {
            insert(
                &mut paths,
                &format!("/execute/{}", action.spec.name),
                &Method::POST,
                action_operation(action),
            );
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": { "title": config.title, "description": config.description, "version": config.version },
        "security": [{ "bearer": [] }],
        "paths": paths,
        "components": {
            "securitySchemes": { "bearer": { "type": "http", "scheme": "bearer", "bearerFormat": "JWT" } },
            "schemas": schemas(),
        },
    })
}

fn insert(paths: &mut Map<String, Value>, path: &str, method: &Method, operation: Value) {
    if let Value::Object(item) = paths.entry(path).or_insert_with(|| json!({})) {
        item.insert(method.as_str().to_ascii_lowercase(), operation);
    }
}

/// The two families use the same paths for different things.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Profile {
    Device,
    Orchestrator,
}

impl Profile {
    fn of(table: &[RouteEntry]) -> Self {
        let has_device = table.iter().any(|route| route.path == "/execute/{task}");
        if has_device { Self::Device } else { Self::Orchestrator }
    }

    fn described(self, method: &Method, path: &str) -> Option<&'static Entry> {
        let own: &[Entry] = match self {
            Self::Device => &[],
            Self::Orchestrator => orchestrator::OPERATIONS,
        };
        let all = own.iter().chain(OPERATIONS).chain(identity::OPERATIONS);
        let mut all = all.filter(|entry| entry.0 == method.as_str() && entry.1 == path);
        all.next()
    }
}

fn operation(route: &RouteEntry, profile: Profile) -> Value {
    let described = profile.described(&route.method, route.path);
    let (id, tag, summary, body, answer) = match described {
        Some((_, _, id, tag, summary, body, answer)) => (*id, *tag, *summary, *body, *answer),
        None => ("undocumented", "Service", "", "", ""),
    };
    let mut parameters: Vec<Value> = route
        .path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
        .collect();
    if profile == Profile::Orchestrator {
        parameters.extend(orchestrator::queries(&route.method, route.path).iter().map(|name| query(name)));
    }
    match (route.method.as_str(), route.path) {
        _ if profile == Profile::Orchestrator
            && orchestrator::OPERATIONS.iter().any(|own| own.1 == route.path) => {}
        ("POST", "/execute/{task}") => parameters.extend(execute_headers()),
        ("GET", "/runs") => parameters.extend(["state", "action", "limit", "offset"].map(query)),
        ("GET", "/agents") => {
            parameters.extend(["name_filter", "scope_filter", "limit", "offset"].map(query));
        }
        ("GET", "/auth/sessions") => parameters.push(query("all")),
        ("DELETE", "/auth/sessions") => parameters.push(query("keep_current")),
        ("GET", "/audit") => {
            parameters.extend(WHICH_AUDIT.iter().chain(&["limit", "offset"]).copied().map(query));
        }
        ("GET", "/audit/counts") => {
            parameters.extend(["by", "limit"].iter().chain(&WHICH_AUDIT).copied().map(query));
        }
        ("GET", "/audit/proof") => {
            let mut entry = query("entry");
            entry["required"] = true.into();
            entry["schema"]["minimum"] = 1.into();
            parameters.push(entry);
        }
        ("GET", "/runs/{run_id}/events" | "/runs/{run_id}/log") => {
            let mut limit = query("limit");
            limit["schema"]["maximum"] = 1000.into();
            parameters.extend([query("after"), limit]);
        }
        _ => {}
    }
    let success = match (route.method.as_str(), route.path) {
        (
            "POST",
            "/users"
            | "/users/invitations"
            | "/users/{name}/reset"
            | "/auth/invitations/accept"
            | "/agents"
            | "/auth/keys"
            | "/auth/factors/totp"
            | "/bans"
            | "/tasks",
        ) => "201",
        ("POST", "/runs/{run_id}/cancel" | "/events") => "202",
        ("POST", "/page-reports") => "204",
        _ => "200",
    };
    let mut operation = json!({
        "operationId": id,
        "tags": [tag],
        "summary": summary,
        "parameters": parameters,
        "responses": responses(success, answer, route.path, route.access),
        "x-interlock-access": access(route.access),
    });
    if !body.is_empty() {
        let form = body.ends_with("Form");
        let media_type = if form { "application/x-www-form-urlencoded" } else { "application/json" };
        operation["requestBody"] = json!({
            "required": needs_body(body),
            "content": { media_type: { "schema": { "$ref": format!("#/components/schemas/{body}") } } },
        });
    }
    if route.path == "/page-reports" {
        operation["requestBody"] = json!({ "required": true, "content": {
            "application/csp-report": { "schema": { "type": "object" } },
            "application/reports+json": { "schema": { "type": "array", "items": { "type": "object" } } },
        }});
    }
    if let Access::Public(_) = route.access {
        operation["security"] = json!([]);
    }
    operation
}

/// Whether a body of this shape says anything that must be said.
fn needs_body(name: &str) -> bool {
    let shape = identity::SHAPES.iter().chain(orchestrator::SHAPES).find(|shape| shape.0 == name);
    shape.map_or(!matches!(name, "Reason" | "Object" | "UserEdit"), |(_, required, _)| !required.is_empty())
}

fn access(access: Access) -> String {
    match access {
        Access::Public(reason) => format!("anyone ({reason:?})"),
        Access::Granted(action) => action.to_owned(),
    }
}

/// Which entries of the audit trail.
const WHICH_AUDIT: [&str; 9] =
    ["action", "actor", "subject", "source", "rule", "route", "result", "since", "until"];

fn query(name: &str) -> Value {
    let schema = match name {
        "limit" => json!({ "type": "integer", "minimum": 1, "maximum": 200 }),
        "offset" | "after" | "entry" | "days" | "count" | "max_age_hours" => {
            json!({ "type": "integer", "minimum": 0 })
        }
        "all" | "keep_current" | "success" | "include_errors" => json!({ "type": "boolean" }),
        "by" => json!({ "enum": ["actor", "action", "subject", "source", "rule", "route", "reason"] }),
        "since" | "until" | "start_time" | "end_time" => json!({ "type": "string", "format": "date-time" }),
        _ => json!({ "type": "string" }),
    };
    json!({ "name": name, "in": "query", "required": false, "schema": schema })
}

fn execute_headers() -> [Value; 3] {
    let header = |name: &str, text: &str, schema: Value| json!({ "name": name, "in": "header", "required": false, "description": text, "schema": schema });
    [
        header(
            "Idempotency-Key",
            "The same key and body give the first answer again and never act twice",
            json!({ "type": "string", "minLength": 1, "maxLength": 255 }),
        ),
        header("Prefer", "respond-async: 202 with the run at once", json!({ "type": "string" })),
        header(
            "Interlock-Simulate",
            "Execute with the device's simulator",
            json!({ "type": "string", "enum": ["true", "false"] }),
        ),
    ]
}

fn responses(success: &str, answer: &str, path: &str, access: Access) -> Value {
    let mut responses = Map::new();
    let mut good = json!({ "description": "Done" });
    if !answer.is_empty() {
        good["content"] =
            json!({ "application/json": { "schema": { "$ref": format!("#/components/schemas/{answer}") } } });
    }
    responses.insert(success.to_owned(), good);
    let mut problem = |status: &str, text: &str| {
        let schema = json!({ "schema": { "$ref": "#/components/schemas/Problem" } });
        // OAuth has its errors as plain JSON (RFC 6749 section 5.2).
        let content = if path.starts_with("/oauth/") || path == "/auth/oidc/logout" {
            json!({ "application/json": schema, "application/problem+json": schema })
        } else {
            json!({ "application/problem+json": schema })
        };
        responses.insert(status.to_owned(), json!({ "description": text, "content": content }));
    };
    if let Access::Granted(_) = access {
        problem("401", "No token, or one that is not in force");
        problem("403", "The caller lacks the role");
    }
    problem("default", "A problem (RFC 9457); docs/errors explains every code");
    Value::Object(responses)
}

/// One action as an operation of its own, with its real parameters.
fn action_operation(action: &DeviceAction) -> Value {
    let spec = &action.spec;
    let mut properties = Map::new();
    let mut required = Vec::new();
    for parameter in &spec.parameters {
        let mut schema = if parameter.schema.is_object() { parameter.schema.clone() } else { json!({}) };
        if let Some(help) = &parameter.help {
            schema["description"] = json!(help);
        }
        if let Some(unit) = &parameter.unit {
            schema["x-unit"] = json!(unit);
        }
        if parameter.required {
            required.push(parameter.name.clone());
        } else if !parameter.sensitive {
            schema["default"] = parameter.default.clone();
        }
        properties.insert(parameter.name.clone(), schema);
    }
    let body = json!({
        "type": "object", "properties": properties, "required": required, "additionalProperties": false,
        "x-rules": spec.rules.iter().map(|rule| json!({ "expr": rule.expr, "message": rule.message })).collect::<Vec<_>>(),
    });
    json!({
        "operationId": format!("execute_{}", spec.name),
        "tags": ["Execute"],
        "summary": spec.title.clone().unwrap_or_else(|| spec.name.clone()),
        "description": spec.doc,
        "parameters": execute_headers(),
        "requestBody": { "required": !spec.parameters.iter().all(|p| !p.required), "content": { "application/json": { "schema": body } } },
        "responses": responses("200", "ExecuteAnswer", "/execute/{task}", Access::Granted("device.executed")),
        "x-interlock-access": format!("role {}", action.role()),
        "x-effects": spec.effects,
    })
}

fn object(properties: &[(&str, &str)], optional: &[(&str, &str)]) -> Value {
    let all: Map<String, Value> =
        properties.iter().chain(optional).map(|(name, kind)| ((*name).to_owned(), one(kind))).collect();
    let required: Vec<&str> = properties.iter().map(|(name, _)| *name).collect();
    json!({ "type": "object", "properties": all, "required": required })
}

fn one(kind: &str) -> Value {
    match kind {
        "any" => json!({}),
        "time" => json!({ "type": "string", "format": "date-time" }),
        "string" | "integer" | "number" | "boolean" | "object" => json!({ "type": kind }),
        _ if kind.ends_with('?') => json!({ "anyOf": [one(&kind[..kind.len() - 1]), { "type": "null" }] }),
        _ if kind.starts_with('[') => json!({ "type": "array", "items": one(kind.trim_matches(['[', ']'])) }),
        reference => json!({ "$ref": format!("#/components/schemas/{reference}") }),
    }
}

fn schemas() -> Value {
    let page = |item: &str| {
        object(
            &[
                ("items", item),
                ("total", "integer"),
                ("limit", "integer"),
                ("offset", "integer"),
                ("has_more", "boolean"),
            ],
            &[],
        )
    };
    let mut schemas = json!({
        "Object": { "type": "object" },
        "LoginRequest": object(&[("username", "string"), ("password", "string")], &[("otp", "string?"), ("scope", "string?"), ("refresh", "boolean?")]),
        "LoginAnswer": object(&[("access_token", "string"), ("token_type", "string"), ("expires_in", "integer"), ("user", "string"), ("roles", "[string]")], &[("refresh_token", "string")]),
        "WhoAmI": object(&[("user", "string"), ("roles", "[string]"), ("scopes", "[string]"), ("kind", "string"), ("expires_at", "time")], &[]),
        "Operation": object(&[("success", "boolean"), ("message", "string"), ("details", "object?")], &[]),
        "Actions": object(&[("device", "object"), ("actions", "[object]")], &[]),
        "ExecuteAnswer": object(&[("task_name", "string"), ("parameters", "object"), ("result", "any"), ("status", "string"), ("executed_by", "string"),
            ("execution_time_seconds", "number"), ("timestamp", "time"), ("run_id", "string")], &[]),
        "CheckAnswer": object(&[("task_name", "string"), ("parameters", "object"), ("ok", "boolean")], &[]),
        "Run": object(&[("id", "string"), ("action", "string"), ("state", "string"), ("simulated", "boolean"), ("parameters", "object"), ("result", "any"),
            ("error", "object?"), ("executed_by", "string"), ("request_id", "string"), ("created_at", "time"), ("started_at", "time?"), ("finished_at", "time?"),
            ("duration_seconds", "number?"), ("progress", "object?"), ("artifacts", "[object]")], &[]),
        "RunPage": page("[Run]"),
        "Events": object(&[("items", "[object]"), ("next_after", "integer"), ("done", "boolean")], &[]),
        "Reason": object(&[], &[("reason", "string?")]),
        "DeviceStatus": object(&[("name", "string"), ("title", "string"), ("state", "string"), ("running", "string?"), ("queued", "integer"),
            ("emergency_stop", "object"), ("attention", "object?"), ("worker", "object"), ("actions", "integer")], &[]),
        "StopReport": object(&[("engaged", "boolean"), ("confirmed", "integer"), ("of", "integer"), ("devices", "[object]"), ("cancelled_run", "string?"),
            ("engaged_at", "time"), ("reason", "string?")], &[]),
        "User": object(&[("name", "string"), ("roles", "[string]"), ("disabled", "boolean"), ("created_at", "time"), ("updated_at", "time")], &[]),
        "Users": { "type": "array", "items": { "$ref": "#/components/schemas/User" } },
        "NewUser": object(&[("name", "string"), ("password", "string"), ("roles", "[string]")], &[]),
        "UserEdit": object(&[], &[("roles", "[string]?"), ("disabled", "boolean?")]),
        "NewPassword": object(&[("password", "string")], &[]),
        "Ban": object(&[("network", "string"), ("reason", "string"), ("added_by", "string"), ("created_at", "time"), ("ends_at", "time?"), ("offences", "integer")], &[]),
        "Bans": { "type": "array", "items": { "$ref": "#/components/schemas/Ban" } },
        "NewBan": object(&[("network", "string"), ("reason", "string")], &[("seconds", "integer?")]),
        "AuditRow": object(&[("id", "integer"), ("at", "time"), ("actor_agent_id", "string?"), ("action", "string"), ("subject_id", "string?"), ("details", "any"),
            ("client_ip", "string?"), ("request_id", "string?"), ("prev_hash", "string"), ("hash", "string")], &[]),
        "AuditPage": page("[AuditRow]"),
        "AuditCounts": { "type": "array", "items": object(&[("value", "string"), ("entries", "integer")], &[]) },
        "AuditProof": object(&[("entry", "object"), ("path", "[string]"), ("checkpoint", "string")], &[]),
        "Health": object(&[("status", "string"), ("timestamp", "time"), ("tasks_registered", "integer")], &[]),
        "Problem": object(&[("type", "string"), ("title", "string"), ("status", "integer"), ("detail", "string"), ("error", "string"), ("message", "string"),
            ("code", "string"), ("details", "object?"), ("request_id", "string"), ("timestamp", "time")], &[("errors", "[object]"), ("retry_after", "integer?")]),
    });
    for (name, required, optional) in identity::SHAPES.iter().chain(orchestrator::SHAPES) {
        schemas[*name] = object(required, optional);
    }
    for (name, item) in orchestrator::PAGES {
        schemas[*name] = page(item);
    }
    // A secret of the caller's own may also be the whole body, and null is as good as none.
    schemas["AgentSecretRequest"]["type"] = json!(["object", "string", "null"]);
    for (name, item) in identity::LISTS {
        schemas[*name] = json!({ "type": "array", "items": one(item) });
    }
    schemas
}

/// Routes without a description: there must be none.
pub fn undescribed(table: &[RouteEntry]) -> Vec<String> {
    let profile = Profile::of(table);
    table
        .iter()
        .filter(|route| profile.described(&route.method, route.path).is_none())
        .map(|route| format!("{} {}", route.method, route.path))
        .collect()
}
