//! Everybody who may act and everything that was revoked, in memory and kept current with the database.
//!
//! A server reads what has changed since it last looked, so a change by another server is in force here within one period of
//! [`Principals::watch`]. When the database has not answered for [`STALE`], credentials are no longer taken: nobody can know
//! any more what was revoked.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use interlock_model::policy::CustomRoles;
use interlock_model::{AgentId, Timestamp};
use interlock_store::identity::{Document, Record, Versioned, document};
use interlock_store::{Error, Store, UserRow};

use tokio::time::Instant;

use super::documents::{Agent, ApiKey, CustomRole, Cutoff, Issuer, PublicKey, SecondFactors, Session};
use crate::Ambient;
use crate::news::{News, Waker};

/// Without news for longer than this, in-memory knowledge of revocations is too old to rely on.
pub(super) const STALE: Duration = Duration::from_secs(30);
/// Rounds of watching after which what has expired is dropped from memory.
const FORGETTING: u32 = 1_000;
/// Records read at once.
const PART: u32 = 1_000;

/// Who there is and what is revoked.
pub struct Principals {
    store: Arc<dyn Store>,
    ambient: Ambient,
    users: RwLock<HashMap<String, Arc<UserRow>>>,
    revoked: RwLock<HashMap<String, Timestamp>>,
    identity: RwLock<Identity>,
    /// Mark of the last record that was taken in.
    mark: AtomicI64,
    /// Moves with every change in memory: what was derived from it is then derived again.
    generation: AtomicU64,
    /// When the database last answered a [`Principals::watch`]; nothing before that begins.
    heard: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Identity {
    agents: HashMap<AgentId, Held<Agent>>,
    /// By digest.
    api_keys: HashMap<String, Held<ApiKey>>,
    roles: Arc<CustomRoles>,
    public_keys: HashMap<String, PublicKey>,
    /// Names of issuers, with their end.
    issuers: HashMap<String, Option<Timestamp>>,
    /// Sessions that were ended, with their tokens' end.
    ended: HashMap<String, Timestamp>,
    cutoff: Option<Timestamp>,
    role_versions: HashMap<String, i64>,
    /// Whether somebody has a second factor, with the version of that knowledge.
    second_factors: HashMap<String, (bool, i64)>,
}

struct Held<D> {
    document: Arc<D>,
    version: i64,
}

impl std::fmt::Debug for Principals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Principals")
    }
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// Tokens tell whole seconds: one of the second that `before` falls into may be older, so it counts as older.
fn issued_before(issued_at: i64, before: Timestamp) -> bool {
    issued_at < before.seconds() || issued_at == before.seconds() && before.micros() % 1_000_000 != 0
}

impl Principals {
    /// Loads everyone.
    ///
    /// # Errors
    /// The storage's.
    pub async fn load(store: Arc<dyn Store>, ambient: Ambient) -> Result<Arc<Self>, Error> {
        let principals = Self {
            store,
            ambient,
            users: RwLock::default(),
            revoked: RwLock::default(),
            identity: RwLock::default(),
            mark: AtomicI64::new(0),
            generation: AtomicU64::new(0),
            heard: Mutex::new(None),
        };
        principals.reload().await?;
        principals.catch_up().await?;
        Ok(Arc::new(principals))
    }

    /// Reads users and revocations again.
    ///
    /// # Errors
    /// The storage's; what was known stays.
    pub async fn reload(&self) -> Result<(), Error> {
        let users = self.store.users().await?;
        let revoked = self.store.revocations(self.ambient.clock.settled()).await?;
        let users = users.into_iter().map(|user| (user.name.clone(), Arc::new(user))).collect();
        let revoked: HashMap<String, Timestamp> =
            revoked.into_iter().map(|revocation| (revocation.jti, revocation.expires_at)).collect();
        *write(&self.users) = users;
        // Never lose one that was added while the database was read.
        let mut current = write(&self.revoked);
        let now = self.ambient.clock.settled().seconds();
        let kept: HashMap<String, Timestamp> =
            current.drain().filter(|(_, end)| end.seconds() + 60 > now).collect();
        *current = revoked;
        current.extend(kept);
        drop(current);
        self.changed();
        Ok(())
    }

    /// Takes in the identity records that have changed since last time.
    ///
    /// # Errors
    /// The storage's; what was known stays.
    pub async fn catch_up(&self) -> Result<(), Error> {
        loop {
            let mark = self.mark.load(Ordering::Acquire);
            let part = self.store.records_since(mark, PART).await?;
            let Some(last) = part.last() else { return Ok(()) };
            let last = last.changed;
            for record in part {
                self.take(record);
            }
            // Another task may have gone further meanwhile.
            self.mark.fetch_max(last, Ordering::AcqRel);
        }
    }

    /// Watches for changes by other processes until dropped. Run it as a background task.
    pub async fn watch(self: Arc<Self>, period: Duration) {
        self.watch_hearing(period, None).await;
    }

    /// As [`Principals::watch`], and at once when there are news.
    pub async fn watch_hearing(self: Arc<Self>, period: Duration, news: Option<Arc<dyn News>>) {
        let mut waker = Waker::new(news.as_deref());
        let mut seen = i64::MIN;
        let mut rounds = 0_u32;
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        loop {
            waker.wait(period).await;
            let mut heard = true;
            rounds = rounds.wrapping_add(1);
            if rounds.is_multiple_of(FORGETTING) {
                self.forget_expired();
            }
            match self.store.change_mark().await {
                Ok(mark) if mark != seen => match self.reload().await {
                    Ok(()) => seen = mark,
                    Err(error) => tracing::error!(%error, "users and revocations could not be read again"),
                },
                Ok(_) => {}
                Err(error) => {
                    heard = false;
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "the database does not tell whether it changed"
                    );
                }
            }
            if let Err(error) = self.catch_up().await {
                heard = false;
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "changed agents, sessions and keys could not be read"
                );
            }
            if heard {
                *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            }
        }
    }

    /// Whether what is known of revocations is fresh enough to rely on.
    pub fn is_fresh(&self) -> bool {
        let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.is_none_or(|heard| heard.elapsed() < STALE)
    }

    /// Moves with every change in memory.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    fn take(&self, record: Record) {
        let outcome = match record.kind.as_str() {
            Agent::KIND => document(record).map(|agent| self.put_agent(agent.document, agent.version)),
            ApiKey::KIND => document(record).map(|key| self.put_api_key(key.document, key.version)),
            CustomRole::KIND => document(record).map(|role| self.put_role(&role.document, role.version)),
            Session::KIND => document(record).map(|session| self.put_session(&session.document)),
            PublicKey::KIND => document(record).map(|key| self.put_public_key(key.document)),
            Issuer::KIND => document(record).map(|issuer: Versioned<Issuer>| {
                write(&self.identity).issuers.insert(issuer.document.issuer.clone(), issuer.document.until);
            }),
            SecondFactors::KIND => {
                document(record).map(|factors| self.put_second_factors(factors.document, factors.version))
            }
            Cutoff::KIND => document(record).map(|cutoff| self.put_cutoff(&cutoff.document)),
            _ => Ok(()),
        };
        if let Err(error) = outcome {
            tracing::error!(%error, "an identity record cannot be read and is left out");
        }
    }

    /// One user, from memory.
    pub fn user(&self, name: &str) -> Option<Arc<UserRow>> {
        read(&self.users).get(name).cloned()
    }

    /// The highest cost of a bcrypt hash that somebody still has.
    pub(super) fn dearest_bcrypt(&self) -> Option<u32> {
        read(&self.users).values().filter_map(|user| super::bcrypt_cost(&user.password_hash)).max()
    }

    /// Puts a committed change in force at once. Changes may arrive in another order than they were committed in: the newest
    /// stays.
    pub fn put(&self, user: UserRow) {
        let mut users = write(&self.users);
        if users.get(&user.name).is_none_or(|known| known.version < user.version) {
            users.insert(user.name.clone(), Arc::new(user));
        }
        drop(users);
        self.changed();
    }

    /// One agent, from memory.
    pub fn agent(&self, id: AgentId) -> Option<Arc<Agent>> {
        read(&self.identity).agents.get(&id).map(|held| Arc::clone(&held.document))
    }

    /// All agents, in no order.
    pub fn agents(&self) -> Vec<Arc<Agent>> {
        read(&self.identity).agents.values().map(|held| Arc::clone(&held.document)).collect()
    }

    pub(crate) fn put_agent(&self, agent: Agent, version: i64) {
        let mut identity = write(&self.identity);
        if identity.agents.get(&agent.id).is_none_or(|held| held.version < version) {
            identity.agents.insert(agent.id, Held { document: Arc::new(agent), version });
        }
        drop(identity);
        self.changed();
    }

    /// An API key, by the digest of its text.
    pub(super) fn api_key(&self, digest: &str) -> Option<Arc<ApiKey>> {
        read(&self.identity).api_keys.get(digest).map(|held| Arc::clone(&held.document))
    }

    pub(crate) fn put_api_key(&self, key: ApiKey, version: i64) {
        let mut identity = write(&self.identity);
        if identity.api_keys.get(&key.digest).is_none_or(|held| held.version < version) {
            identity.api_keys.insert(key.digest.clone(), Held { document: Arc::new(key), version });
        }
        drop(identity);
        self.changed();
    }

    /// The custom roles.
    pub fn roles(&self) -> Arc<CustomRoles> {
        Arc::clone(&read(&self.identity).roles)
    }

    pub(crate) fn put_role(&self, role: &CustomRole, version: i64) {
        let mut identity = write(&self.identity);
        if identity.role_versions.get(&role.name).is_some_and(|known| *known >= version) {
            return;
        }
        identity.role_versions.insert(role.name.clone(), version);
        let mut roles = CustomRoles::clone(&identity.roles);
        if role.deleted {
            roles.remove(&role.name);
        } else {
            roles.insert(role.name.clone(), role.scopes.clone());
        }
        identity.roles = Arc::new(roles);
        drop(identity);
        self.changed();
    }

    /// Whether a person is asked for a second factor.
    pub fn has_second_factor(&self, user: &str) -> bool {
        read(&self.identity).second_factors.get(user).is_some_and(|(has, _)| *has)
    }

    #[expect(clippy::needless_pass_by_value, reason = "like its siblings, it takes over what was committed")]
    pub(crate) fn put_second_factors(&self, factors: SecondFactors, version: i64) {
        let mut identity = write(&self.identity);
        let known = identity.second_factors.entry(factors.user.clone()).or_insert((false, 0));
        if known.1 < version {
            *known = (factors.has_any(), version);
        }
    }

    pub(crate) fn put_session(&self, session: &Session) {
        if session.ended_at.is_some() {
            let end = session.expires_at.plus(Duration::from_mins(1));
            write(&self.identity).ended.insert(session.id.clone(), end);
        }
    }

    pub(crate) fn put_cutoff(&self, cutoff: &Cutoff) {
        let mut identity = write(&self.identity);
        identity.cutoff = identity.cutoff.max(Some(cutoff.before));
    }

    pub(crate) fn put_public_key(&self, key: PublicKey) {
        write(&self.identity).public_keys.insert(key.kid.clone(), key);
    }

    /// The public signing keys of all servers of this installation.
    pub fn public_keys(&self) -> Vec<PublicKey> {
        read(&self.identity).public_keys.values().cloned().collect()
    }

    /// Whether tokens of that issuer are ours.
    pub(crate) fn knows_issuer(&self, name: &str) -> bool {
        let until = read(&self.identity).issuers.get(name).copied();
        until.is_some_and(|until| until.is_none_or(|until| until > self.ambient.clock.now()))
    }

    pub(super) fn public_key(&self, kid: &str) -> Option<PublicKey> {
        read(&self.identity).public_keys.get(kid).cloned()
    }

    pub(super) fn revoke(&self, jti: &str, expires_at: Timestamp) {
        write(&self.revoked).insert(jti.to_owned(), expires_at);
    }

    /// Whether a token is dead: by itself, with its session, or with everything of its time.
    pub(super) fn is_revoked(&self, jti: &str, session: &str, issued_at: i64) -> bool {
        if read(&self.revoked).contains_key(jti) {
            return true;
        }
        let identity = read(&self.identity);
        identity.ended.contains_key(session)
            || identity.cutoff.is_some_and(|before| issued_before(issued_at, before))
    }

    /// Whether everything from before that time is dead.
    pub(super) fn is_cut_off(&self, issued_at: Timestamp) -> bool {
        read(&self.identity).cutoff.is_some_and(|before| issued_at < before)
    }

    /// Drops what no token can refer to any more.
    pub fn forget_expired(&self) {
        let now = self.ambient.clock.settled();
        write(&self.identity).ended.retain(|_, end| *end >= now);
        write(&self.revoked).retain(|_, end| end.plus(Duration::from_mins(1)) >= now);
    }
}
