//! What handlers can reach: services, never storage.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::FromRef;
use interlock_engine::auth::{Guard, Sessions};
use interlock_engine::devices::Devices;
use interlock_engine::executions::Executions;
use interlock_engine::reads::Reads;
use interlock_engine::users::Users;
use interlock_model::{Clock, Entropy};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::task::TaskTracker;

use crate::config::ServerConfig;
use crate::perimeter::Answers;
use crate::perimeter::limits::Limiter;

/// The services of one server. Cheap to clone: every request does so several times.
#[derive(Clone)]
pub struct AppState(Arc<Shared>);

struct Shared {
    services: Services,
    answers: Answers,
}

impl AppState {
    /// Shares the services.
    pub fn new(services: Services) -> Self {
        Self(Arc::new(Shared { services, answers: Answers::default() }))
    }

    /// The same services with a change.
    #[must_use]
    pub fn edited(&self, edit: impl FnOnce(&mut Services)) -> Self {
        let mut services = Services::clone(self);
        edit(&mut services);
        Self::new(services)
    }

    /// The metrics of answers.
    pub(crate) fn answers(&self) -> &Answers {
        &self.0.answers
    }
}

impl std::ops::Deref for AppState {
    type Target = Services;

    fn deref(&self) -> &Services {
        &self.0.services
    }
}

/// The services themselves.
#[derive(Clone)]
pub struct Services {
    /// Decides.
    pub guard: Arc<Guard>,
    /// Signs in and out.
    pub sessions: Arc<Sessions>,
    /// Executes actions.
    pub executions: Executions,
    /// Reads runs and the audit trail.
    pub reads: Reads,
    /// The device as a whole.
    pub devices: Devices,
    /// People.
    pub users: Users,
    /// Limits of addresses and principals.
    pub limits: Arc<Limiter>,
    /// Settings.
    pub config: Arc<ServerConfig>,
    /// Time of day.
    pub clock: Arc<dyn Clock>,
    /// Randomness, for request ids.
    pub entropy: Arc<dyn Entropy>,
    /// Where metrics are read.
    pub metrics: PrometheusHandle,
    /// Work that shutdown waits for.
    pub tasks: TaskTracker,
    /// When the server started.
    pub started: Instant,
}

impl std::fmt::Debug for AppState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AppState")
    }
}

macro_rules! from_state {
    ($($field:ident: $type:ty),* $(,)?) => {$(
        impl FromRef<AppState> for $type {
            fn from_ref(state: &AppState) -> Self {
                state.$field.clone()
            }
        }
    )*};
}

from_state! {
    sessions: Arc<Sessions>,
    executions: Executions,
    reads: Reads,
    devices: Devices,
    users: Users,
    config: Arc<ServerConfig>,
    clock: Arc<dyn Clock>,
}
