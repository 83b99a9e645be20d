//! Refuses clients and principals that are banned. Who is banned, and for how long, is the engine's to say (`interlock_engine::bans`).

use axum::http::StatusCode;
use interlock_engine::BanRow;
use interlock_engine::auth::{Caller, Origin};
use interlock_engine::bans::Cause;

use crate::error::ApiError;
use crate::state::AppState;

/// What a client without an end to wait for is told: look again tomorrow.
const ENDLESS: u64 = 86_400;

/// Refuses a banned address.
pub(super) fn check(state: &AppState, origin: &Origin) -> Result<(), ApiError> {
    state.bans.standing(origin.client_ip).map_or(Ok(()), |ban| Err(refusal(state, &ban)))
}

/// Refuses a banned principal, wherever it comes from.
pub(crate) fn check_principal(state: &AppState, caller: &Caller) -> Result<(), ApiError> {
    state.bans.standing_of(caller).map_or(Ok(()), |ban| Err(refusal(state, &ban)))
}

/// Bans an address that went on after being told to wait; `refused` is what it gets if it may not be banned.
pub(super) fn hammering(state: &AppState, origin: &Origin, refused: ApiError) -> ApiError {
    match state.bans.impose(origin, Cause::Hammering) {
        Some(ban) => {
            let refusal = refusal(state, &ban);
            keep(state, origin, ban);
            refusal
        }
        None => refused,
    }
}

/// Counts an attack that no honest client sends.
pub(crate) fn strike(state: &AppState, origin: &Origin, caller: Option<&Caller>) {
    if let Some(ban) = state.bans.strike(origin, caller) {
        keep(state, origin, ban);
    }
}

/// Stores a ban behind the request; memory refuses already.
fn keep(state: &AppState, origin: &Origin, ban: BanRow) {
    let (bans, origin) = (state.bans.clone(), origin.clone());
    state.tasks.spawn(async move { bans.keep(ban, origin).await });
}

fn refusal(state: &AppState, ban: &BanRow) -> ApiError {
    metrics::counter!("orchestrator_blocked_requests_total", "reason" => "client_blocked").increment(1);
    let rest = ban.ends_at.map_or(ENDLESS, |end| end.since(state.clock.now()).as_secs() + 1);
    ApiError::client(
        StatusCode::FORBIDDEN,
        "client_blocked",
        "Requests of this client are refused for now. Wait, then try again.",
    )
    .after(rest)
}
