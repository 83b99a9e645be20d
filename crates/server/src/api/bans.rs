//! Networks that are refused.

use std::time::Duration;

use axum::extract::State;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use interlock_engine::BanRow;
use interlock_engine::bans::Bans;
use interlock_model::action::{AddBan, ListBans, RemoveBan};
use interlock_model::screen::Place;
use interlock_model::text::{BanReason, Network, Text};
use interlock_model::wire::{BanView, Operation};
use serde::Deserialize;

use crate::body::{Json, JsonBody};
use crate::error::ApiError;
use crate::perimeter::Screened;
use crate::routes::{ApiRouter, Granted};

pub(super) fn routes(api: ApiRouter) -> ApiRouter {
    api.route(Method::GET, "/bans", list_bans).route(Method::POST, "/bans", add_ban).route(
        Method::DELETE,
        "/bans/{network}",
        remove_ban,
    )
}

fn view(row: BanRow) -> BanView {
    BanView {
        network: row.network,
        reason: row.reason,
        added_by: row.added_by,
        created_at: row.created_at,
        ends_at: row.ends_at,
        offences: row.offences,
    }
}

async fn list_bans(
    grant: Granted<ListBans>,
    State(bans): State<Bans>,
) -> Result<Json<Vec<BanView>>, ApiError> {
    Ok(Json(bans.list(&grant).await?.into_iter().map(view).collect()))
}

#[derive(Debug, Deserialize)]
struct NewBan {
    network: Text<Network>,
    reason: Text<BanReason>,
    seconds: Option<u64>,
}

impl Screened for NewBan {
    fn texts(&self, look: &mut dyn FnMut(Place, &str)) {
        look(Place::Id, &self.network);
        look(Place::FreeText, &self.reason);
    }
}

async fn add_ban(
    grant: Granted<AddBan>,
    State(bans): State<Bans>,
    JsonBody(body): JsonBody<NewBan>,
) -> Result<Response, ApiError> {
    let length = body.seconds.map(Duration::from_secs);
    let row = bans.add(&grant, &body.network, &body.reason, length).await?;
    Ok((StatusCode::CREATED, Json(view(row))).into_response())
}

async fn remove_ban(
    grant: Granted<RemoveBan>,
    State(bans): State<Bans>,
) -> Result<Json<Operation>, ApiError> {
    bans.remove(&grant).await?;
    Ok(Json(Operation::done("The network is served again", None)))
}
