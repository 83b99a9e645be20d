//! What a backup means to an installation: when the last one was taken and tried, and what is true after one was put back.
//!
//! A copy is a past. What was revoked, used up or carried out since is not in it, so [`settle`] ends whatever might come back to
//! life: it knows no case in which something that was dead lives again, and none in which something that may have been done is
//! done once more. See 0027 in docs/adr.
//!
//! Files, keys and formats are not here: they are the command line's.

use std::sync::Arc;
use std::time::Duration;

use interlock_model::Timestamp;
use interlock_model::run::{RunError, RunState};
use interlock_model::schedule::Schedule;
use interlock_store::identity::{self, Document, Put};
use interlock_store::{Error, RunEnd, Store, Tx, UserRow};
use metrics::gauge;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::Ambient;
use crate::auth::documents::{Agent, ApiKey, Invitation, Reset};
use crate::auth::{Db, Recorded, SystemPermit};
use crate::revocations::{self, Ended, Revocations};

/// How often the times of the last backup are looked up.
const LOOKING: Duration = Duration::from_secs(15);
/// Due times that are moved together.
const BATCH: u32 = 500;
/// What is said of a run that was under way in the copy.
const WHY: &str = "the installation was restored from a backup in which this run was not over; what became of it is not known";

/// When the last backup was taken, and when one was last put back for a trial. Unset: never.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Backups {
    /// The copy holds what was committed then.
    pub taken_at: Option<Timestamp>,
    /// A copy was proven whole then.
    pub tried_at: Option<Timestamp>,
}

impl Document for Backups {
    const KIND: &'static str = "backups";

    fn id(&self) -> String {
        "last".to_owned()
    }
}

/// When the last ones were.
///
/// # Errors
/// The storage's.
pub async fn last(store: &dyn Store) -> Result<Backups, Error> {
    let found = identity::read::<Backups>(store, "last").await?;
    Ok(found.map(|found| found.document).unwrap_or_default())
}

async fn change(tx: &mut dyn Tx, change: impl FnOnce(&mut Backups) + Send) -> Result<(), Error> {
    let put = if let Some(mut found) = identity::get::<Backups>(tx, "last").await? {
        change(&mut found.document);
        identity::update(tx, &found).await?
    } else {
        let mut new = Backups::default();
        change(&mut new);
        identity::insert(tx, &new).await?
    };
    if put == Put::Done {
        Ok(())
    } else {
        Err(Error::Corrupt("a record changed under its own lock".to_owned()))
    }
}

/// Records that a copy of what was committed at `at` is on the disk under this digest of its content.
///
/// # Errors
/// The storage's.
pub async fn taken(
    db: &Db,
    permit: &SystemPermit,
    at: Timestamp,
    digest: &str,
    bytes: u64,
) -> Result<(), Error> {
    let details = json!({ "taken_at": at, "sha256": digest, "bytes": bytes });
    let proof = permit.acting("backup.created", None);
    db.write(&proof, move |tx| {
        Box::pin(async move {
            change(tx, |last| last.taken_at = last.taken_at.max(Some(at))).await?;
            Ok::<_, Error>(Recorded { value: (), details })
        })
    })
    .await
}

/// Records that a copy was proven whole.
///
/// # Errors
/// The storage's.
pub async fn tried(db: &Db, permit: &SystemPermit, taken_at: Timestamp, now: Timestamp) -> Result<(), Error> {
    let proof = permit.acting("backup.tried", None);
    db.write(&proof, move |tx| {
        Box::pin(async move {
            change(tx, |last| last.tried_at = Some(now)).await?;
            Ok::<_, Error>(Recorded { value: (), details: json!({ "taken_at": taken_at }) })
        })
    })
    .await
}

/// Puts the times of the last backup into the metrics until dropped. Run it as a background task.
pub async fn tell_forever(store: Arc<dyn Store>) {
    loop {
        match last(&*store).await {
            Ok(last) => {
                gauge!("interlock_backup_last_success_timestamp_seconds").set(seconds(last.taken_at));
                gauge!("interlock_backup_last_drill_timestamp_seconds").set(seconds(last.tried_at));
            }
            Err(error) => tracing::debug!(%error, "the time of the last backup could not be read"),
        }
        tokio::time::sleep(LOOKING).await;
    }
}

#[expect(clippy::cast_precision_loss, reason = "seconds since 1970 are exact in a double")]
fn seconds(at: Option<Timestamp>) -> f64 {
    at.map_or(0.0, |at| (at.micros() / 1_000_000) as f64)
}

/// What is known about a copy that was put back.
#[derive(Debug, Default)]
pub struct Past {
    /// It holds what was committed then.
    pub taken_at: Timestamp,
    /// What was dead later than that, from elsewhere.
    pub dead: Option<Revocations>,
    /// API keys that the copy calls alive stay so. Only for somebody who knows what was revoked since.
    pub keep_api_keys: bool,
}

/// What was ended after a copy was put back.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Settled {
    /// Runs of actions that are uncertain now.
    pub runs: u64,
    /// Runs of tasks that are uncertain now.
    pub task_runs: u64,
    /// Tasks whose due times since the copy are not made up for.
    pub due_tasks: u64,
    /// API keys that ended.
    pub api_keys: u64,
    /// Invitations that ended.
    pub invitations: u64,
    /// What the document from elsewhere ended.
    pub imported: Option<Ended>,
}

/// Makes an installation that was put back from a copy safe to start: every token and session of before ends, API keys and
/// invitations too; runs that were not over are uncertain, and their idempotency keys stay taken; what fell due since the copy
/// is left out. One write with its record.
///
/// # Errors
/// [`Error::Unwritable`] when the clock is before the copy: then tokens of before could not be told from later ones. The
/// storage's. Then nothing was changed.
pub async fn settle(db: &Db, permit: &SystemPermit, ambient: &Ambient, past: Past) -> Result<Settled, Error> {
    let now = ambient.clock.now();
    if now < past.taken_at {
        return Err(Error::Unwritable(format!(
            "the clock of this machine says {now}, which is before the copy was taken ({}); set it right first",
            past.taken_at
        )));
    }
    let open: Vec<_> = db.read().open_runs().await?.into_iter().map(|run| run.id).collect();
    let keys = identity::list::<ApiKey>(db.read(), None).await?;
    let invitations = identity::list::<Invitation>(db.read(), None).await?;
    let resets = identity::list::<Reset>(db.read(), None).await?;
    let proof = permit.acting("backup.restored", None);
    db.write(&proof, move |tx| {
        Box::pin(async move {
            let mut done = Settled::default();
            if let Some(dead) = past.dead {
                done.imported = Some(revocations::apply(tx, dead, now).await?);
            }
            revocations::cut_off(tx, now, "restored").await?;
            for key in keys.into_iter().filter(|_| !past.keep_api_keys) {
                done.api_keys += u64::from(end_api_key(tx, &key.id, now).await?);
            }
            for mut invitation in invitations.into_iter().filter(|found| found.is_open(now)) {
                invitation.document.revoked_at = Some(now);
                stored(identity::update(tx, &invitation).await?)?;
                done.invitations += 1;
            }
            for mut reset in resets.into_iter().filter(|found| found.is_open(now)) {
                reset.document.ended_at = Some(now);
                stored(identity::update(tx, &reset).await?)?;
            }
            for id in open {
                done.runs += u64::from(tx.finish_run(&uncertain(id, now)).await?);
            }
            done.task_runs = tx.orchestrator().abandon_queue(WHY, now).await?;
            done.due_tasks = leave_out(tx, now).await?;
            let details = json!({ "taken_at": past.taken_at, "ended": &done });
            Ok::<_, Error>(Recorded { value: done, details })
        })
    })
    .await
}

fn stored(put: Put) -> Result<(), Error> {
    if put == Put::Done {
        Ok(())
    } else {
        Err(Error::Corrupt("a record changed under its own lock".to_owned()))
    }
}

async fn end_api_key(tx: &mut dyn Tx, id: &str, now: Timestamp) -> Result<bool, Error> {
    // Read again: the imported document may have ended it.
    let Some(mut key) = identity::get::<ApiKey>(tx, id).await? else { return Ok(false) };
    if key.revoked_at.is_some() || key.expires_at <= now {
        return Ok(false);
    }
    key.document.revoked_at = Some(now);
    stored(identity::update(tx, &key).await?)?;
    Ok(true)
}

fn uncertain(id: interlock_model::RunId, now: Timestamp) -> RunEnd {
    RunEnd {
        id,
        state: RunState::Uncertain,
        result: None,
        error: Some(RunError { code: "run_uncertain".to_owned(), message: WHY.to_owned() }),
        started_at: None,
        finished_at: now,
        duration_ms: None,
    }
}

/// Moves what is due by now to its next time.
async fn leave_out(tx: &mut dyn Tx, now: Timestamp) -> Result<u64, Error> {
    let mut moved = 0;
    loop {
        let due = tx.orchestrator().due(now, BATCH).await?;
        if due.is_empty() {
            return Ok(moved);
        }
        let later: Vec<_> = due
            .iter()
            .map(|due| {
                let schedule = Schedule::parse(due.kind, due.expression.as_deref(), &due.zone, due.anchor);
                (due.task, due.due_at, schedule.ok().and_then(|schedule| schedule.next_after(now)))
            })
            .collect();
        moved += later.len() as u64;
        tx.orchestrator().move_due(&later).await?;
    }
}

/// Accounts out of a copy: names and what proves them, as hashes.
#[derive(Debug, Default)]
pub struct Credentials {
    /// People.
    pub users: Vec<UserRow>,
    /// Agents.
    pub agents: Vec<Agent>,
}

/// What came back.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct CameBack {
    /// Names of people that were not here.
    pub users: Vec<String>,
    /// Ids of agents that were not here.
    pub agents: Vec<String>,
    /// Accounts that are here already and stay as they are.
    pub kept: usize,
}

/// Reads the accounts of a copy.
///
/// # Errors
/// The storage's.
pub async fn credentials(store: &dyn Store) -> Result<Credentials, Error> {
    let agents = identity::list::<Agent>(store, None).await?;
    Ok(Credentials {
        users: store.users().await?,
        agents: agents.into_iter().map(|agent| agent.document).collect(),
    })
}

/// Brings back accounts that are not here, with their hashes. Accounts that are here stay as they are; tokens of before count for
/// none of those that come back.
///
/// # Errors
/// The storage's; then nothing came back.
pub async fn bring_back(
    db: &Db,
    permit: &SystemPermit,
    ambient: &Ambient,
    from: Credentials,
) -> Result<CameBack, Error> {
    let now = ambient.clock.now();
    let proof = permit.acting("backup.credentials_restored", None);
    db.write(&proof, move |tx| {
        Box::pin(async move {
            let mut back = CameBack::default();
            for user in from.users {
                let user = UserRow { tokens_valid_from: now, updated_at: now, version: 1, ..user };
                if tx.user(&user.name).await?.is_none() && tx.insert_user(&user).await? {
                    back.users.push(user.name);
                } else {
                    back.kept += 1;
                }
            }
            for agent in from.agents {
                let agent = Agent { tokens_valid_from: now, updated_at: now, ..agent };
                let id = agent.id.to_string();
                let here = identity::get::<Agent>(tx, &id).await?.is_some();
                if !here && identity::insert(tx, &agent).await? == Put::Done {
                    back.agents.push(id);
                } else {
                    back.kept += 1;
                }
            }
            let details = json!(&back);
            Ok::<_, Error>(Recorded { value: back, details })
        })
    })
    .await
}
