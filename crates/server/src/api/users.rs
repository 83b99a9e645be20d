//! People and the audit trail.

use axum::extract::State;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use interlock_engine::evidence::Evidence;
use interlock_engine::users::{UserChange, Users};
use interlock_engine::{AuditBy, AuditFilter, UserRow};
use interlock_model::action::{CreateUser, ListUsers, ReadAudit, SetPassword, UpdateUser};
use interlock_model::screen::Place;
use interlock_model::secret::Secret;
use interlock_model::text::{AuditSubject, RoleName, Sought, Text, UserName};
use interlock_model::wire::{AuditCount, AuditView, Operation, PageAnswer, UserView};
use serde::Deserialize;

use super::query;
use super::runs::envelope;
use crate::body::{Json, JsonBody, PageQuery, Query};
use crate::error::ApiError;
use crate::perimeter::Screened;
use crate::routes::{ApiRouter, Granted};

pub(super) fn routes(api: ApiRouter) -> ApiRouter {
    api.route(Method::GET, "/users", list_users)
        .route(Method::POST, "/users", create_user)
        .route(Method::PATCH, "/users/{name}", update_user)
        .route(Method::POST, "/users/{name}/password", set_password)
        .route(Method::GET, "/audit", read_audit)
        .route(Method::GET, "/audit/counts", count_audit)
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
    name: Text<UserName>,
    password: Secret,
    roles: Vec<Text<RoleName>>,
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
    let user = users.create(&grant, &body.name, body.password, &Text::into_strings(body.roles)).await?;
    Ok((StatusCode::CREATED, Json(view(user))).into_response())
}

#[derive(Debug, Deserialize)]
struct UserEdit {
    roles: Option<Vec<Text<RoleName>>>,
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
    let change = UserChange { roles: body.roles.map(Text::into_strings), disabled: body.disabled };
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
struct AuditWhich {
    action: Option<String>,
    actor: Option<String>,
    subject: Option<String>,
    source: Option<String>,
    rule: Option<String>,
    route: Option<String>,
    result: Option<String>,
    since: Option<String>,
    until: Option<String>,
}

impl AuditWhich {
    fn filter(self) -> Result<AuditFilter, ApiError> {
        let Self { action, actor, subject, source, rule, route, result, since, until } = self;
        let (since, until) = (query::time("since", since.as_ref())?, query::time("until", until.as_ref())?);
        Ok(AuditFilter {
            action: query::text::<Sought>("action", action)?,
            actor: query::text::<AuditSubject>("actor", actor)?,
            subject: query::text::<AuditSubject>("subject", subject)?,
            source: query::text::<AuditSubject>("source", source)?,
            rule: query::text::<Sought>("rule", rule)?,
            route: query::text::<Sought>("route", route)?,
            result: query::text::<Sought>("result", result)?,
            since,
            until,
        })
    }
}

#[derive(Debug, Deserialize)]
struct AuditQuery {
    #[serde(flatten)]
    which: AuditWhich,
    #[serde(flatten)]
    page: PageQuery,
}

async fn read_audit(
    grant: Granted<ReadAudit>,
    State(evidence): State<Evidence>,
    Query(query): Query<AuditQuery>,
) -> Result<Json<PageAnswer<AuditView>>, ApiError> {
    let page = query.page.page()?;
    let found = evidence.audit(&grant, &query.which.filter()?, page).await?;
    let rows = interlock_engine::Paged {
        items: found.items.into_iter().map(AuditView::from).collect(),
        total: found.total,
    };
    Ok(envelope(rows, page))
}

fn counted_by(text: &str) -> Option<AuditBy> {
    Some(match text {
        "actor" => AuditBy::Actor,
        "action" => AuditBy::Action,
        "subject" => AuditBy::Subject,
        "source" => AuditBy::Source,
        "rule" => AuditBy::Rule,
        "route" => AuditBy::Route,
        "reason" => AuditBy::Reason,
        _ => return None,
    })
}

#[derive(Debug, Deserialize)]
struct CountQuery {
    by: Option<String>,
    #[serde(flatten)]
    which: AuditWhich,
    #[serde(flatten)]
    page: PageQuery,
}

async fn count_audit(
    grant: Granted<ReadAudit>,
    State(evidence): State<Evidence>,
    Query(query): Query<CountQuery>,
) -> Result<Json<Vec<AuditCount>>, ApiError> {
    let by = query::word("by", query.by.as_ref(), counted_by)?;
    let by = by.ok_or_else(|| ApiError::field(&["query", "by"], "missing", "'by' is required"))?;
    let limit = query.page.page()?.limit;
    let counts = evidence.counts(&grant, &query.which.filter()?, by, limit).await?;
    Ok(Json(counts.into_iter().map(|(value, entries)| AuditCount { value, entries }).collect()))
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
