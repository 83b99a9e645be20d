//! People and the audit trail.

use axum::Json;
use axum::extract::State;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use interlock_engine::evidence::Evidence;
use interlock_engine::users::{UserChange, Users};
use interlock_engine::{AuditFilter, UserRow};
use interlock_model::Timestamp;
use interlock_model::action::{CreateUser, ListUsers, ReadAudit, SetPassword, UpdateUser};
use interlock_model::screen::Place;
use interlock_model::secret::Secret;
use interlock_model::wire::{AuditView, Operation, PageAnswer, UserView};
use serde::Deserialize;

use super::runs::envelope;
use crate::body::{JsonBody, PageQuery, Query};
use crate::error::ApiError;
use crate::perimeter::Screened;
use crate::routes::{ApiRouter, Granted};

pub(super) fn routes(api: ApiRouter) -> ApiRouter {
    api.route(Method::GET, "/users", list_users)
        .route(Method::POST, "/users", create_user)
        .route(Method::PATCH, "/users/{name}", update_user)
        .route(Method::POST, "/users/{name}/password", set_password)
        .route(Method::GET, "/audit", read_audit)
        .route(Method::GET, "/audit/checkpoint", read_checkpoint)
        .route(Method::GET, "/audit/proof", prove_entry)
}

fn view(user: UserRow) -> UserView {
    UserView {
        name: user.name,
        roles: user.roles,
        disabled: user.disabled,
        created_at: user.created_at,
        updated_at: user.updated_at,
    }
}

async fn list_users(
    grant: Granted<ListUsers>,
    State(users): State<Users>,
) -> Result<Json<Vec<UserView>>, ApiError> {
    Ok(Json(users.list(&grant).await?.into_iter().map(view).collect()))
}

#[derive(Debug, Deserialize)]
struct NewUser {
    name: String,
    password: Secret,
    roles: Vec<String>,
}

impl Screened for NewUser {
    fn texts(&self, look: &mut dyn FnMut(Place, &str)) {
        look(Place::Id, &self.name);
        self.roles.iter().for_each(|role| look(Place::Id, role));
    }
}

async fn create_user(
    grant: Granted<CreateUser>,
    State(users): State<Users>,
    JsonBody(body): JsonBody<NewUser>,
) -> Result<Response, ApiError> {
    let user = users.create(&grant, &body.name, body.password, &body.roles).await?;
    Ok((StatusCode::CREATED, Json(view(user))).into_response())
}

#[derive(Debug, Deserialize)]
struct UserEdit {
    roles: Option<Vec<String>>,
    disabled: Option<bool>,
}

impl Screened for UserEdit {
    fn texts(&self, look: &mut dyn FnMut(Place, &str)) {
        self.roles.iter().flatten().for_each(|role| look(Place::Id, role));
    }
}

async fn update_user(
    grant: Granted<UpdateUser>,
    State(users): State<Users>,
    JsonBody(body): JsonBody<UserEdit>,
) -> Result<Json<UserView>, ApiError> {
    let change = UserChange { roles: body.roles, disabled: body.disabled };
    Ok(Json(view(users.update(&grant, change).await?)))
}

#[derive(Debug, Deserialize)]
struct NewPassword {
    password: Secret,
}

impl Screened for NewPassword {
    fn texts(&self, _: &mut dyn FnMut(Place, &str)) {}
}

async fn set_password(
    grant: Granted<SetPassword>,
    State(users): State<Users>,
    JsonBody(body): JsonBody<NewPassword>,
) -> Result<Json<Operation>, ApiError> {
    users.set_password(&grant, body.password).await?;
    Ok(Json(Operation::done("Password set; every earlier token of this user is dead", None)))
}

#[derive(Debug, Deserialize)]
struct AuditQuery {
    action: Option<String>,
    actor: Option<String>,
    subject: Option<String>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    #[serde(flatten)]
    page: PageQuery,
}

async fn read_audit(
    grant: Granted<ReadAudit>,
    State(evidence): State<Evidence>,
    Query(query): Query<AuditQuery>,
) -> Result<Json<PageAnswer<AuditView>>, ApiError> {
    let page = query.page.page()?;
    let filter = AuditFilter {
        action: query.action,
        actor: query.actor,
        subject: query.subject,
        since: query.since,
        until: query.until,
    };
    let found = evidence.audit(&grant, &filter, page).await?;
    let rows = interlock_engine::Paged {
        items: found.items.into_iter().map(AuditView::from).collect(),
        total: found.total,
    };
    Ok(envelope(rows, page))
}

#[derive(Debug, Deserialize)]
struct ProofQuery {
    entry: u64,
}

/// As a signed note (C2SP), so that a witness needs nothing but this address and the key.
async fn read_checkpoint(
    grant: Granted<ReadAudit>,
    State(evidence): State<Evidence>,
) -> Result<Response, ApiError> {
    let note = evidence.checkpoint(&grant).await?;
    let note = note.ok_or_else(|| {
        ApiError::client(StatusCode::NOT_FOUND, "not_found", "Nothing in the audit trail is signed yet")
    })?;
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], note).into_response())
}

async fn prove_entry(
    grant: Granted<ReadAudit>,
    State(evidence): State<Evidence>,
    Query(query): Query<ProofQuery>,
) -> Result<Response, ApiError> {
    Ok(Json(evidence.prove(&grant, query.entry).await?).into_response())
}
