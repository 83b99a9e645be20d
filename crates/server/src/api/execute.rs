//! The catalogue of actions and their execution.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use interlock_engine::devices::Devices;
use interlock_engine::executions::{ExecuteError, Execution, Executions, Request};
use interlock_engine::reads::Reads;
use interlock_model::action::{CheckAction, ExecuteAction, ListActions};
use interlock_model::device::ParamSpec;
use interlock_model::run::{RunError, RunState};
use interlock_model::text::{ActionName, Form as _, IdempotencyKey, Preference};
use interlock_model::wire::{ActionsAnswer, DeviceInfo, ExecuteAnswer};
use serde_json::{Map, Value, json};

use crate::body::{Json, JsonObject, prefers};
use crate::config::ServerConfig;
use crate::error::ApiError;
use crate::routes::{ApiRouter, Granted};

const RUN: HeaderName = HeaderName::from_static("interlock-run");
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const SIMULATE: HeaderName = HeaderName::from_static("interlock-simulate");

pub(super) fn routes(api: ApiRouter) -> ApiRouter {
    api.route(Method::GET, "/tasks", list_tasks)
        .route(Method::GET, "/actions", list_actions)
        .route(Method::POST, "/execute/{task}", execute)
        .route(Method::POST, "/check/{task}", check)
}

async fn list_tasks(grant: Granted<ListActions>, State(devices): State<Devices>) -> Json<Value> {
    let catalogue = devices.catalogue(&grant);
    let tasks: Map<String, Value> = catalogue
        .actions()
        .map(|action| {
            let parameters: Map<String, Value> = action
                .spec
                .parameters
                .iter()
                .map(|p| (p.name.clone(), json!({ "type": p.kind, "default": shown_default(p), "required": p.required })))
                .collect();
            let spec = &action.spec;
            let task = json!({ "name": spec.name, "doc": spec.doc, "parameters": parameters, "is_async": spec.is_async });
            (spec.name.clone(), task)
        })
        .collect();
    Json(Value::Object(tasks))
}

/// A default as readers of the catalogue see it: that of a sensitive parameter is a secret itself.
fn shown_default(parameter: &ParamSpec) -> Value {
    if parameter.sensitive { Value::Null } else { parameter.default.clone() }
}

async fn list_actions(
    grant: Granted<ListActions>,
    State(devices): State<Devices>,
    State(config): State<Arc<ServerConfig>>,
) -> Json<ActionsAnswer> {
    let catalogue = devices.catalogue(&grant);
    let mut actions = catalogue.declarations.actions.clone();
    for parameter in actions.iter_mut().flat_map(|action| &mut action.parameters) {
        parameter.default = shown_default(parameter);
    }
    Json(ActionsAnswer {
        device: DeviceInfo {
            name: devices.name(),
            title: config.title.clone(),
            description: Some(config.description.clone()).filter(|text| !text.is_empty()),
        },
        actions,
    })
}

/// An unknown action is named back when the name is a plain word: then it is no echo of hostile text.
fn no_such_task(task: &str) -> ApiError {
    let detail = if ActionName::RULE.holds(task) {
        format!("Task '{task}' not found")
    } else {
        "Task not found".to_owned()
    };
    ApiError::client(StatusCode::NOT_FOUND, "task_not_found", detail)
}

async fn check(
    grant: Granted<CheckAction>,
    State(executions): State<Executions>,
    JsonObject(parameters): JsonObject,
) -> Result<Json<Value>, ApiError> {
    let task = grant.target().task.clone();
    match executions.check(&grant, parameters) {
        Ok(parameters) => Ok(Json(json!({ "task_name": task, "parameters": parameters, "ok": true }))),
        Err(ExecuteError::NoSuchAction) => Err(no_such_task(&task)),
        Err(error) => Err(error.into()),
    }
}

async fn execute(
    grant: Granted<ExecuteAction>,
    State(executions): State<Executions>,
    State(reads): State<Reads>,
    headers: HeaderMap,
    JsonObject(parameters): JsonObject,
) -> Result<Response, ApiError> {
    check_preferences(&headers)?;
    let asynchronous = prefers(&headers, "respond-async");
    let request = Request {
        parameters,
        key: idempotency_key(&headers)?,
        simulated: simulated(&headers)?,
        wait: !asynchronous,
    };
    let task = grant.target().task.clone();
    let Execution { run, replayed } = match executions.execute(grant.into_permit(), request).await {
        Err(ExecuteError::NoSuchAction) => return Err(no_such_task(&task)),
        other => other?,
    };
    let id = run.id;
    let mut response = if asynchronous && !run.state.is_final() {
        let mut response = (StatusCode::ACCEPTED, Json(reads.present(run))).into_response();
        if let Ok(location) = HeaderValue::from_str(&format!("/runs/{id}")) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        response
            .headers_mut()
            .insert(HeaderName::from_static("preference-applied"), HeaderValue::from_static("respond-async"));
        response
    } else {
        match (run.state, run.error) {
            (RunState::Succeeded, _) => Json(ExecuteAnswer {
                task_name: run.action,
                parameters: match run.parameters {
                    Value::Object(parameters) => parameters,
                    _ => Map::new(),
                },
                result: run.result.unwrap_or(Value::Null),
                status: "success".to_owned(),
                executed_by: run.actor,
                execution_time_seconds: run.duration_ms.unwrap_or(0.0) / 1000.0,
                timestamp: run.finished_at.unwrap_or(run.created_at),
                run_id: run.id,
            })
            .into_response(),
            (_, error) => failed(error).into_response(),
        }
    };
    if let Ok(value) = HeaderValue::from_str(&id.to_string()) {
        response.headers_mut().insert(RUN, value);
    }
    if replayed {
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// A run that did not succeed, as an HTTP answer.
fn failed(error: Option<RunError>) -> ApiError {
    let error = error.unwrap_or_else(|| RunError {
        code: "internal".to_owned(),
        message: "The run has no recorded end.".to_owned(),
    });
    let (status, code) = match error.code.as_str() {
        "device_busy" => (StatusCode::CONFLICT, "device_busy"),
        "emergency_stop_engaged" => (StatusCode::CONFLICT, "emergency_stop_engaged"),
        "device_needs_attention" => (StatusCode::CONFLICT, "device_needs_attention"),
        "run_cancelled" => (StatusCode::CONFLICT, "run_cancelled"),
        "run_uncertain" => (StatusCode::CONFLICT, "run_uncertain"),
        "run_not_started" => (StatusCode::CONFLICT, "run_not_started"),
        "bad_parameters" | "rule_broken" => (StatusCode::BAD_REQUEST, "invalid_parameters"),
        "device_unavailable" => (StatusCode::SERVICE_UNAVAILABLE, "device_unavailable"),
        "unavailable" => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
        "task_timed_out" => (StatusCode::GATEWAY_TIMEOUT, "task_timed_out"),
        "worker_crashed" => (StatusCode::INTERNAL_SERVER_ERROR, "worker_crashed"),
        "result_too_large" => (StatusCode::INTERNAL_SERVER_ERROR, "result_too_large"),
        "result_not_serialisable" => (StatusCode::INTERNAL_SERVER_ERROR, "result_not_serialisable"),
        "task_failed" => (StatusCode::INTERNAL_SERVER_ERROR, "task_failed"),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
    };
    let refusal = ApiError::client(status, code, error.message);
    if matches!(code, "device_busy" | "device_unavailable" | "unavailable") {
        refusal.after(1)
    } else {
        refusal
    }
}

/// The caller's key for a request that it may repeat.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let mut values = headers.get_all(&IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let key = value.to_str().unwrap_or("");
    if values.next().is_some() || !IdempotencyKey::RULE.holds(key) {
        return Err(ApiError::client(
            StatusCode::BAD_REQUEST,
            "invalid_request",
            "Idempotency-Key must be one header of 1 to 255 visible ASCII characters.",
        ));
    }
    Ok(Some(key.to_owned()))
}

/// Preferences that nobody knows are ignored (RFC 7240 section 2), but not without a bound.
fn check_preferences(headers: &HeaderMap) -> Result<(), ApiError> {
    let rule = Preference::RULE;
    if headers.get_all("prefer").iter().all(|value| value.to_str().is_ok_and(|text| rule.holds(text))) {
        return Ok(());
    }
    let wrong = format!("Prefer must have 1 to {} visible ASCII characters.", rule.longest);
    Err(ApiError::client(StatusCode::BAD_REQUEST, "invalid_request", wrong))
}

fn simulated(headers: &HeaderMap) -> Result<bool, ApiError> {
    match headers.get(&SIMULATE).map(axum::http::HeaderValue::as_bytes) {
        None | Some(b"false") => Ok(false),
        Some(b"true") => Ok(true),
        // A robot must never move because of a typing mistake in this header.
        Some(_) => Err(ApiError::client(
            StatusCode::BAD_REQUEST,
            "invalid_request",
            "Interlock-Simulate must be true or false.",
        )),
    }
}
