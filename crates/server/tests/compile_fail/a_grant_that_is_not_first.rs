//! The grant comes first, where nobody overlooks it.

use axum::extract::State;
use axum::http::Method;
use interlock_engine::devices::Devices;
use interlock_model::action::EmergencyStop;
use interlock_server::routes::{ApiRouter, Granted};

async fn late(State(_): State<Devices>, _: Granted<EmergencyStop>) -> &'static str {
    "late"
}

pub fn routes(api: ApiRouter) -> ApiRouter {
    api.route(Method::POST, "/late", late)
}

fn main() {}
