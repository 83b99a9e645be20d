//! What handlers can reach: services, never storage.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::body::Bytes;
use axum::extract::FromRef;
use interlock_engine::audit::Recorder;
use interlock_engine::auth::Guard;
use interlock_engine::bans::Bans;
use interlock_engine::devices::Devices;
use interlock_engine::evidence::Evidence;
use interlock_engine::executions::Executions;
use interlock_engine::identity::Identity;
use interlock_engine::invitations::Invitations;
use interlock_engine::orchestrator::Orchestrator;
use interlock_engine::reads::Reads;
use interlock_engine::resets::Resets;
use interlock_engine::users::Users;
use interlock_model::{Clock, Entropy};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::task::TaskTracker;

use crate::config::ServerConfig;
use crate::perimeter::Answers;
use crate::perimeter::added::AddedRules;
use crate::perimeter::limits::Limiter;
use crate::tls::Keeper;

/// The services of one server. Cheap to clone: every request does so several times.
#[derive(Clone)]
pub struct AppState(Arc<Shared>);

struct Shared {
    services: Services,
    answers: Answers,
    document: OnceLock<Bytes>,
}

impl AppState {
    /// Shares the services.
    pub fn new(services: Services) -> Self {
        Self(Arc::new(Shared { services, answers: Answers::default(), document: OnceLock::new() }))
    }

    /// The same services with a change.
    #[must_use]
    pub fn edited(&self, edit: impl FnOnce(&mut Services)) -> Self {
        let mut services = Services::clone(self);
        edit(&mut services);
        Self::new(services)
    }

    /// The API document as strangers get it: it never changes, and making it costs more than any other answer to them.
    pub(crate) fn document(&self, make: impl FnOnce() -> Bytes) -> Bytes {
        self.0.document.get_or_init(make).clone()
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
    /// Who acts.
    pub identity: Identity,
    /// Reads the audit trail.
    pub evidence: Evidence,
    /// The device, on a server that has one.
    pub device: Option<DeviceServices>,
    /// Tasks, on a server that has no device of its own.
    pub orchestrator: Option<Orchestrator>,
    /// People.
    pub users: Users,
    /// Networks that are refused.
    pub bans: Bans,
    /// Records of what the perimeter refuses.
    pub recorder: Recorder,
    /// Limits of addresses and principals.
    pub limits: Arc<Limiter>,
    /// Rules that the administrator adds to those of the program.
    pub added: Arc<AddedRules>,
    /// Settings.
    pub config: Arc<ServerConfig>,
    /// The certificates in force, where the listener speaks TLS.
    pub certificates: Option<Arc<Keeper>>,
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

/// The services of a device.
#[derive(Clone, Debug)]
pub struct DeviceServices {
    /// Executes actions.
    pub executions: Executions,
    /// Reads runs.
    pub reads: Reads,
    /// The device as a whole.
    pub devices: Devices,
}

impl Services {
    /// The orchestrator, for its own routes.
    pub(crate) fn orchestrator(&self) -> &Orchestrator {
        self.orchestrator.as_ref().expect("routes of tasks are added only on a server that has them")
    }

    fn device(&self) -> &DeviceServices {
        self.device.as_ref().expect("routes of a device are added only on a server that has one")
    }
}

impl std::fmt::Debug for AppState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AppState")
    }
}

macro_rules! from_state {
    ($($type:ty: $state:ident => $get:expr),* $(,)?) => {$(
        impl FromRef<AppState> for $type {
            fn from_ref($state: &AppState) -> Self {
                $get.clone()
            }
        }
    )*};
}

impl FromRef<AppState> for Invitations {
    fn from_ref(state: &AppState) -> Self {
        Self::new(state.users.clone(), Arc::clone(&state.identity.sessions))
    }
}

impl FromRef<AppState> for Resets {
    fn from_ref(state: &AppState) -> Self {
        let Identity { sessions, sign_ins, .. } = &state.identity;
        Self::new(state.users.clone(), Arc::clone(sessions), Arc::clone(sign_ins))
    }
}

from_state! {
    Identity: state => state.identity,
    Evidence: state => state.evidence,
    Executions: state => state.device().executions,
    Reads: state => state.device().reads,
    Devices: state => state.device().devices,
    Orchestrator: state => state.orchestrator(),
    Users: state => state.users,
    Bans: state => state.bans,
    Arc<ServerConfig>: state => state.config,
    Arc<dyn Clock>: state => state.clock,
}
