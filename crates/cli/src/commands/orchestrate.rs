//! The orchestrator's background work in this process: schedule, worker, retention. Wired here, begun and ended with the server.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use interlock_engine::agents::Agents;
use interlock_engine::auth::SystemPermit;
use interlock_engine::news::News;
use interlock_engine::orchestrator::{EventMirror, Orchestrator};
use interlock_tools::device::Link;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::ServerSettings;
use crate::installation::{self, Parts};
use crate::shared::{Mirror, WorkHerald};
use crate::tools::{self, Made};

/// File in the state folder whose lock says that a server uses it.
const LOCK: &str = "server.lock";
/// File in the state folder with the name under which this server's workers are known.
const PLACE: &str = "server-id";

/// The orchestrator of one process.
pub(crate) struct Orchestrating {
    pub(crate) orchestrator: Orchestrator,
    tools: Made,
    mirror: Option<Arc<Mirror>>,
    place: String,
    stop: CancellationToken,
    tasks: TaskTracker,
    /// Held as long as the process lives.
    _lock: File,
}

impl Orchestrating {
    /// Wires it; nothing runs before [`Orchestrating::begin`]. `own` is the device of this process, if it has one.
    ///
    /// # Errors
    /// When another server uses the state folder, or it cannot be written.
    pub(crate) fn new(
        state: &Path,
        settings: &ServerSettings,
        parts: &Parts,
        own: Option<(String, Arc<dyn Link>)>,
    ) -> anyhow::Result<Self> {
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(state.join(LOCK))
            .with_context(|| format!("open {LOCK} in the state folder"))?;
        if lock.try_lock().is_err() {
            bail!("another server uses the state folder {}; give each its own with --state", state.display());
        }
        let place = installation::keep(&state.join(PLACE), || {
            Ok(interlock_model::id::random_hex(&*parts.ambient.entropy, 8).into_bytes())
        })?;
        let place = String::from_utf8_lossy(&place).trim().to_owned();
        if place.is_empty() || !place.bytes().all(|c| c.is_ascii_alphanumeric()) {
            bail!("{PLACE} in the state folder is damaged; delete it");
        }
        let tools = tools::make(settings, own)?;
        let mirror = match (&settings.redis, &settings.events_mirror) {
            (Some(redis), Some((name, length))) => Some(Arc::new(Mirror::new(redis, name, *length)?)),
            _ => None,
        };
        let news = parts.told.as_ref().map(|told| Arc::new(WorkHerald(told.work.clone())) as Arc<dyn News>);
        let orchestrator = Orchestrator::new(
            parts.db.clone(),
            parts.ambient.clone(),
            Arc::clone(&parts.principals),
            Arc::clone(&tools.toolbox),
            settings.orchestrator.clone(),
            SystemPermit::root("system"),
            news,
        );
        let addresses: Vec<String> = tools.toolbox.all().into_keys().collect();
        interlock_engine::orchestrator::metrics::describe(&addresses);
        Ok(Self {
            orchestrator,
            tools,
            mirror,
            place,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            _lock: lock,
        })
    }

    /// Begins to work.
    pub(crate) fn begin(&self, parts: &Parts, agents: Agents, drain: Duration) {
        if let Some(told) = &parts.told {
            // Not waited for: it listens until the process ends.
            tokio::spawn(told.work.clone().keep());
            tokio::spawn(self.orchestrator.clone().hear());
        }
        let (one, stop) = (|| self.orchestrator.clone(), || self.stop.clone());
        self.tasks.spawn(one().schedule(stop()));
        self.tasks.spawn(one().forget(stop()));
        let (orchestrator, place, stopping) = (one(), self.place.clone(), stop());
        self.tasks.spawn(async move { orchestrator.work(&place, drain, stopping).await });
        let (orchestrator, place, stopping) = (one(), self.place.clone(), stop());
        let courier = Arc::clone(&self.tools.courier);
        self.tasks.spawn(async move { orchestrator.tell_outcomes(agents, courier, &place, stopping).await });
        if let Some(mirror) = &self.mirror {
            let mirror: Arc<dyn EventMirror> = Arc::clone(mirror) as _;
            self.tasks.spawn(one().mirror(mirror, stop()));
        }
        self.tools.begin(&self.tasks, &self.stop);
        self.tasks.close();
    }

    /// Takes no more runs, and waits for those that run within the drain time.
    pub(crate) async fn end(&self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}
