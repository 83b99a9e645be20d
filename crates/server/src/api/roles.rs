//! Roles and decisions: which there are, custom ones, and why somebody may or may not.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::Method;
use interlock_engine::auth::documents::CustomRole;
use interlock_engine::identity::Identity;
use interlock_model::action::{DeleteRole, ListRoles, Needs, PutRole, TestPolicy};
use interlock_model::policy::{self, Explanation};
use interlock_model::scope;
use interlock_model::screen::Place;
use interlock_model::text::{ActionName, Principal, RoleDescription, ScopeText, Text};
use interlock_model::wire::{Operation, RoleView};
use serde::Deserialize;

use super::agents::scopes;
use crate::body::{Json, JsonBody};
use crate::error::ApiError;
use crate::perimeter::Screened;
use crate::routes::{ApiRouter, Granted};

pub(super) fn routes(api: ApiRouter) -> ApiRouter {
    api.route(Method::GET, "/roles", list_roles)
        .route(Method::PUT, "/roles/{role}", put_role)
        .route(Method::DELETE, "/roles/{role}", delete_role)
        .route(Method::POST, "/policy/test", test_policy)
}

fn custom(role: CustomRole) -> RoleView {
    RoleView { description: role.description, scopes: role.scopes, custom: true }
}

async fn list_roles(
    grant: Granted<ListRoles>,
    State(identity): State<Identity>,
) -> Result<Json<BTreeMap<String, RoleView>>, ApiError> {
    let built_in = policy::ROLES.iter().map(|(name, texts)| {
        let scopes = texts.iter().filter_map(|text| text.parse().ok()).collect();
        ((*name).to_owned(), RoleView { description: String::new(), scopes, custom: false })
    });
    let own = identity.manage.roles(&grant).await?;
    Ok(Json(built_in.chain(own.into_iter().map(|role| (role.name.clone(), custom(role)))).collect()))
}

#[derive(Debug, Deserialize)]
struct RoleBody {
    #[serde(default = "no_description")]
    description: Text<RoleDescription>,
    scopes: Vec<String>,
}

fn no_description() -> Text<RoleDescription> {
    Text::fixed("")
}

impl Screened for RoleBody {
    fn texts(&self, look: &mut dyn FnMut(Place, &str)) {
        look(Place::FreeText, &self.description);
        self.scopes.iter().for_each(|scope| look(Place::Id, scope));
    }
}

async fn put_role(
    grant: Granted<PutRole>,
    State(identity): State<Identity>,
    JsonBody(body): JsonBody<RoleBody>,
) -> Result<Json<RoleView>, ApiError> {
    let scopes = scopes(&body.scopes)?;
    Ok(Json(custom(identity.manage.put_role(&grant, body.description.into_string(), scopes).await?)))
}

async fn delete_role(
    grant: Granted<DeleteRole>,
    State(identity): State<Identity>,
) -> Result<Json<Operation>, ApiError> {
    identity.manage.delete_role(&grant).await?;
    Ok(Json(Operation::done("Role deleted; whoever held it holds nothing by it any more", None)))
}

#[derive(Debug, Deserialize)]
struct PolicyQuestion {
    principal: Text<Principal>,
    scope: Option<Text<ScopeText>>,
    action: Option<Text<ActionName>>,
}

impl Screened for PolicyQuestion {
    fn texts(&self, look: &mut dyn FnMut(Place, &str)) {
        look(Place::Id, &self.principal);
        self.scope.iter().for_each(|scope| look(Place::Id, scope));
        self.action.iter().for_each(|action| look(Place::Id, action));
    }
}

async fn test_policy(
    grant: Granted<TestPolicy>,
    State(identity): State<Identity>,
    State(state): State<crate::state::AppState>,
    JsonBody(body): JsonBody<PolicyQuestion>,
) -> Result<Json<Explanation>, ApiError> {
    let needs = match (&body.scope, &body.action) {
        (Some(wanted), None) => {
            let known = scope::KNOWN.iter().find(|known| ***known == **wanted);
            Needs::Scope(known.ok_or_else(|| {
                ApiError::field(&["body", "scope"], "scope", "There is no scope of this name.")
            })?)
        }
        (None, Some(action)) => state.guard.needs_to_execute(action),
        _ => return Err(ApiError::field(&["body"], "choice", "Name exactly one of scope and action.")),
    };
    Ok(Json(identity.manage.explain(&grant, &body.principal, &needs)?))
}
