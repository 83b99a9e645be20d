//! The API document (OpenAPI 3.1), made from the route table and, for callers who may list them, the device's actions.
//!
//! Paths, methods and access come from the table, so they cannot differ from what is served; a test asserts that every route
//! has a description here.

mod identity;
mod orchestrator;

use axum::http::Method;
use interlock_model::device::{Catalogue, DeviceAction};
use interlock_model::text::{self, Form as _};
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
        "StopReason",
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
                action_operation(action, config.max_request_size),
            );
        }
    }
    let mut schemas = schemas();
    for name in ["RevokeRequest", "RevokeForm", "IntrospectForm"] {
        declare_free(&mut schemas[name], config.max_request_size);
    }
    json!({
        "openapi": "3.1.0",
        "info": { "title": config.title, "description": config.description, "version": config.version },
        "security": [{ "bearer": [] }],
        "paths": paths,
        "components": {
            "securitySchemes": { "bearer": { "type": "http", "scheme": "bearer", "bearerFormat": "JWT" } },
            "schemas": schemas,
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
        .map(|name| parameter("path", name, part_of_path(profile, route.path, name)))
        .collect();
    let own =
        profile == Profile::Orchestrator && orchestrator::OPERATIONS.iter().any(|own| own.1 == route.path);
    let queries = match profile {
        Profile::Orchestrator if own => orchestrator::queries(&route.method, route.path),
        _ => queries(&route.method, route.path),
    };
    parameters.extend(queries.iter().map(|(name, kind)| parameter("query", name, kind)));
    let headers = match profile {
        Profile::Orchestrator => orchestrator::headers(&route.method, route.path),
        Profile::Device if route.path == "/execute/{task}" => EXECUTE_HEADERS,
        Profile::Device => &[],
    };
    parameters.extend(headers.iter().map(header));
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
    shape.map_or(!matches!(name, "Reason" | "StopReason" | "Object" | "UserEdit"), |(_, required, _)| {
        !required.is_empty()
    })
}

fn access(access: Access) -> String {
    match access {
        Access::Public(reason) => format!("anyone ({reason:?})"),
        Access::Granted(action) => action.to_owned(),
    }
}

/// Names and kinds in the query of an operation that both profiles have, or devices alone.
fn queries(method: &Method, path: &str) -> &'static [(&'static str, &'static str)] {
    match (method.as_str(), path) {
        ("GET", "/runs") => {
            &[("state", "RunState"), ("action", "Sought"), ("limit", "limit"), ("offset", "count")]
        }
        ("GET", "/agents") => &[
            ("name_filter", "NamePart"),
            ("scope_filter", "ScopePart"),
            ("limit", "limit"),
            ("offset", "count"),
        ],
        ("GET", "/auth/sessions") => &[("all", "boolean")],
        ("DELETE", "/auth/sessions") => &[("keep_current", "boolean")],
        ("GET", "/audit") => AUDIT,
        ("GET", "/audit/counts") => AUDIT_COUNTS,
        ("GET", "/audit/proof") => &[("entry", "entry")],
        ("GET", "/runs/{run_id}/events") => &[("after", "count"), ("limit", "many")],
        _ => &[],
    }
}

/// Which entries of the audit trail.
const AUDIT: &[(&str, &str)] = ALL_OF_AUDIT.split_at(ALL_OF_AUDIT.len() - 1).0;

/// By what they are counted, and which.
const AUDIT_COUNTS: &[(&str, &str)] = ALL_OF_AUDIT.split_at(1).1;

const ALL_OF_AUDIT: &[(&str, &str)] = &[
    ("offset", "count"),
    ("action", "Sought"),
    ("actor", "AuditSubject"),
    ("subject", "AuditSubject"),
    ("source", "AuditSubject"),
    ("rule", "Sought"),
    ("route", "Sought"),
    ("result", "Sought"),
    ("since", "time"),
    ("until", "time"),
    ("limit", "limit"),
    ("by", "=actor|action|subject|source|rule|route|reason"),
];

/// The kind of what stands for a name in the template of a path.
fn part_of_path(profile: Profile, path: &str, name: &str) -> &'static str {
    match name {
        "run_id" if profile == Profile::Device => "RunIdText",
        "agent_id" | "task_id" | "approval_id" | "run_id" => "Uuid",
        "name" if path.starts_with("/runs/") => "FileName",
        "name" => "UserName",
        "role" => "RoleName",
        "network" => "BanSubject",
        "task" => "ActionName",
        _ if path.starts_with("/security/lockouts/") => "LockoutId",
        _ => "ShortId",
    }
}

fn parameter(place: &str, name: &str, kind: &str) -> Value {
    // A count or a proof is of something.
    let required = place == "path" || matches!(name, "by" | "entry");
    json!({ "name": name, "in": place, "required": required, "schema": one(kind) })
}

fn header((name, text, kind): &(&str, &str, &str)) -> Value {
    let mut header = parameter("header", name, kind);
    header["description"] = json!(text);
    header
}

const KEY_TEXT: &str = "The same key and body give the first answer again and never act twice";

const EXECUTE_HEADERS: &[(&str, &str, &str)] = &[
    ("Idempotency-Key", KEY_TEXT, "IdempotencyKey"),
    ("Prefer", "respond-async: 202 with the run at once", "Preference"),
    ("Interlock-Simulate", "Execute with the device's simulator", "=true|false"),
];

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
fn action_operation(action: &DeviceAction, longest: usize) -> Value {
    let spec = &action.spec;
    let mut properties = Map::new();
    let mut required = Vec::new();
    for parameter in &spec.parameters {
        let mut schema = if parameter.schema.is_object() { parameter.schema.clone() } else { json!({}) };
        declare_free(&mut schema, longest);
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
        "parameters": EXECUTE_HEADERS.iter().map(header).collect::<Vec<_>>(),
        "requestBody": { "required": !spec.parameters.iter().all(|p| !p.required), "content": { "application/json": { "schema": body } } },
        "responses": responses("200", "ExecuteAnswer", "/execute/{task}", Access::Granted("device.executed")),
        "x-interlock-access": format!("role {}", action.role()),
        "x-effects": spec.effects,
    })
}

/// Says of every text in a parameter that it is free text unless its words or its format are declared, and that it is bounded:
/// by what the author of the device has said, or by the size of a request.
fn declare_free(schema: &mut Value, longest: usize) {
    let Some(members) = schema.as_object_mut() else { return };
    let is_text = match members.get("type") {
        Some(Value::Array(types)) => types.iter().any(|kind| kind == "string"),
        Some(kind) => kind == "string",
        None => false,
    };
    if is_text && !members.contains_key("enum") && !members.contains_key("const") {
        members.entry("maxLength").or_insert_with(|| longest.into());
        if !members.contains_key("format") && !members.contains_key("pattern") {
            members.insert("x-free-text".to_owned(), true.into());
        }
    }
    for (name, member) in members {
        match (name.as_str(), member) {
            ("items" | "additionalProperties", below) => declare_free(below, longest),
            ("properties", Value::Object(all)) => {
                all.values_mut().for_each(|below| declare_free(below, longest));
            }
            ("anyOf", Value::Array(all)) => all.iter_mut().for_each(|below| declare_free(below, longest)),
            _ => {}
        }
    }
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
        // What somebody wants to have revoked or looked at, whatever it is (RFC 7009 section 2.2); bounded with the request.
        "anything" => json!({ "type": "string" }),
        "time" => text::Time::RULE.schema(),
        "limit" => json!({ "type": "integer", "minimum": 1, "maximum": 200 }),
        "many" => json!({ "type": "integer", "minimum": 1, "maximum": 1000 }),
        "count" => json!({ "type": "integer", "minimum": 0 }),
        "entry" => json!({ "type": "integer", "minimum": 1 }),
        "string" | "integer" | "number" | "boolean" | "object" => json!({ "type": kind }),
        _ if kind.ends_with('?') => json!({ "anyOf": [one(&kind[..kind.len() - 1]), { "type": "null" }] }),
        _ if kind.starts_with('[') => json!({ "type": "array", "items": one(kind.trim_matches(['[', ']'])) }),
        _ if kind.starts_with('=') => {
            json!({ "type": "string", "enum": kind[1..].split('|').collect::<Vec<_>>() })
        }
        _ if text::schema_of(kind).is_some() => text::schema_of(kind).unwrap_or_default(),
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
        "LoginRequest": object(&[("username", "UserName"), ("password", "GivenSecret")], &[("otp", "CodeText?"), ("scope", "ScopeList?"), ("refresh", "boolean?")]),
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
        // A stop is never refused for its words: what is no reason is left out.
        "StopReason": object(&[], &[("reason", "any")]),
        "Reason": object(&[], &[("reason", "ReasonText?")]),
        "DeviceStatus": object(&[("name", "string"), ("title", "string"), ("state", "string"), ("running", "string?"), ("queued", "integer"),
            ("emergency_stop", "object"), ("attention", "object?"), ("worker", "object"), ("actions", "integer")], &[]),
        "StopReport": object(&[("engaged", "boolean"), ("confirmed", "integer"), ("of", "integer"), ("devices", "[object]"), ("cancelled_run", "string?"),
            ("engaged_at", "time"), ("reason", "string?")], &[]),
        "User": object(&[("name", "string"), ("roles", "[string]"), ("disabled", "boolean"), ("created_at", "time"), ("updated_at", "time")], &[]),
        "Users": { "type": "array", "items": { "$ref": "#/components/schemas/User" } },
        "NewUser": object(&[("name", "UserName"), ("password", "NewPasswordText"), ("roles", "[RoleName]")], &[]),
        "UserEdit": object(&[], &[("roles", "[RoleName]?"), ("disabled", "boolean?")]),
        "NewPassword": object(&[("password", "NewPasswordText")], &[]),
        "Ban": object(&[("network", "string"), ("reason", "string"), ("added_by", "string"), ("created_at", "time"), ("ends_at", "time?"), ("offences", "integer")], &[]),
        "Bans": { "type": "array", "items": { "$ref": "#/components/schemas/Ban" } },
        "NewBan": object(&[("network", "Network"), ("reason", "BanReason")], &[("seconds", "integer?")]),
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
    for (keyword, value) in text::NewPasswordText::RULE.schema().as_object().into_iter().flatten() {
        schemas["AgentSecretRequest"][keyword] = value.clone();
    }
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
