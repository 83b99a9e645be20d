//! The only way to add a route. A handler that has not stated what it needs does not compile.
//!
//! A handler begins with [`Granted<A>`]; the router reads `A` from the handler's own type and puts [`admit`] before it. What
//! is open to anyone is added with [`ApiRouter::public`] and a reason, and both end up in the route table, which feeds the API
//! document and the authorisation tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::{FromRequestParts, MatchedPath, Path, Request, State};
use axum::handler::Handler;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use interlock_engine::auth::{Guard, Origin, Permit};
use interlock_model::action::{Action, Recording};
use serde::de::DeserializeOwned;

use crate::error::ApiError;
use crate::perimeter;
use crate::state::AppState;

/// Why a route is open to anyone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PublicReason {
    /// Probes of load balancers and supervisors; tells nothing about the inside.
    Liveness,
    /// Where one signs in.
    SignIn,
    /// The name of the service.
    Banner,
    /// It decides by itself who may see it, as the contract has it (documents, metrics).
    DecidesItself,
    /// What browsers report, without being signed in; it changes nothing.
    Report,
}

/// Authority for `A`, handed to the handler.
pub struct Granted<A: Action>(Arc<Permit<A>>);

impl<A: Action> std::fmt::Debug for Granted<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Granted({})", A::NAME)
    }
}

impl<A: Action> Granted<A> {
    /// The permit, shared with work that outlives the request.
    pub fn into_permit(self) -> Arc<Permit<A>> {
        self.0
    }
}

impl<A: Action> std::ops::Deref for Granted<A> {
    type Target = Permit<A>;

    fn deref(&self) -> &Permit<A> {
        &self.0
    }
}

impl<A: Action, S: Send + Sync> FromRequestParts<S> for Granted<A> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        // `admit` has put it there; a route without it cannot be made.
        parts
            .extensions
            .remove::<Arc<Permit<A>>>()
            .map(Self)
            .ok_or_else(|| interlock_engine::auth::TokenError::Missing.into())
    }
}

/// Argument lists that begin with a grant.
#[diagnostic::on_unimplemented(
    message = "this handler does not say what the caller must be allowed to do",
    note = "make `Granted<SomeAction>` its first parameter, or use `.public(.., reason, ..)`"
)]
pub trait GrantFirst {
    /// What the handler needs.
    type Action: Action;
}

macro_rules! grant_first {
    ($($rest:ident),*) => {
        impl<M, A: Action, $($rest),*> GrantFirst for (M, Granted<A>, $($rest,)*) {
            type Action = A;
        }
    };
}
grant_first!();
grant_first!(T2);
grant_first!(T2, T3);
grant_first!(T2, T3, T4);
grant_first!(T2, T3, T4, T5);
grant_first!(T2, T3, T4, T5, T6);

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anyone, for this reason.
    Public(PublicReason),
    /// Whoever holds a permit for this action.
    Granted(&'static str),
}

/// A route as it is documented and tested.
#[derive(Debug, Clone)]
pub struct RouteEntry {
    /// Method.
    pub method: Method,
    /// Path template.
    pub path: &'static str,
    /// Who may use it.
    pub access: Access,
}

/// Collects routes and their table.
pub struct ApiRouter {
    state: AppState,
    routes: BTreeMap<&'static str, MethodRouter<AppState>>,
    table: Vec<RouteEntry>,
}

impl std::fmt::Debug for ApiRouter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.table).finish()
    }
}

fn filter(method: &Method) -> MethodFilter {
    MethodFilter::try_from(method.clone()).expect("routes use standard methods")
}

impl ApiRouter {
    /// No routes yet.
    pub fn new(state: AppState) -> Self {
        Self { state, routes: BTreeMap::new(), table: Vec::new() }
    }

    /// Adds a guarded route.
    ///
    /// # Panics
    /// At start-up, when method and path are taken.
    #[must_use]
    pub fn route<H, T, A>(self, method: Method, path: &'static str, handler: H) -> Self
    where
        H: Handler<T, AppState>,
        T: GrantFirst<Action = A> + 'static,
        A: Action<Target: DeserializeOwned>,
    {
        let guarded = on(filter(&method), handler).layer(from_fn_with_state(self.state.clone(), admit::<A>));
        self.add(method, path, Access::Granted(A::NAME), guarded)
    }

    /// Adds a route that is open to anyone.
    ///
    /// # Panics
    /// At start-up, when method and path are taken.
    #[must_use]
    pub fn public<H, T>(self, method: Method, path: &'static str, reason: PublicReason, handler: H) -> Self
    where
        H: Handler<T, AppState>,
        T: 'static,
    {
        let mut open = on(filter(&method), handler);
        if reason == PublicReason::SignIn && method == Method::POST {
            open = open.layer(from_fn(no_credentials_in_query));
        }
        self.add(method, path, Access::Public(reason), open)
    }

    fn add(
        mut self,
        method: Method,
        path: &'static str,
        access: Access,
        route: MethodRouter<AppState>,
    ) -> Self {
        assert!(
            !self.table.iter().any(|entry| entry.method == method && entry.path == path),
            "{method} {path} is registered twice"
        );
        self.table.push(RouteEntry { method, path, access });
        let merged = match self.routes.remove(path) {
            Some(existing) => existing.merge(route),
            None => route,
        };
        self.routes.insert(path, merged);
        self
    }

    /// Every route with who may use it.
    pub fn table(&self) -> &[RouteEntry] {
        &self.table
    }

    /// The finished router; `fallback` answers unknown paths, `wrong_method` known paths with another method.
    pub(crate) fn into_router(self) -> Router<AppState> {
        let table = Arc::new(self.table);
        let router =
            self.routes.into_iter().fold(Router::new(), |router, (path, route)| router.route(path, route));
        router.layer(axum::Extension(table))
    }
}

/// The token of a request: one `Authorization` header with the Bearer scheme (RFC 6750 section 2.1), or none.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (first, second) = (values.next()?, values.next());
    // Two headers: a proxy and we could read different ones. An empty token is refused like any wrong one.
    if second.is_some() {
        return Some("");
    }
    let text = first.to_str().unwrap_or("");
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Some(token.trim()),
        _ => Some(""),
    }
}

/// Records the end of a permitted request even if the client hangs up or the handler panics.
struct Closing<A: Action> {
    guard: Arc<Guard>,
    permit: Arc<Permit<A>>,
    /// Unknown until there is an answer.
    status: Option<u16>,
}

impl<A: Action> Closing<A> {
    fn answered(&mut self, status: u16) {
        self.status = Some(status);
    }
}

impl<A: Action> Drop for Closing<A> {
    fn drop(&mut self) {
        // The use case has a task of its own: it records what became of it, whether or not anybody waits.
        if A::GOES_ON && self.status.is_none() && !std::thread::panicking() {
            return;
        }
        // 499: the client went away before the answer.
        let status = self.status.unwrap_or(if std::thread::panicking() { 500 } else { 499 });
        self.guard.close(&self.permit, status);
    }
}

async fn no_credentials_in_query(request: Request, next: Next) -> Result<Response, ApiError> {
    if let Some(origin) = request.extensions().get::<Arc<Origin>>() {
        crate::query::refuse_credentials(request.uri(), origin)?;
    }
    Ok(next.run(request).await)
}

async fn admit<A: Action<Target: DeserializeOwned>>(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let (mut parts, body) = request.into_parts();
    let origin =
        parts.extensions.get::<Arc<Origin>>().cloned().ok_or_else(|| ApiError::internal(&Misplaced))?;
    let caller = state.guard.authenticate(bearer(&parts.headers), &origin)?;
    if !state.limits.is_exempt(parts.uri.path()) {
        perimeter::check_principal(&state, &caller)?;
    }
    if state.limits.counts_for_principal(parts.uri.path()) {
        let endpoint =
            parts.extensions.get::<MatchedPath>().map_or(perimeter::UNMATCHED, MatchedPath::as_str);
        state.limits.admit_principal(caller.name(), endpoint, &origin).await?;
    }
    let target = Path::<A::Target>::from_request_parts(&mut parts, &()).await;
    let Ok(Path(target)) = target else {
        // Whoever may not even ask is told so first; a target that cannot exist is not found.
        return Err(ApiError::client(axum::http::StatusCode::NOT_FOUND, "not_found", "Not found"));
    };
    let permit = Arc::new(state.guard.permit::<A>(&caller, target)?);
    if parts.method != Method::GET {
        crate::query::refuse_credentials(&parts.uri, &origin)?;
    }
    parts.extensions.insert(Arc::clone(&permit));
    parts.extensions.insert(caller);
    let mut closing = Closing { guard: Arc::clone(&state.guard), permit, status: None };
    let request = Request::from_parts(parts, body);
    let handler = async move {
        let answer = next.run(request).await;
        closing.answered(answer.status().as_u16());
        answer
    };
    if A::RECORDING == Recording::Read || A::GOES_ON {
        return Ok(handler.await);
    }
    // What changes something is carried to its end, and recorded, whether or not the client waits for it.
    Ok(state.tasks.spawn(handler).await.unwrap_or_else(|panic| ApiError::internal(&panic).into_response()))
}

#[derive(Debug, thiserror::Error)]
#[error("a guarded route was reached without the perimeter")]
struct Misplaced;
