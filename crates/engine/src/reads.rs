//! Looking at what is stored of runs: their events and files.

use std::path::PathBuf;
use std::sync::Arc;

use interlock_model::RunId;
use interlock_model::action::{CancelRun, ListRuns, ReadArtifact, ReadRun};
use interlock_model::device::EventKind;
use interlock_model::wire::{Artifact, Progress, RunView};
use interlock_store::{Error, Page, Paged, RunFilter, RunRow, StoredEvent};

use crate::auth::{Caller, Db, Permit};
use crate::devices::Device;
use crate::executions::final_event;
use crate::runs::{Hub, LiveRun};

/// Events read at once.
const EVENTS: u32 = 1_000;
/// Events of a run that had states only.
const PLAIN_EVENTS: u64 = 3;

/// Reads runs.
#[derive(Clone)]
pub struct Reads {
    db: Db,
    hub: Arc<Hub>,
    device: Arc<dyn Device>,
}

impl std::fmt::Debug for Reads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reads")
    }
}

/// A run whose events can be followed.
pub struct Following {
    db: Db,
    hub: Arc<Hub>,
    id: RunId,
    live: Option<Arc<LiveRun>>,
    after: u64,
    over: bool,
}

impl Reads {
    /// Wires the parts.
    pub fn new(db: Db, hub: Arc<Hub>, device: Arc<dyn Device>) -> Self {
        Self { db, hub, device }
    }

    /// Runs, newest first. Agents see their own, unless they administer.
    ///
    /// # Errors
    /// The storage's.
    pub async fn runs(
        &self,
        permit: &Permit<ListRuns>,
        filter: &RunFilter,
        page: Page,
    ) -> Result<Paged<RunView>, Error> {
        let caller = permit.caller();
        let mut filter = filter.clone();
        if !caller.grants().reaches_others() {
            filter.actor = Some(caller.name().to_owned());
        }
        let live = self.hub.under_way();
        let found = self.db.read().runs(&filter, page).await?;
        let items = found.items.into_iter().map(|run| live_view(live.get(&run.id), run)).collect();
        Ok(Paged { items, total: found.total })
    }

    /// One run with its progress and files.
    ///
    /// # Errors
    /// The storage's.
    pub async fn run(&self, permit: &Permit<ReadRun>) -> Result<Option<RunView>, Error> {
        self.view(permit.caller(), permit.target().run_id).await
    }

    /// The run that was asked to end.
    ///
    /// # Errors
    /// The storage's.
    pub async fn cancelled(&self, permit: &Permit<CancelRun>) -> Result<Option<RunView>, Error> {
        self.view(permit.caller(), permit.target().run_id).await
    }

    /// The run as a caller sees it who has just made it.
    pub fn present(&self, run: RunRow) -> RunView {
        live_view(self.hub.live(&run.id).as_ref(), run)
    }

    /// A run that the caller may see; one that it may not is as if it were not there.
    async fn visible(&self, caller: &Caller, id: RunId) -> Result<Option<RunRow>, Error> {
        Ok(self.db.read().run(id).await?.filter(|run| caller.reaches(&run.actor)))
    }

    async fn view(&self, caller: &Caller, id: RunId) -> Result<Option<RunView>, Error> {
        let live = self.hub.live(&id);
        let Some(run) = self.visible(caller, id).await? else { return Ok(None) };
        Ok(Some(match live {
            Some(live) => live_view(Some(&live), run),
            None => view(run, self.summary(id).await?),
        }))
    }

    async fn summary(&self, id: RunId) -> Result<(Option<Progress>, Vec<Artifact>), Error> {
        let (mut progress, mut artifacts, mut after) = (None, Vec::<Artifact>::new(), 0);
        loop {
            let events = self.db.read().run_events(id, after, EVENTS).await?;
            let Some(last) = events.last() else { return Ok((progress, artifacts)) };
            after = last.seq;
            for event in events {
                match event.kind {
                    EventKind::Progress { current, total, message } => {
                        progress = Some(Progress { current, total, message });
                    }
                    EventKind::Artifact { name, media_type, bytes } => {
                        artifacts.retain(|artifact| artifact.name != name);
                        artifacts.push(Artifact { name, media_type, bytes });
                    }
                    _ => {}
                }
            }
        }
    }

    /// Follows a run's events from behind `after`.
    ///
    /// # Errors
    /// The storage's.
    pub async fn follow(&self, permit: &Permit<ReadRun>, after: u64) -> Result<Option<Following>, Error> {
        let id = permit.target().run_id;
        let live = self.hub.live(&id);
        let caller = permit.caller();
        let known = live.is_some() && caller.grants().reaches_others();
        if !known && self.visible(caller, id).await?.is_none() {
            return Ok(None);
        }
        Ok(Some(Following { db: self.db.clone(), hub: Arc::clone(&self.hub), id, live, after, over: false }))
    }

    /// Where a file of a run lies, if the run and the file exist.
    ///
    /// # Errors
    /// The storage's.
    pub async fn artifact(&self, permit: &Permit<ReadArtifact>) -> Result<Option<PathBuf>, Error> {
        let target = permit.target();
        if self.visible(permit.caller(), target.run_id).await?.is_none() {
            return Ok(None);
        }
        Ok(self.device.artifact_path(&target.run_id, &target.name))
    }
}

/// A run that was under way before `run` was read, if it was.
fn live_view(live: Option<&Arc<LiveRun>>, run: RunRow) -> RunView {
    match live {
        // The report is taken after the state: it is never older than that.
        Some(live) => view(live.brought_up_to_date(run), live.report()),
        None => view(run, (None, Vec::new())),
    }
}

fn view(run: RunRow, (progress, artifacts): (Option<Progress>, Vec<Artifact>)) -> RunView {
    RunView {
        id: run.id,
        action: run.action,
        state: run.state,
        simulated: run.simulated,
        parameters: run.parameters,
        result: run.result,
        error: run.error,
        executed_by: run.actor,
        request_id: run.request_id,
        created_at: run.created_at,
        started_at: run.started_at,
        finished_at: run.finished_at,
        duration_seconds: run.duration_ms.map(|ms| ms / 1000.0),
        progress,
        artifacts,
    }
}

impl Following {
    /// Number of the last event given.
    pub fn after(&self) -> u64 {
        self.after
    }

    /// Whether every event was given.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// The next events at once, at most `limit`; empty when there are none yet.
    ///
    /// # Errors
    /// The storage's.
    pub async fn ready(&mut self, limit: u32) -> Result<Vec<StoredEvent>, Error> {
        if self.over {
            return Ok(Vec::new());
        }
        if let Some(live) = &self.live {
            let (events, over) = live.events(self.after, limit as usize);
            self.over = over;
            self.after = events.last().map_or(self.after, |event| event.seq);
            if over || !events.is_empty() || self.hub.live(&self.id).is_some() {
                return Ok(events);
            }
            // It was withdrawn before it began; what is stored tells the rest.
            self.live = None;
        }
        let mut events = self.db.read().run_events(self.id, self.after, limit).await?;
        let told =
            events.iter().any(|event| matches!(event.kind, EventKind::State { state } if state.is_final()));
        self.after = events.last().map_or(self.after, |event| event.seq);
        if told {
            self.over = true;
        } else if events.len() < limit as usize {
            let run = self.db.read().run(self.id).await?;
            if let Some(run) = run.filter(|run| run.state.is_final()) {
                self.over = true;
                // Nothing is stored of a run that had states only: queued, running and the last one.
                if events.is_empty()
                    && self.after < PLAIN_EVENTS
                    && self.db.read().run_events(self.id, 0, 1).await?.is_empty()
                {
                    self.after = PLAIN_EVENTS;
                    events.push(final_event(&run, PLAIN_EVENTS));
                }
            }
        }
        Ok(events)
    }

    /// The next events, waiting for them; empty only when the run is over.
    ///
    /// # Errors
    /// The storage's.
    pub async fn next(&mut self, limit: u32) -> Result<Vec<StoredEvent>, Error> {
        loop {
            let events = self.ready(limit).await?;
            if !events.is_empty() || self.over {
                return Ok(events);
            }
            match &self.live {
                Some(live) => live.beyond(self.after).await,
                None => tokio::time::sleep(std::time::Duration::from_millis(250)).await,
            }
        }
    }
}
