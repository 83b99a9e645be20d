//! Invitations: an account for whoever holds a token that works once.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use interlock_engine::auth::Origin;
use interlock_engine::auth::documents::Invitation;
use interlock_engine::invitations::Invitations;
use interlock_model::Timestamp;
use interlock_model::action::{Invite, ListInvitations, RevokeInvitation};
use interlock_model::screen::Place;
use interlock_model::secret::Secret;
use interlock_model::text::{RoleName, Text, UserName};
use interlock_model::wire::Operation;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::agents::no_store;
use crate::body::{Json, JsonBody};
use crate::error::ApiError;
use crate::perimeter::Screened;
use crate::routes::{ApiRouter, Granted, PublicReason};

pub(super) fn routes(api: ApiRouter) -> ApiRouter {
    api.route(Method::GET, "/users/invitations", list)
        .route(Method::POST, "/users/invitations", invite)
        .route(Method::DELETE, "/users/invitations/{id}", revoke)
        .public(Method::POST, "/auth/invitations/accept", PublicReason::SignIn, accept)
}

/// An invitation without its token.
#[derive(Debug, Serialize)]
struct InvitationView {
    id: String,
    name: String,
    roles: Vec<String>,
    state: &'static str,
    created_at: Timestamp,
    created_by: String,
    expires_at: Timestamp,
}

fn view(invitation: Invitation, now: Timestamp) -> InvitationView {
    let state = match &invitation {
        open if open.is_open(now) => "open",
        Invitation { accepted_at: Some(_), .. } => "accepted",
        Invitation { revoked_at: Some(_), .. } => "revoked",
        _ => "expired",
    };
    InvitationView {
        id: invitation.id,
        name: invitation.name,
        roles: invitation.roles,
        state,
        created_at: invitation.created_at,
        created_by: invitation.created_by,
        expires_at: invitation.expires_at,
    }
}

async fn list(
    grant: Granted<ListInvitations>,
    State(invitations): State<Invitations>,
) -> Result<Json<Vec<InvitationView>>, ApiError> {
    let now = invitations.now();
    Ok(Json(invitations.list(&grant).await?.into_iter().map(|found| view(found, now)).collect()))
}

#[derive(Debug, Deserialize)]
struct NewInvitation {
    name: Text<UserName>,
    roles: Vec<Text<RoleName>>,
}

impl Screened for NewInvitation {
    fn texts(&self, look: &mut dyn FnMut(Place, &str)) {
        look(Place::Id, &self.name);
        self.roles.iter().for_each(|role| look(Place::Id, role));
    }
}

async fn invite(
    grant: Granted<Invite>,
    State(invitations): State<Invitations>,
    JsonBody(body): JsonBody<NewInvitation>,
) -> Result<Response, ApiError> {
    let (made, token) = invitations.make(&grant, &body.name, &Text::into_strings(body.roles)).await?;
    let mut answer = json!(view(made, invitations.now()));
    answer["token"] = json!(token.expose());
    Ok(no_store((StatusCode::CREATED, Json(answer))))
}

async fn revoke(
    grant: Granted<RevokeInvitation>,
    State(invitations): State<Invitations>,
) -> Result<Json<Operation>, ApiError> {
    invitations.revoke(&grant).await?;
    Ok(Json(Operation::done("Invitation taken back; its token is dead", None)))
}

#[derive(Debug, Deserialize)]
struct Acceptance {
    /// Refused as a wrong one whatever it is.
    token: Secret,
    password: Secret,
}

impl Screened for Acceptance {
    fn texts(&self, _: &mut dyn FnMut(Place, &str)) {}
}

async fn accept(
    State(invitations): State<Invitations>,
    Extension(origin): Extension<Arc<Origin>>,
    JsonBody(body): JsonBody<Acceptance>,
) -> Result<Response, ApiError> {
    let user = invitations.accept(&body.token, body.password, &origin).await?;
    Ok((StatusCode::CREATED, Json(json!({ "name": user.name, "roles": user.roles }))).into_response())
}
