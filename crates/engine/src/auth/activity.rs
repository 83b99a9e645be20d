//! Which scopes agents use, so that an unusual one is noticed.
//!
//! A scope that an agent has not used for [`QUIET`], though the agent has been there for longer, raises an event: a stolen
//! credential is often used for something else than its owner uses it for. Uses are kept in memory and stored in batches.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use interlock_model::Timestamp;
use interlock_model::action::Needs;
use interlock_model::policy::PrincipalKind;
use interlock_store::Error;
use interlock_store::identity::{self, Document, Versioned};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Caller, Db, Principals, Recorded, SystemPermit};
use crate::security::{self, Event};

/// A scope that was not used for this long is unusual.
const QUIET: Duration = Duration::from_hours(24 * 30);

/// When an agent last used each scope.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct ScopeUse {
    agent: String,
    scopes: BTreeMap<String, Timestamp>,
}

impl Document for ScopeUse {
    const KIND: &'static str = "scope_use";

    fn id(&self) -> String {
        self.agent.clone()
    }

    fn owner(&self) -> Option<String> {
        Some(self.agent.clone())
    }
}

/// Watches the scopes that agents use.
#[derive(Debug, Default)]
pub(super) struct Activity {
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    scopes: HashMap<String, BTreeMap<String, Timestamp>>,
    /// Agents with uses that are not stored yet.
    fresh: HashSet<String>,
}

impl Activity {
    fn used(&self) -> std::sync::MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what was stored.
    pub(super) async fn load(&self, db: &Db) -> Result<(), Error> {
        for stored in identity::list::<ScopeUse>(db.read(), None).await? {
            self.used().scopes.insert(stored.document.agent, stored.document.scopes);
        }
        Ok(())
    }

    /// Notes that an agent was permitted something; `true` if that was unusual.
    pub(super) fn note(
        &self,
        caller: &Caller,
        needs: &Needs,
        principals: &Principals,
        now: Timestamp,
    ) -> bool {
        let scope = match needs {
            _ if caller.kind() != PrincipalKind::Agent => return false,
            Needs::SignedIn | Needs::Person => return false,
            Needs::Scope(scope) => *scope,
            Needs::Execute { .. } => "devices:execute",
        };
        let mut used = self.used();
        let scopes = used.scopes.entry(caller.name().to_owned()).or_default();
        let before = scopes.get(scope).copied();
        // To the minute: busy agents cost no more than quiet ones.
        if before.is_some_and(|before| now.since(before) < Duration::from_mins(1)) {
            return false;
        }
        scopes.insert(scope.to_owned(), now);
        used.fresh.insert(caller.name().to_owned());
        drop(used);
        let since = before.or_else(|| {
            let agent = caller.name().parse().ok().and_then(|id| principals.agent(id))?;
            Some(agent.created_at)
        });
        let Some(since) = since.filter(|since| now.since(*since) > QUIET) else { return false };
        let details = json!({
            "scope": scope, "first_use": before.is_none(), "quiet_days": now.since(since).as_secs() / 86_400,
        });
        security::event(Event::ScopeUsageUnusual, Some(caller.name()), Some(caller.origin()), details);
        true
    }

    /// Stores what is new.
    pub(super) async fn store(&self, db: &Db, permit: &SystemPermit) -> Result<(), Error> {
        let fresh: Vec<ScopeUse> = {
            let mut used = self.used();
            let agents = std::mem::take(&mut used.fresh);
            agents
                .into_iter()
                .filter_map(|agent| {
                    let scopes = used.scopes.get(&agent)?.clone();
                    Some(ScopeUse { agent, scopes })
                })
                .collect()
        };
        if fresh.is_empty() {
            return Ok(());
        }
        let proof = permit.acting("agents.scopes_used", None);
        db.write(&proof, move |tx| {
            Box::pin(async move {
                let count = fresh.len();
                for document in fresh {
                    match identity::get::<ScopeUse>(tx, &document.agent).await? {
                        None => drop(identity::insert(tx, &document).await?),
                        Some(found) => {
                            let mut merged = found.document.scopes;
                            for (scope, at) in document.scopes {
                                let known = merged.entry(scope).or_insert(at);
                                *known = (*known).max(at);
                            }
                            let document = ScopeUse { agent: document.agent, scopes: merged };
                            identity::update(tx, &Versioned { document, version: found.version }).await?;
                        }
                    }
                }
                Ok::<_, Error>(Recorded { value: (), details: json!({ "agents": count }) })
            })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use interlock_model::policy::Grants;
    use interlock_model::time::{TestClock, TestEntropy};
    use interlock_model::{AgentId, scope};
    use interlock_store::Store;
    use interlock_store::sqlite::Sqlite;

    use super::*;
    use crate::Ambient;
    use crate::auth::Origin;
    use crate::auth::documents::Agent;

    fn at(days: u64) -> Timestamp {
        Timestamp::from_seconds(1_780_000_000).plus(Duration::from_hours(24 * days))
    }

    fn agent() -> Agent {
        Agent {
            id: AgentId::SYSTEM,
            name: "system".into(),
            scopes: scope::parse_all(&["admin"]).expect("scopes"),
            webhook_url: None,
            webhook_secrets: Vec::new(),
            disabled: false,
            secrets: vec![],
            keys: vec![],
            certificate_names: vec![],
            grant_types: vec![],
            key_method: None,
            waiting: None,
            tokens_valid_from: at(0),
            created_at: at(0),
            created_by: "system".into(),
            updated_at: at(0),
            last_seen_at: None,
        }
    }

    fn caller(kind: PrincipalKind) -> Caller {
        Caller {
            kind,
            name: AgentId::SYSTEM.to_string(),
            grants: Arc::new(Grants::default()),
            session: String::new(),
            auth_time: None,
            amr: vec![],
            expires_at: at(1000),
            origin: Origin {
                client_ip: [127, 0, 0, 1].into(),
                request_id: "r".into(),
                user_agent: String::new(),
                certificate: None,
                trace: None,
            },
        }
    }

    #[tokio::test]
    async fn a_scope_that_was_quiet_for_long_is_unusual_also_after_a_restart() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store: Arc<dyn Store> = Arc::new(Sqlite::open_in(folder.path()).expect("a database"));
        let ambient =
            Ambient { clock: Arc::new(TestClock::at(at(0))), entropy: Arc::new(TestEntropy::seeded(1)) };
        let principals = Principals::load(Arc::clone(&store), ambient.clone()).await.expect("principals");
        principals.put_agent(agent(), 1);
        let db = Db::new(store, ambient);
        let activity = Activity::default();
        let read = Needs::Scope("runs:read");
        let note = |activity: &Activity, needs: &Needs, day| {
            activity.note(&caller(PrincipalKind::Agent), needs, &principals, at(day))
        };

        assert!(!note(&activity, &read, 1), "a new agent does everything for the first time");
        assert!(!note(&activity, &read, 20));
        assert!(note(&activity, &Needs::Scope("audit:read"), 40), "never before, and the agent is old");
        assert!(!note(&activity, &Needs::SignedIn, 40));
        activity.store(&db, &SystemPermit::root("system")).await.expect("stored");

        let later = Activity::default();
        later.load(&db).await.expect("loaded");
        assert!(!note(&later, &read, 49));
        assert!(note(&later, &read, 80));
        assert!(
            !later.note(&caller(PrincipalKind::User), &read, &principals, at(200)),
            "people are not watched"
        );
    }
}
