//! What people are told about their own accounts, and what reviewers see of everybody's.

use axum::extract::State;
use axum::http::Method;
use axum::response::Response;
use interlock_engine::auth::ReviewedPrincipal;
use interlock_engine::identity::Identity;
use interlock_model::Timestamp;
use interlock_model::action::{ListNotices, ReadNotices, ReviewAccess};
use interlock_model::screen::Place;
use interlock_model::wire::{NoticeView, Operation};
use serde::Deserialize;

use super::agents::no_store;
use crate::body::{Json, JsonBody};
use crate::error::ApiError;
use crate::perimeter::Screened;
use crate::routes::{ApiRouter, Granted};

pub(super) fn routes(api: ApiRouter) -> ApiRouter {
    api.route(Method::GET, "/auth/notices", list_notices)
        .route(Method::POST, "/auth/notices/read", read_notices)
        .route(Method::GET, "/security/access", review_access)
}

async fn list_notices(
    grant: Granted<ListNotices>,
    State(identity): State<Identity>,
) -> Result<Response, ApiError> {
    let found = identity.notices.list(&grant).await?;
    let views = found.into_iter().map(|(notice, read)| NoticeView {
        text: notice.sentence(),
        at: notice.at,
        kind: notice.kind,
        from: notice.from,
        by: notice.by,
        count: notice.count,
        details: notice.details,
        read,
    });
    Ok(no_store(Json(views.collect::<Vec<_>>())))
}

#[derive(Debug, Deserialize)]
struct Until {
    until: Timestamp,
}

impl Screened for Until {
    fn texts(&self, _: &mut dyn FnMut(Place, &str)) {}
}

async fn read_notices(
    grant: Granted<ReadNotices>,
    State(identity): State<Identity>,
    JsonBody(body): JsonBody<Until>,
) -> Result<Json<Operation>, ApiError> {
    identity.notices.read(&grant, body.until).await?;
    Ok(Json(Operation::done("Seen", None)))
}

async fn review_access(
    grant: Granted<ReviewAccess>,
    State(identity): State<Identity>,
) -> Result<Json<Vec<ReviewedPrincipal>>, ApiError> {
    Ok(Json(identity.reviews.access(&grant).await?))
}
