//! People's own accounts.

use axum::extract::State;
use axum::http::Method;
use axum::response::Response;
use interlock_engine::identity::Identity;
use interlock_model::action::ChangePassword;
use interlock_model::secret::Secret;
use serde::Deserialize;

use super::auth::login_answer;
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::routes::{ApiRouter, Granted};

pub(super) fn routes(api: ApiRouter) -> ApiRouter {
    api.route(Method::POST, "/auth/password", change_password)
}

#[derive(Debug, Deserialize)]
struct PasswordChange {
    current: Secret,
    new: Secret,
}

async fn change_password(
    grant: Granted<ChangePassword>,
    State(identity): State<Identity>,
    JsonBody(body): JsonBody<PasswordChange>,
) -> Result<Response, ApiError> {
    Ok(login_answer(identity.account.change_password(&grant, body.current, body.new).await?))
}
