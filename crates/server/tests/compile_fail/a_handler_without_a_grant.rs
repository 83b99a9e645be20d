//! A handler that does not say what its caller must be allowed to do cannot become a route.

use axum::http::Method;
use interlock_server::routes::ApiRouter;

async fn open_door() -> &'static str {
    "anyone"
}

pub fn routes(api: ApiRouter) -> ApiRouter {
    api.route(Method::GET, "/door", open_door)
}

fn main() {}
