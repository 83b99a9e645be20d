//! Events: publishing, looking, following.

use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::sse::Event;
use axum::response::{IntoResponse as _, Response};
use interlock_engine::orchestrator::{EventError, EventRow, NewEvent, Orchestrator};
use interlock_model::action::{CleanEvents, PublishEvent, ReadEvents};
use interlock_model::screen::Place;
use interlock_model::task::StreamId;
use interlock_model::text::Principal;
use interlock_model::wire::Operation;
use serde::Deserialize;
use serde_json::{Value, json};

use super::fields::Fields;
use super::task_runs::{streamed, too_many_followers};
use crate::body::{Json, JsonBody, Query};
use crate::error::ApiError;
use crate::perimeter::Screened;
use crate::routes::{ApiRouter, Granted};

pub(super) fn routes(api: ApiRouter) -> ApiRouter {
    api.route(Method::POST, "/events", publish_event)
        .route(Method::GET, "/events/topics", event_topics)
        .route(Method::GET, "/events/stream", follow_events)
        .route(Method::GET, "/events/stream/recent", recent_events)
        .route(Method::DELETE, "/events/stream/cleanup", clean_events)
}

impl From<EventError> for ApiError {
    fn from(error: EventError) -> Self {
        match error {
            EventError::Field("max_age_hours", message) => {
                Self::field(&["query", "max_age_hours"], "range", message)
            }
            EventError::Field(name, message) => Self::field(&["body", name], "value", message),
            EventError::NotYou => Self::client(StatusCode::FORBIDDEN, "forbidden", error.to_string()),
            EventError::NoSuchSource => Self::client(
                StatusCode::BAD_REQUEST,
                "invalid_request",
                "source_agent_id names nobody who is active here",
            ),
            EventError::TooManyFollowers => too_many_followers(),
            EventError::Store(cause) => Self::storage(&cause),
        }
    }
}

#[derive(Debug, Deserialize)]
struct EventBody {
    topic: Option<Value>,
    payload: Option<Value>,
    source_agent_id: Option<Value>,
}

impl Screened for EventBody {
    fn texts(&self, look: &mut dyn FnMut(Place, &str)) {
        self.topic.iter().filter_map(Value::as_str).for_each(|text| look(Place::Label, text));
        self.source_agent_id.iter().filter_map(Value::as_str).for_each(|text| look(Place::Id, text));
        super::fields::texts(self.payload.as_ref(), look);
    }
}

async fn publish_event(
    grant: Granted<PublishEvent>,
    State(orchestrator): State<Orchestrator>,
    JsonBody(body): JsonBody<EventBody>,
) -> Result<Response, ApiError> {
    let mut fields = Fields::default();
    let new = NewEvent {
        topic: fields.required_text("topic", body.topic),
        payload: fields.required_object("payload", body.payload),
        source: fields.required::<Principal>("source_agent_id", body.source_agent_id),
    };
    fields.done()?;
    let topic = new.topic.clone();
    let published = orchestrator.publish(&grant, new).await?;
    let details = json!({
        "event_id": published.id, "stream_id": published.position.to_string(), "topic": topic,
        "triggered_tasks": published.triggered, "published_at": published.at,
    });
    let answer = Operation::done("Event published", Some(details));
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

async fn event_topics(
    grant: Granted<ReadEvents>,
    State(orchestrator): State<Orchestrator>,
) -> Result<Json<Value>, ApiError> {
    let topics = orchestrator.topics(&grant).await?;
    let listed: Vec<Value> = topics
        .iter()
        .map(|topic| json!({ "topic": topic.topic, "active_tasks": topic.tasks.len(), "task_ids": topic.tasks }))
        .collect();
    Ok(Json(json!({ "total_topics": listed.len(), "topics": listed })))
}

fn view(event: &EventRow) -> Value {
    json!({
        "event_id": event.id, "topic": event.topic, "payload": event.payload, "source_agent_id": event.source,
        "published_at": event.published_at, "published_by": event.published_by, "stream_id": event.position.to_string(),
    })
}

#[derive(Debug, Deserialize)]
struct RecentQuery {
    count: Option<String>,
}

/// A whole number of the query within a range.
fn query_number(
    name: &str,
    text: Option<&String>,
    default: i64,
    from: i64,
    to: i64,
) -> Result<i64, ApiError> {
    let Some(text) = text else { return Ok(default) };
    text.parse()
        .ok()
        .filter(|number| (from..=to).contains(number))
        .ok_or_else(|| ApiError::field(&["query", name], "range", format!("'{name}' must be {from} to {to}")))
}

async fn recent_events(
    grant: Granted<ReadEvents>,
    State(orchestrator): State<Orchestrator>,
    Query(query): Query<RecentQuery>,
) -> Result<Json<Value>, ApiError> {
    let count = query_number("count", query.count.as_ref(), 50, 1, 1_000)?;
    let found = orchestrator.recent_events(&grant, u32::try_from(count).unwrap_or(1)).await?;
    let events: Vec<Value> = found.iter().map(view).collect();
    Ok(Json(json!({ "total_events": events.len(), "events": events })))
}

#[derive(Debug, Deserialize)]
struct CleanQuery {
    max_age_hours: Option<String>,
}

async fn clean_events(
    grant: Granted<CleanEvents>,
    State(orchestrator): State<Orchestrator>,
    Query(query): Query<CleanQuery>,
) -> Result<Json<Operation>, ApiError> {
    let hours = query_number("max_age_hours", query.max_age_hours.as_ref(), 24, 0, 8_760)?;
    let (deleted, cutoff) = orchestrator.clean_events(&grant, hours).await?;
    let mut details = json!({ "deleted_count": deleted, "max_age_hours": hours });
    if deleted > 0 {
        details["cutoff_timestamp"] = json!(cutoff);
    }
    Ok(Json(Operation::done("Old events deleted", Some(details))))
}

#[derive(Debug, Deserialize)]
struct StreamQuery {
    after: Option<String>,
}

/// New events as they come, from behind `Last-Event-ID`, or `after`, or from now on.
async fn follow_events(
    grant: Granted<ReadEvents>,
    State(orchestrator): State<Orchestrator>,
    headers: HeaderMap,
    query: Result<Query<StreamQuery>, ApiError>,
) -> Result<Response, ApiError> {
    let Query(query) = query?;
    // What is no text is no position either.
    let resumed = headers.get("last-event-id").map(|value| value.to_str().unwrap_or("").to_owned());
    let place = if resumed.is_some() { ["header", "Last-Event-ID"] } else { ["query", "after"] };
    let position = |text: String| {
        text.parse::<StreamId>().map_err(|error| ApiError::field(&place, "stream_id", error.to_string()))
    };
    let after = resumed.or(query.after).map(position).transpose()?;
    let following = orchestrator.follow_events(&grant, after).await?;
    let batches = futures::stream::unfold(following, |mut following| async move {
        match following.next().await {
            Ok(Some(events)) => Some((events, following)),
            Ok(None) => None,
            Err(error) => {
                // The client resumes with Last-Event-ID.
                tracing::error!(%error, "events could not be read");
                None
            }
        }
    });
    let events = futures::StreamExt::flat_map(batches, |events| {
        futures::stream::iter(events.into_iter().map(|event| {
            let text = view(&event).to_string();
            Ok(Event::default().id(event.position.to_string()).event("event").data(text))
        }))
    });
    Ok(streamed(events))
}
