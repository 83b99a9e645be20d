//! The service itself: banner, catalogue, health, documents, metrics, log.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::{Arc, Mutex, Once};

use interlock_model::secret::Secret;
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::{Value, json};

use crate::lab::{Lab, password};

thread_local! {
    static CAPTURE: RefCell<Option<Capture>> = const { RefCell::new(None) };
}

/// What this thread logged while it was installed.
///
/// One subscriber for the whole binary that writes to the thread's capture: with one for each thread, an event that another
/// thread happens to meet first is switched off for all (tracing caches who is interested).
#[derive(Clone, Default)]
pub(crate) struct Capture(Arc<Mutex<Vec<u8>>>);

/// Ends a capture.
pub(crate) struct Captured;

impl Drop for Captured {
    fn drop(&mut self) {
        CAPTURE.set(None);
    }
}

impl Capture {
    pub(crate) fn install(&self) -> Captured {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            let writer = || CAPTURE.with_borrow(|capture| capture.clone().unwrap_or_default());
            let subscriber = tracing_subscriber::fmt()
                .with_max_level(tracing::Level::DEBUG)
                .with_writer(writer)
                .with_ansi(false)
                .finish();
            tracing::subscriber::set_global_default(subscriber).expect("the only subscriber of this binary");
        });
        CAPTURE.set(Some(self.clone()));
        Captured
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("lock")).into_owned()
    }
}

impl Write for Capture {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("lock").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_banner_tells_strangers_nothing() {
    let lab = Lab::start().await;

    let anonymous = lab.get("/").send().await.ok();
    let viewer = lab.get("/").signed(&lab.token("vic").await).send().await.ok();
    let operator = lab.get("/").signed(&lab.token("ana").await).send().await.ok();

    assert_eq!(anonymous, json!({ "message": "Test lab", "available_tasks": [], "docs": "/docs" }));
    assert_eq!(viewer["available_tasks"], json!(["calibrate", "layout", "mix", "upload"]));
    assert_eq!(operator["available_tasks"], json!([]));
    lab.get("/").signed("garbage").send().await.refused(401, "unauthorized");
}

#[tokio::test]
async fn the_catalogue_has_the_form_of_the_earlier_system() {
    let lab = Lab::start().await;
    let viewer = lab.token("vic").await;

    let tasks = lab.get("/tasks").signed(&viewer).send().await.ok();

    assert_eq!(
        tasks["mix"],
        json!({
            "name": "mix", "doc": "Mix a well.", "is_async": false,
            "parameters": {
                "volume": { "type": "number", "default": null, "required": true },
                "cycles": { "type": "integer", "default": 3, "required": false },
            },
        })
    );
    assert_eq!(tasks.as_object().map(serde_json::Map::len), Some(4));
    let plain = ["integer", "number", "string", "boolean", "array", "object", "any"];
    for task in tasks.as_object().expect("tasks").values() {
        for parameter in task["parameters"].as_object().expect("parameters").values() {
            assert!(plain.contains(&parameter["type"].as_str().expect("a type")), "{parameter}");
        }
    }
    for name in ["ana", "ada", "odo", "cal"] {
        lab.get("/tasks").signed(&lab.token(name).await).send().await.refused(403, "forbidden");
    }
}

#[tokio::test]
async fn actions_are_told_in_full() {
    let lab = Lab::start().await;

    let body = lab.get("/actions").signed(&lab.token("vic").await).send().await.ok();

    assert_eq!(
        body["device"],
        json!({ "name": "fake", "title": "Test lab", "description": "A device for tests" })
    );
    let names: Vec<&str> = body["actions"]
        .as_array()
        .expect("actions")
        .iter()
        .map(|action| action["name"].as_str().expect("a name"))
        .collect();
    assert_eq!(names, ["mix", "upload", "calibrate", "layout"]);
    assert_eq!(body["actions"][0]["parameters"][0]["unit"], "uL");
    assert_eq!(body["actions"][2]["role"], "calibrator");
}

#[tokio::test]
async fn health_is_the_documented_three_members() {
    let lab = Lab::start().await;

    assert_eq!(
        lab.get("/health").send().await.ok(),
        json!({ "status": "healthy", "timestamp": lab.now(), "tasks_registered": 4 })
    );
    let ready = lab.get("/health/ready").send().await.ok();
    assert_eq!(ready, json!({ "status": "ready", "api": true, "database": true, "device": true }));
    let live = lab.get("/health/live").send().await.ok();
    assert_eq!(live["status"], "alive");
    assert!(live["uptime_seconds"].is_u64() && live["timestamp"].is_string());
    lab.device.unavailable();
    assert_eq!(lab.get("/health").send().await.status.as_u16(), 503);
    assert_eq!(lab.get("/health/ready").send().await.json()["device"], false);
    lab.get("/health/live").send().await.ok();
}

#[tokio::test]
async fn health_answers_while_an_action_runs() {
    let lab = Lab::start().await;
    lab.device.hold();
    let mut busy = Box::pin(lab.mix("ana").await.send());
    tokio::select! {
        _ = &mut busy => panic!("the device was told to wait"),
        () = crate::lab::eventually("the device was called", || async { !lab.device.calls().is_empty() }) => {}
    }

    lab.get("/health").send().await.ok();

    lab.device.let_go();
    busy.await.ok();
}

#[tokio::test]
async fn documents_are_open_in_development_and_for_administrators_in_production() {
    for production in [false, true] {
        let lab = Lab::with(|config| config.production = production).await;
        for path in ["/docs", "/openapi.json"] {
            let anonymous = lab.get(path).send().await;
            let viewer = lab.get(path).signed(&lab.token("vic").await).send().await;
            let admin = lab.get(path).signed(&lab.token("ada").await).send().await;
            assert_eq!(anonymous.status.as_u16(), if production { 401 } else { 200 }, "{path}");
            assert_eq!(viewer.status.as_u16(), if production { 403 } else { 200 }, "{path}");
            assert_eq!(admin.status.as_u16(), 200, "{path}");
        }
    }
}

#[tokio::test]
async fn the_api_document_describes_every_route() {
    is_described(Lab::start().await).await;
    is_described(Lab::start().await.without_device()).await;
}

#[tokio::test]
async fn every_text_of_every_request_has_a_grammar_and_a_bound_in_the_api_document() {
    for lab in [Lab::start().await, Lab::start().await.without_device()] {
        // Whoever may list actions sees their parameters, too.
        let token = lab.token("vic").await;
        let document = lab.get("/openapi.json").signed(&token).send().await.ok();
        let mut found = Texts::default();
        for (path, item) in document["paths"].as_object().expect("paths") {
            for (method, operation) in item.as_object().expect("an item") {
                let place = format!("{method} {path}");
                for parameter in operation["parameters"].as_array().expect("parameters") {
                    let name = parameter["name"].as_str().unwrap_or("");
                    found.walk(&document, &parameter["schema"], &format!("{place} {name}"));
                }
                for (media_type, body) in
                    operation["requestBody"]["content"].as_object().into_iter().flatten()
                {
                    // What browsers report is not ours to say; it is read as bounded text.
                    if media_type.starts_with("application/json") || media_type.contains("form") {
                        found.walk(&document, &body["schema"], &place);
                    }
                }
            }
        }
        assert_eq!(found.untyped, Vec::<String>::new());
        assert!(found.typed > 90 && found.free > 5, "{} typed, {} free", found.typed, found.free);
    }
}

/// Texts of requests, as the API document has them.
#[derive(Default)]
struct Texts {
    typed: usize,
    free: usize,
    untyped: Vec<String>,
}

impl Texts {
    fn walk(&mut self, document: &Value, schema: &Value, place: &str) {
        if let Some(name) = schema["$ref"].as_str() {
            let name = name.trim_start_matches("#/components/schemas/");
            return self.walk(document, &document["components"]["schemas"][name], place);
        }
        let kinds = match &schema["type"] {
            Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
            Value::String(kind) => vec![kind.as_str()],
            _ => Vec::new(),
        };
        let branches = schema["anyOf"].as_array().into_iter().flatten();
        branches.for_each(|branch| self.walk(document, branch, place));
        for (name, member) in schema["properties"].as_object().into_iter().flatten() {
            self.walk(document, member, &format!("{place}.{name}"));
        }
        for below in ["items", "additionalProperties"] {
            if schema[below].is_object() {
                self.walk(document, &schema[below], &format!("{place}[]"));
            }
        }
        if schema["enum"].is_array() {
            self.typed += 1;
        } else if kinds.contains(&"string") {
            let bounded = schema["maxLength"].is_u64();
            let free = bounded && schema["x-free-text"] == true;
            let typed = bounded && (schema["pattern"].is_string() || schema["format"].is_string());
            match (free, typed) {
                (true, _) => self.free += 1,
                (false, true) => self.typed += 1,
                (false, false) => self.untyped.push(place.to_owned()),
            }
        }
    }
}

async fn is_described(lab: Lab) {
    let document = lab.get("/openapi.json").send().await.ok();
    let table = interlock_server::routes(lab.app.clone());
    let mut ids = BTreeSet::new();

    for route in table.table() {
        let operation = &document["paths"][route.path][route.method.as_str().to_ascii_lowercase()];
        let id = operation["operationId"].as_str().unwrap_or("");
        assert!(!id.is_empty() && id != "undocumented", "{} {}", route.method, route.path);
        assert!(ids.insert(id.to_owned()), "{id} is used twice");
        assert!(operation["summary"].as_str().is_some_and(|text| !text.is_empty()), "{id}");
        assert!(operation["x-interlock-access"].is_string());
        let holes = route.path.matches('{').count();
        let in_path = operation["parameters"]
            .as_array()
            .expect("parameters")
            .iter()
            .filter(|p| p["in"] == "path")
            .count();
        assert_eq!(in_path, holes, "{id}");
    }
    let described: usize = document["paths"]
        .as_object()
        .expect("paths")
        .values()
        .map(|item| item.as_object().expect("an item").len())
        .sum();
    assert_eq!(described, table.table().len());
    assert_eq!(document["openapi"], "3.1.0");
    let text = document.to_string();
    for reference in text.split("#/components/schemas/").skip(1) {
        let name = reference.split('"').next().expect("a name");
        assert!(document["components"]["schemas"][name].is_object(), "{name}");
    }
}

#[tokio::test]
async fn only_who_may_list_actions_finds_them_in_the_documents() {
    let lab = Lab::start().await;
    let names = ["mix", "upload", "calibrate", "layout", "execute_api_key"];
    let document = |token: Option<String>| {
        let ask = lab.get("/openapi.json");
        match token {
            Some(token) => ask.signed(&token),
            None => ask,
        }
        .send()
    };

    for answer in [
        document(None).await,
        document(Some("garbage".to_owned())).await,
        document(Some(lab.token("ana").await)).await,
    ] {
        answer.ok();
        assert!(names.iter().all(|name| !answer.text().contains(name)), "{}", answer.text());
    }
    for path in ["/docs", "/panel", "/docs/app.js"] {
        let page = lab.get(path).send().await.text();
        assert!(!page.contains("api_key") && !page.contains("calibrate"), "{path}");
    }

    let told = document(Some(lab.token("vic").await)).await.ok();
    let operation = &told["paths"]["/execute/mix"]["post"];
    let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
    assert_eq!(schema["required"], json!(["volume"]));
    assert_eq!(schema["properties"]["volume"]["x-unit"], "uL");
}

#[tokio::test]
async fn metrics_want_this_machine_a_token_or_the_right() {
    let lab = Lab::with(|config| config.metrics_token = Some(Secret::new("scrape-scrape-scrape"))).await;

    lab.get("/metrics").send().await.refused(401, "unauthorized");
    lab.get("/metrics").signed("scrape-scrape-scrapf").send().await.refused(401, "unauthorized");
    lab.get("/metrics").signed(&lab.token("vic").await).send().await.refused(403, "forbidden");
    for ask in [
        lab.get("/metrics").signed("scrape-scrape-scrape"),
        lab.get("/metrics").signed(&lab.token("ada").await),
        lab.get("/metrics").from("127.0.0.1"),
        lab.get("/metrics").from("::1"),
    ] {
        let answer = ask.send().await;
        assert_eq!(answer.status.as_u16(), 200);
        assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    }
    lab.get("/metrics")
        .from("127.0.0.1")
        .header("x-forwarded-for", "203.0.113.7")
        .send()
        .await
        .refused(401, "unauthorized");
    lab.get("/metrics")
        .from("127.0.0.1")
        .header("forwarded", "for=203.0.113.7")
        .send()
        .await
        .refused(401, "unauthorized");
}

/// `name{labels}` to value; panics at anything that is not the text format 0.0.4.
fn parse_metrics(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(comment) = line.strip_prefix('#') {
            assert!(comment.starts_with(" HELP ") || comment.starts_with(" TYPE "), "{line}");
            continue;
        }
        let (series, value) = line.rsplit_once(' ').expect("a sample");
        let name = series.split('{').next().expect("a name");
        assert!(name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_' || c == b':'), "{line}");
        assert_eq!(series.contains('{'), series.ends_with('}'), "{line}");
        assert!(
            samples.insert(series.to_owned(), value.parse().expect("a number")).is_none(),
            "{series} is there twice"
        );
    }
    samples
}

/// Every series that `engine::metrics` names.
fn named_series() -> BTreeSet<&'static str> {
    include_str!("../../../engine/src/metrics.rs")
        .split('"')
        .filter(|text| ["orchestrator_", "device_", "audit_"].iter().any(|prefix| text.starts_with(prefix)))
        .collect()
}

/// Runs `story` on a thread of its own whose metrics are its own.
pub(crate) fn with_metrics<F: Future>(
    story: impl FnOnce(metrics_exporter_prometheus::PrometheusHandle) -> F,
) -> F::Output {
    let recorder = PrometheusBuilder::new().set_buckets(&[0.01, 1.0]).expect("buckets").build_recorder();
    let handle = recorder.handle();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    metrics::with_local_recorder(&recorder, || runtime.block_on(story(handle)))
}

#[test]
fn every_bounded_series_is_there_from_the_start() {
    let samples = with_metrics(|handle| async move {
        interlock_engine::metrics::describe();
        parse_metrics(&handle.render())
    });

    // These have labels that only traffic brings: route templates and the device's actions.
    let later = [
        "orchestrator_http_requests_total",
        "orchestrator_http_request_duration_seconds",
        "device_executions_total",
        "device_execution_duration_seconds",
    ];
    for name in named_series() {
        let there = samples.keys().any(|series| series.split('{').next() == Some(name));
        assert_eq!(there, !later.contains(&name), "{name}");
    }
    assert!(samples.values().all(|value| value.abs() < f64::EPSILON), "{samples:?}");
    for alerted in [
        "orchestrator_authentication_attempts_total{method=\"login\",result=\"failed\"}",
        "orchestrator_security_events_total{event_type=\"ip_blocked\",severity=\"high\"}",
        "orchestrator_blocked_requests_total{reason=\"rate_limited\"}",
        "orchestrator_rate_limit_violations_total{endpoint=\"unmatched\",limit=\"minute\"}",
    ] {
        assert!(samples.contains_key(alerted), "{alerted} in {:?}", samples.keys());
    }
}

#[test]
fn metrics_count_what_happened_without_names_that_callers_invent() {
    let text = with_metrics(|handle| async move {
        interlock_engine::metrics::describe();
        let mut lab = Lab::with(|config| config.rate.enabled = true).await;
        lab.app = lab.app.edited(|services| services.metrics = handle.clone());
        lab.router = interlock_server::router(lab.app.clone());
        lab.mix("ana").await.send().await.ok();
        lab.post("/auth/login")
            .json(&json!({ "username": "invented-name", "password": "x" }))
            .send()
            .await
            .refused(401, "unauthorized");
        lab.post("/execute/invented-task")
            .signed(&lab.token("ana").await)
            .send()
            .await
            .refused(404, "task_not_found");
        lab.get("/invented-path").send().await.refused(404, "not_found");
        lab.ask("INVENTED".parse().expect("a method"), "/health")
            .send()
            .await
            .refused(405, "method_not_allowed");
        lab.mix("vic").await.send().await.refused(403, "forbidden");
        lab.get("/health")
            .without_host()
            .header("host", "invented.example")
            .send()
            .await
            .refused(400, "invalid_request");
        for _ in 0..70 {
            lab.get("/nothing").from("10.0.0.99").send().await;
        }
        lab.post("/stop").signed(&lab.token("vic").await).send().await.ok();
        lab.get("/metrics").from("127.0.0.1").send().await.text()
    });

    let samples = parse_metrics(&text);
    let is = |series: &str, count: i32| {
        let value =
            samples.get(series).copied().unwrap_or_else(|| panic!("{series} in {:#?}", samples.keys()));
        assert!((value - f64::from(count)).abs() < f64::EPSILON, "{series} is {value}");
    };
    for name in named_series() {
        let there = samples.keys().any(|series| series.starts_with(name));
        assert!(there, "{name}");
    }
    is("device_executions_total{task=\"mix\",status=\"succeeded\"}", 1);
    is("device_execution_duration_seconds_count{task=\"mix\"}", 1);
    is("orchestrator_authentication_attempts_total{method=\"login\",result=\"failed\"}", 1);
    is("orchestrator_authentication_attempts_total{method=\"login\",result=\"success\"}", 2);
    is(
        "orchestrator_http_requests_total{method=\"POST\",endpoint=\"/execute/{task}\",status_code=\"404\"}",
        1,
    );
    is("orchestrator_http_requests_total{method=\"other\",endpoint=\"/health\",status_code=\"405\"}", 1);
    is("orchestrator_blocked_requests_total{reason=\"rate_limited\"}", 10);
    is("orchestrator_rate_limit_violations_total{endpoint=\"unmatched\",limit=\"minute\"}", 10);
    is("orchestrator_security_events_total{event_type=\"authorization_denied\",severity=\"medium\"}", 1);
    is("device_emergency_stop_engaged", 1);
    for invented in ["invented", "INVENTED", "10.0.0", "run_"] {
        assert!(!text.contains(invented), "{invented}");
    }
}

#[tokio::test]
async fn the_log_holds_no_secret() {
    let lab = Lab::start().await;
    let logged = Capture::default();
    let _guard = logged.install();
    let word = password("ana");

    let token = lab.sign_in("ana").await;
    lab.post("/auth/login")
        .json(&json!({ "username": "ana", "password": "hunter2" }))
        .send()
        .await
        .refused(401, "unauthorized");
    lab.post("/auth/login")
        .json(&json!({ "username": "hunter2", "password": "ana" }))
        .send()
        .await
        .refused(401, "unauthorized");
    lab.post("/auth/login?username=ana&password=hunter2").send().await.refused(400, "invalid_request");
    lab.post("/execute/mix")
        .signed(&token)
        .header("x-request-id", "find-me")
        .json(&json!({ "volume": 5 }))
        .send()
        .await
        .ok();
    lab.get("/tasks")
        .signed("hunter2-token")
        .header("user-agent", "a\tb")
        .send()
        .await
        .refused(401, "unauthorized");

    let text = logged.text();
    assert!(
        text.contains("find-me") && text.contains("authentication_failed") && text.contains("endpoint"),
        "{text}"
    );
    for secret in ["hunter2", word.expose(), &token, token.rsplit('.').next().expect("a signature")] {
        assert!(!text.contains(secret), "{text}");
    }
}

#[tokio::test]
async fn no_error_shows_the_inside() {
    let lab = Lab::start().await;
    let token = lab.token("zoe").await;
    let mut seen = Vec::new();
    for path in ["/runs?limit=x", "/audit?since=x", "/runs/x", "/nothing", "/execute/mix", "/users/ana"] {
        seen.push(lab.get(path).signed(&token).send().await.text());
        seen.push(lab.post(path).signed(&token).text("{").send().await.text());
    }

    for text in seen {
        for inside in
            ["sqlite", "SELECT", "serde", "panicked", ".rs", "/work", "/tmp", "axum", "rusqlite", "localhost"]
        {
            assert!(!text.contains(inside), "{inside} in {text}");
        }
    }
    let _: Value = lab.get("/health").send().await.ok();
}

#[tokio::test]
async fn weaknesses_are_reported_where_the_settings_say() {
    let silent = Lab::start().await;
    silent.get("/.well-known/security.txt").send().await.refused(404, "not_found");
    let lab = Lab::with(|config| {
        config.security_contacts =
            vec!["mailto:security@lab.example".to_owned(), "https://lab.example/report".to_owned()];
        config.security_policy = Some("https://lab.example/policy".to_owned());
    })
    .await;

    let answer = lab.get("/.well-known/security.txt").send().await;

    assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
    let text = answer.text();
    let expires = interlock_model::Clock::now(&*lab.clock).plus(std::time::Duration::from_hours(24 * 30));
    let expected = format!(
        "Contact: mailto:security@lab.example\nContact: https://lab.example/report\nExpires: {expires}\n\
         Policy: https://lab.example/policy\nPreferred-Languages: en\n"
    );
    assert_eq!(text, expected);
}
