//! Executing an action, and every way in which it can end.

use axum::body::Body;
use interlock_model::device::{NotStarted, Outcome, Rung, WorkerError};
use serde_json::{Value, json};

use crate::lab::{Lab, eventually};

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().expect("an object").keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[tokio::test]
async fn a_success_has_exactly_the_documented_members() {
    let lab = Lab::start().await;

    let answer = lab.mix("ana").await.send().await;

    let body = answer.ok();
    assert_eq!(
        keys(&body),
        [
            "executed_by",
            "execution_time_seconds",
            "parameters",
            "result",
            "run_id",
            "status",
            "task_name",
            "timestamp"
        ]
    );
    assert_eq!(body["task_name"], "mix");
    assert_eq!(body["parameters"], json!({ "volume": 50, "cycles": 3 }));
    assert_eq!(body["result"], json!({ "mixed": true }));
    assert_eq!(body["status"], "success");
    assert_eq!(body["executed_by"], "ana");
    assert_eq!(body["execution_time_seconds"], 0.0125);
    assert_eq!(body["timestamp"], json!(lab.now()));
    assert_eq!(body["run_id"].as_str(), answer.header("interlock-run"));
    assert_eq!(answer.header("idempotency-replayed"), None);
    let calls = lab.device.calls();
    assert_eq!(calls.len(), 1);
    assert_eq!(json!(calls[0].parameters), json!({ "volume": 50, "cycles": 3 }));
    assert!(!calls[0].simulated);
}

#[tokio::test]
async fn an_absent_body_is_an_empty_one() {
    let lab = Lab::start().await;
    let token = lab.token("cal").await;

    lab.post("/execute/calibrate").signed(&token).send().await.ok();
    lab.post("/execute/calibrate").signed(&token).typed("application/json", "").send().await.ok();
    // `curl -X POST -d ''` names a form and sends nothing.
    lab.post("/execute/calibrate")
        .signed(&token)
        .typed("application/x-www-form-urlencoded", Body::empty())
        .send()
        .await
        .ok();

    assert_eq!(lab.device.calls().len(), 3);
}

#[tokio::test]
async fn a_unit_is_converted() {
    let lab = Lab::start().await;

    let body = lab
        .post("/execute/mix")
        .signed(&lab.token("ana").await)
        .json(&json!({ "volume": "0.2 mL" }))
        .send()
        .await
        .ok();

    assert_eq!(body["parameters"]["volume"], 200.0);
    assert_eq!(json!(lab.device.calls()[0].parameters)["volume"], 200.0);
}

#[tokio::test]
async fn no_role_implies_the_right_to_execute() {
    let lab = Lab::start().await;

    for name in ["ada", "vic", "odo", "cal"] {
        let answer = lab.mix(name).await.send().await;
        let body = answer.refused(403, "forbidden");
        assert_eq!(body["detail"], "Role 'operator' required", "{name}");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer error=\"insufficient_scope\""));
    }
    assert!(lab.device.calls().is_empty());
}

#[tokio::test]
async fn an_action_s_own_role_replaces_operator() {
    let lab = Lab::start().await;

    let refused =
        lab.post("/execute/calibrate").signed(&lab.token("ana").await).send().await.refused(403, "forbidden");
    lab.post("/execute/calibrate").signed(&lab.token("cal").await).send().await.ok();

    assert_eq!(refused["detail"], "Role 'calibrator' required");
    assert_eq!(lab.device.calls().len(), 1);
}

#[tokio::test]
async fn an_unknown_action_is_named_to_those_only_who_may_execute() {
    let lab = Lab::start().await;

    let operator = lab.post("/execute/melt").signed(&lab.token("ana").await).send().await;
    let viewer = lab.post("/execute/melt").signed(&lab.token("vic").await).send().await;
    let anonymous = lab.post("/execute/melt").send().await;

    let body = operator.refused(404, "task_not_found");
    assert_eq!(body["detail"], "Task 'melt' not found");
    for name in ["mix", "upload", "calibrate", "layout"] {
        assert!(!operator.text().contains(name), "{}", operator.text());
    }
    viewer.refused(403, "forbidden");
    anonymous.refused(401, "unauthorized");
}

#[tokio::test]
async fn a_hostile_name_is_never_echoed() {
    let lab = Lab::unscreened().await;
    let token = lab.token("ana").await;

    for name in [
        "%3Cscript%3Ealert(1)%3C%2Fscript%3E",
        "..%2F..%2Fetc%2Fpasswd",
        "a%00b",
        "%F0%9F%A4%96",
        "a%0D%0AX-Evil:1",
        &"x".repeat(65),
    ] {
        for route in ["execute", "check"] {
            let answer = lab.post(&format!("/{route}/{name}")).signed(&token).send().await;
            let body = answer.refused(404, "task_not_found");
            assert_eq!(body["detail"], "Task not found", "{name}");
            assert!(!answer.text().contains("alert"), "{}", answer.text());
            assert!(answer.headers.get("x-evil").is_none());
        }
    }
    lab.assert_chain().await;
}

#[tokio::test]
async fn every_bad_parameter_is_named_and_none_is_echoed() {
    let lab = Lab::start().await;
    let token = lab.token("ana").await;
    let execute = |path: &'static str, body: Value| lab.post(path).signed(&token).json(&body).send();

    for (path, body, loc, kind) in [
        ("/execute/mix", json!({}), json!(["body", "volume"]), "missing"),
        // A plain word is said back, because it is a spelling mistake; anything else is not.
        (
            "/execute/mix",
            json!({ "volume": 5, "volumes": "sentinel_4711" }),
            json!(["body", "volumes"]),
            "unexpected",
        ),
        ("/execute/mix", json!({ "volume": 5, "<script>sentinel_4711": 1 }), json!(["body"]), "unexpected"),
        ("/execute/mix", json!({ "volume": 5, "a\nsentinel_4711": 1 }), json!(["body"]), "unexpected"),
        ("/execute/mix", json!({ "volume": ["sentinel_4711"] }), json!(["body", "volume"]), "type"),
        ("/execute/mix", json!({ "volume": true }), json!(["body", "volume"]), "type"),
        ("/execute/mix", json!({ "volume": null }), json!(["body", "volume"]), "type"),
        ("/execute/mix", json!({ "volume": 1000.1 }), json!(["body", "volume"]), "range"),
        ("/execute/mix", json!({ "volume": 0 }), json!(["body", "volume"]), "range"),
        ("/execute/mix", json!({ "volume": 5, "cycles": 2.5 }), json!(["body", "cycles"]), "type"),
        ("/execute/mix", json!({ "volume": "4711 sentinel_4711" }), json!(["body", "volume"]), "unit"),
        ("/execute/mix", json!({ "volume": "5 s" }), json!(["body", "volume"]), "unit"),
        ("/execute/upload", json!({ "api_key": "sen" }), json!(["body", "api_key"]), ""),
        (
            "/execute/upload",
            json!({ "api_key": "sentinel_4711", "label": "sentinel_4711" }),
            json!(["body", "label"]),
            "",
        ),
    ] {
        let answer = execute(path, body.clone()).await;
        let problem = answer.refused(400, "invalid_parameters");
        let error = &problem["errors"][0];
        assert_eq!(error["loc"], loc, "{body}");
        assert!(kind.is_empty() || error["type"] == kind, "{body}: {error}");
        assert!(error["msg"].as_str().is_some_and(|msg| !msg.is_empty()));
        assert!(!answer.text().contains("sentinel_4711"), "{}", answer.text());
        let checked = execute(path.replace("execute", "check").leak(), body).await;
        assert_eq!(checked.refused(400, "invalid_parameters")["errors"], problem["errors"]);
    }
    let all = execute("/execute/mix", json!({ "volume": 0, "cycles": 99, "more": 1 }))
        .await
        .refused(400, "invalid_parameters");
    assert_eq!(all["errors"].as_array().map(Vec::len), Some(3));
    assert!(lab.device.calls().is_empty());
}

#[tokio::test]
async fn a_check_answers_what_would_be_sent_and_runs_nothing() {
    let lab = Lab::start().await;

    let body = lab
        .post("/check/mix")
        .signed(&lab.token("ana").await)
        .json(&json!({ "volume": "100 uL" }))
        .send()
        .await
        .ok();

    assert_eq!(
        body,
        json!({ "task_name": "mix", "parameters": { "volume": 100.0, "cycles": 3 }, "ok": true })
    );
    assert!(lab.device.calls().is_empty());
    assert_eq!(lab.get("/runs").signed(&lab.token("vic").await).send().await.ok()["total"], 0);
    lab.post("/check/mix")
        .signed(&lab.token("vic").await)
        .json(&json!({ "volume": 1 }))
        .send()
        .await
        .refused(403, "forbidden");
}

#[tokio::test]
async fn every_outcome_has_its_documented_status_and_code() {
    let lab = Lab::start().await;
    let raised = |code: Option<&str>, public: bool| Outcome::Raised {
        error: WorkerError {
            class: "ValueError".to_owned(),
            message: "inner words 0815".to_owned(),
            public,
            code: code.map(str::to_owned),
            traceback: Some("trace 0815".to_owned()),
            ..WorkerError::default()
        },
        duration_ms: 2.0,
    };
    let not_started = |reason| Outcome::NotStarted { reason };

    for (outcome, status, code, state, retry) in [
        (raised(None, false), 500, "task_failed", "failed", false),
        (raised(None, true), 500, "task_failed", "failed", false),
        (raised(Some("result_too_large"), false), 500, "result_too_large", "failed", false),
        (raised(Some("result_not_serialisable"), false), 500, "result_not_serialisable", "failed", false),
        (raised(Some("bad_parameters"), false), 400, "invalid_parameters", "failed", false),
        (raised(Some("rule_broken"), false), 400, "invalid_parameters", "failed", false),
        (Outcome::Crashed { reason: "signal 11".to_owned() }, 500, "worker_crashed", "failed", false),
        (Outcome::Cancelled { rung: Rung::Kill }, 409, "run_cancelled", "cancelled", false),
        (Outcome::TimedOut { rung: Rung::Interrupt }, 504, "task_timed_out", "timed_out", false),
        (
            Outcome::Uncertain { reason: "the journal 0815".to_owned() },
            409,
            "run_uncertain",
            "uncertain",
            false,
        ),
        (not_started(NotStarted::Busy), 409, "device_busy", "cancelled", true),
        (not_started(NotStarted::EmergencyStop), 409, "emergency_stop_engaged", "cancelled", false),
        (not_started(NotStarted::NeedsAttention), 409, "device_needs_attention", "cancelled", false),
        (not_started(NotStarted::Unavailable), 503, "device_unavailable", "cancelled", true),
        (not_started(NotStarted::Cancelled), 409, "run_cancelled", "cancelled", false),
        (not_started(NotStarted::HostStopped), 409, "run_not_started", "cancelled", false),
        (not_started(NotStarted::JournalFailed), 503, "unavailable", "cancelled", true),
    ] {
        let public = matches!(&outcome, Outcome::Raised { error, .. } if error.public);
        lab.device.will(outcome.clone());

        let answer = lab.mix("ana").await.send().await;

        answer.refused(status, code);
        assert_eq!(answer.text().contains("0815"), public, "{outcome:?}: {}", answer.text());
        assert_eq!(answer.header("retry-after").is_some(), retry, "{outcome:?}");
        let run = answer.header("interlock-run").expect("a run").to_owned();
        let stored = lab.get(&format!("/runs/{run}")).signed(&lab.token("vic").await).send().await.ok();
        assert_eq!(stored["state"], state, "{outcome:?}");
        assert_eq!(stored["result"], Value::Null);
        assert!(!stored["error"]["code"].is_null());
        assert_eq!(stored["error"].to_string().contains("0815"), public);
    }
    lab.assert_chain().await;
}

#[tokio::test]
async fn a_simulated_run_is_marked_and_a_typing_mistake_moves_nothing() {
    let lab = Lab::start().await;

    lab.mix("ana").await.header("interlock-simulate", "true").send().await.ok();
    lab.mix("ana").await.header("interlock-simulate", "True").send().await.refused(400, "invalid_request");
    lab.mix("ana").await.header("interlock-simulate", "1").send().await.refused(400, "invalid_request");

    let calls = lab.device.calls();
    assert_eq!(calls.len(), 1);
    assert!(calls[0].simulated);
    let runs = lab.get("/runs").signed(&lab.token("vic").await).send().await.ok();
    assert_eq!(runs["items"][0]["simulated"], true);
}

#[tokio::test]
async fn a_client_that_hangs_up_changes_nothing_about_its_run() {
    let lab = Lab::start().await;
    let ask = lab.mix("ana").await;
    lab.device.hold();
    {
        let mut waiting = Box::pin(ask.send());
        tokio::select! {
            _ = &mut waiting => panic!("the device was told to wait"),
            () = eventually("the device was called", || async { lab.device.calls().len() == 1 }) => {}
        }
    }

    lab.device.let_go();

    let viewer = lab.token("vic").await;
    let run = lab.device.calls()[0].run;
    eventually("the run is recorded", || async {
        lab.get(&format!("/runs/{run}")).signed(&viewer).send().await.ok()["state"] == "succeeded"
    })
    .await;
    let trail = lab.trail_of("device.executed").await;
    let phases: Vec<&Value> = trail.iter().map(|entry| &entry.draft.details["phase"]).collect();
    assert_eq!(phases, ["intent", "outcome"]);
    assert!(trail.iter().all(|entry| entry.draft.actor.as_deref() == Some("ana")));
    lab.assert_chain().await;
}

#[tokio::test]
async fn a_device_runtime_that_panics_leaves_a_run_that_is_uncertain_and_says_so() {
    let lab = Lab::start().await;
    let viewer = lab.token("vic").await;
    let ask = lab.mix("ana").await;
    lab.device.panics(true);

    let answer = ask.header("idempotency-key", "p-1").send().await;

    answer.refused(409, "run_uncertain");
    let run = answer.header("interlock-run").expect("a run").to_owned();
    lab.device.panics(false);
    assert_eq!(lab.get(&format!("/runs/{run}")).signed(&viewer).send().await.ok()["state"], "uncertain");
    // The key keeps its run: nobody knows what the robot did.
    let again = lab.mix("ana").await.header("idempotency-key", "p-1").send().await;
    again.refused(409, "run_uncertain");
    assert_eq!(lab.device.calls().len(), 1);
}

#[tokio::test]
async fn nothing_starts_while_the_server_is_stopping() {
    let lab = Lab::start().await;
    let ask = lab.mix("ana").await;
    lab.runs.close();

    let answer = ask.send().await;

    answer.refused(503, "unavailable");
    assert!(answer.header("retry-after").is_some());
    assert!(lab.device.calls().is_empty());
}

#[tokio::test]
async fn a_sensitive_parameter_is_seen_by_the_device_only() {
    let lab = Lab::start().await;
    let logged = crate::service::Capture::default();
    let _guard = logged.install();
    let secret = "hunter2-very-secret";
    let token = lab.token("ana").await;
    let viewer = lab.token("vic").await;
    let ask = || lab.post("/execute/upload").signed(&token).json(&json!({ "api_key": secret, "label": "y" }));

    let done = ask().send().await;
    lab.device.will(Outcome::Crashed { reason: "signal 9".to_owned() });
    let crashed = ask().send().await;
    let checked = lab.post("/check/upload").signed(&token).json(&json!({ "api_key": secret })).send().await;
    let refused = lab
        .post("/execute/upload")
        .signed(&token)
        .json(&json!({ "api_key": secret, "label": secret }))
        .send()
        .await;

    assert_eq!(done.ok()["parameters"], json!({ "api_key": "***", "backup_key": "***", "label": "y" }));
    assert_eq!(checked.ok()["parameters"]["api_key"], "***");
    assert_eq!(json!(lab.device.calls()[0].parameters)["api_key"], secret);
    let run = done.header("interlock-run").expect("a run");
    let mut seen = vec![done.text(), crashed.text(), checked.text(), refused.text()];
    for path in [
        "/runs",
        &format!("/runs/{run}"),
        &format!("/runs/{run}/events"),
        "/tasks",
        "/actions",
        "/openapi.json",
        "/metrics",
    ] {
        seen.push(lab.get(path).from("127.0.0.1").signed(&viewer).send().await.text());
    }
    for entry in lab.trail().await {
        seen.push(format!("{entry:?}"));
    }
    seen.push(logged.text());
    assert!(logged.text().contains("did not end by itself"), "the log was captured");
    for text in seen {
        assert!(!text.contains("hunter2"), "{text}");
        assert!(!text.contains(crate::fake::SECRET_DEFAULT), "{text}");
    }
}
