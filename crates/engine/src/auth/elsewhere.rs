//! People whom a directory knows: LDAP by password, OpenID Connect by browser.
//!
//! A directory says who somebody is and which roles its groups give; the person then has an account here like anybody else,
//! joined by the directory's own id and never by name. An account that has a local password is never asked for elsewhere, so
//! the local administrator signs in whatever a directory does, and no directory can take over a local name.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use interlock_model::Timestamp;
use interlock_model::id::{hexadecimal, random_hex};
use interlock_model::secret::Secret;
use interlock_store::identity::{self, Document, Put};
use interlock_store::{Error, Tx, UserRow};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::documents::{Session, Used};
use super::opening::Opening;
use super::refreshing::LONGEST_ELSEWHERE;
use super::sealing::MasterKey;
use super::sessions::Issued;
use super::{
    CertificateSignIn, Db, Origin, Principals, Recorded, Sessions, SignInError, SystemPermit,
    WorkloadDirectory,
};
use crate::Ambient;
use crate::audit::Recorder;
use crate::security::{self, Event};

/// In place of a password hash: no password fits it.
pub(crate) const NO_PASSWORD: &str = "external";
/// Time to sign in at the provider.
const FLOW: Duration = Duration::from_mins(10);
/// Longest life of an access token: what ends with a session is kept that much longer than it can be refreshed.
const LONGEST_ACCESS: Duration = Duration::from_hours(24);
/// Longest proof that is put into an address, in bytes.
const LONGEST_HINT: usize = 4096;
/// What a proof for the provider is sealed as.
pub(super) const PROOF: &str = "provider_login";
/// Time to fetch the tokens after that.
const HANDOFF: Duration = Duration::from_mins(1);

/// Somebody, as a directory says.
#[derive(Debug, Clone)]
pub struct External {
    /// Never given to anyone else.
    pub subject: String,
    /// Sign-in name as the directory writes it.
    pub name: String,
    /// What its groups give here.
    pub roles: Vec<String>,
    /// `ldap`, `oidc` or `certificate`.
    pub method: &'static str,
}

/// Why a directory did not say who somebody is. The text is for log and audit.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Elsewhere {
    /// It was asked and says no.
    #[error("{0}")]
    Refused(String),
    /// It could not be asked.
    #[error("{0}")]
    Unavailable(String),
}

/// A directory that checks passwords.
#[async_trait]
pub trait PasswordDirectory: Send + Sync {
    /// Who has this name and password. Ends within its own time limit.
    async fn authenticate(&self, name: &str, password: &Secret) -> Result<External, Elsewhere>;
}

/// A sign-in that goes on in the browser.
#[derive(Debug)]
pub struct WebBegun {
    /// Where the browser goes.
    pub url: String,
    /// What [`WebDirectory::finish`] wants back. A secret.
    pub flow: Secret,
}

/// A provider where people sign in with their browser.
#[async_trait]
pub trait WebDirectory: Send + Sync {
    /// Begins a sign-in.
    async fn begin(&self) -> Result<WebBegun, Elsewhere>;
    /// Ends it with the query that the browser came back with.
    async fn finish(&self, flow: Secret, query: &str) -> Result<WebArrival, Elsewhere>;
    /// Judges the provider's order to sign somebody out.
    async fn signed_out(&self, token: &str) -> Result<SignedOut, Elsewhere>;
    /// Where a browser signs out of the provider too, if the provider has such a place. `proof` is [`WebArrival::proof`].
    async fn sign_out(&self, proof: Option<&Secret>) -> Result<Option<String>, Elsewhere>;
}

/// Somebody whom a provider has signed in, and what signing out needs.
#[derive(Debug)]
pub struct WebArrival {
    /// Who it is.
    pub external: External,
    /// The session at the provider.
    pub session: Option<String>,
    /// What the provider wants to see again at sign-out. A secret.
    pub proof: Secret,
}

/// An order to sign somebody out: of this session at the provider, or of all where none is named.
#[derive(Debug)]
pub struct SignedOut {
    /// Whom, as [`External::subject`].
    pub subject: Option<String>,
    /// As [`WebArrival::session`]. One of the two is there.
    pub session: Option<String>,
    /// Id of the order: it counts once.
    pub id: String,
    /// The order is over then.
    pub until: Timestamp,
}

/// The directories of this installation.
#[derive(Clone, Default)]
pub struct Directories {
    /// For names and passwords.
    pub password: Option<Arc<dyn PasswordDirectory>>,
    /// For browsers.
    pub web: Option<Arc<dyn WebDirectory>>,
    /// For programs.
    pub workloads: Option<Arc<dyn WorkloadDirectory>>,
    /// For people with certificates.
    pub certificates: Option<CertificateSignIn>,
}

impl std::fmt::Debug for Directories {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { password, web, workloads, certificates } = self;
        let (password, web, workloads) = (password.is_some(), web.is_some(), workloads.is_some());
        write!(
            f,
            "Directories(password: {password}, web: {web}, workloads: {workloads}, certificates: {certificates:?})"
        )
    }
}

/// Which account here somebody of a directory has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Account {
    subject: String,
    user: String,
    method: String,
}

impl Document for Account {
    const KIND: &'static str = "external_account";

    fn id(&self) -> String {
        digest(&self.subject)
    }

    fn alias(&self) -> Option<String> {
        Some(self.user.clone())
    }
}

/// A sign-in that is under way in a browser.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Flow {
    id: String,
    stored: String,
    until: Timestamp,
    used: bool,
}

impl Document for Flow {
    const KIND: &'static str = "web_sign_in";

    fn id(&self) -> String {
        self.id.clone()
    }

    fn expires_at(&self) -> Option<Timestamp> {
        Some(self.until)
    }
}

/// A session whose tokens wait to be fetched, once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Handoff {
    id: String,
    session: String,
    until: Timestamp,
    used: bool,
}

impl Document for Handoff {
    const KIND: &'static str = "handoff";

    fn id(&self) -> String {
        self.id.clone()
    }

    fn expires_at(&self) -> Option<Timestamp> {
        Some(self.until)
    }
}

/// What a session of ours has to do with one at the provider.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct ProviderLogin {
    /// Our session.
    pub(super) session: String,
    /// Digest of the provider's session, if it has told one.
    theirs: Option<String>,
    /// What the provider wants to see again, sealed.
    pub(super) proof: String,
    until: Timestamp,
}

impl Document for ProviderLogin {
    const KIND: &'static str = "provider_login";

    fn id(&self) -> String {
        self.session.clone()
    }

    fn owner(&self) -> Option<String> {
        self.theirs.clone()
    }

    fn expires_at(&self) -> Option<Timestamp> {
        Some(self.until)
    }
}

fn digest(text: &str) -> String {
    hexadecimal(&Sha256::digest(text.as_bytes()))
}

/// Gives people of directories their accounts and sessions.
#[derive(Clone)]
pub struct Arrivals {
    db: Db,
    ambient: Ambient,
    principals: Arc<Principals>,
    sessions: Arc<Sessions>,
    recorder: Recorder,
    system: Arc<SystemPermit>,
    master: Arc<MasterKey>,
    directories: Directories,
}

impl std::fmt::Debug for Arrivals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Arrivals({:?})", self.directories)
    }
}

/// A sign-in that the browser carries on with.
#[derive(Debug)]
pub struct WebSignIn {
    /// Where the browser goes.
    pub url: String,
    /// What only this browser keeps, in a cookie.
    pub browser: Secret,
    /// Seconds that it may take.
    pub seconds: u64,
}

impl Arrivals {
    /// Wires the parts.
    #[expect(clippy::too_many_arguments, reason = "it is wired in one place only")]
    pub(crate) fn new(
        db: Db,
        ambient: Ambient,
        principals: Arc<Principals>,
        sessions: Arc<Sessions>,
        recorder: Recorder,
        system: SystemPermit,
        master: Arc<MasterKey>,
        directories: Directories,
    ) -> Self {
        Self { db, ambient, principals, sessions, recorder, system: Arc::new(system), master, directories }
    }

    /// Whether passwords are checked elsewhere too, and whether browsers can sign in elsewhere.
    pub fn offers(&self) -> (bool, bool) {
        (self.directories.password.is_some(), self.directories.web.is_some())
    }

    /// What certificates of people are good for, if they are good for anything.
    pub fn certificates(&self) -> Option<&CertificateSignIn> {
        self.directories.certificates.as_ref()
    }

    pub(super) fn workloads(&self) -> Option<&Arc<dyn WorkloadDirectory>> {
        self.directories.workloads.as_ref()
    }

    /// Whether this account's password is to be checked by a directory: it is not known here, or has no password here.
    pub(super) fn asks(&self, user: Option<&UserRow>) -> Option<&Arc<dyn PasswordDirectory>> {
        let directory = self.directories.password.as_ref()?;
        user.is_none_or(|user| user.password_hash == NO_PASSWORD).then_some(directory)
    }

    /// Opens a session for somebody whom a provider has vouched for.
    async fn arrive(&self, arrival: WebArrival, origin: &Origin) -> Result<Issued, SignInError> {
        let WebArrival { external, session: theirs, proof } = arrival;
        let user = self.account(&external, origin).await?;
        let opening = Opening::user(&user, &self.principals.roles(), external.method, &["oidc"], origin);
        let until = self.ambient.clock.now().plus(LONGEST_ELSEWHERE + LONGEST_ACCESS);
        let theirs = theirs.map(|theirs| digest(&theirs));
        let master = Arc::clone(&self.master);
        let opened = self.sessions.open(opening, move |tx, session| {
            Box::pin(async move {
                let sealed = master.seal(PROOF, session, proof.expose().as_bytes());
                let sealed = sealed.map_err(|error| Error::Corrupt(error.to_string()))?;
                // Without it the provider asks at sign-out.
                let proof = if master.seals(&mut *tx).await? { sealed } else { String::new() };
                let login = ProviderLogin { session: session.to_owned(), theirs, proof, until };
                identity::insert(tx, &login).await.map(drop)
            })
        });
        Ok(opened.await?)
    }

    /// The account, made or brought up to date with what the directory says.
    pub(super) async fn account(&self, external: &External, origin: &Origin) -> Result<UserRow, SignInError> {
        let refuse = |reason: &'static str| {
            self.note_refusal(external.method, reason, origin);
            Err(SignInError::Refused)
        };
        let mut roles: Vec<String> = external.roles.clone();
        roles.retain(|role| {
            interlock_model::policy::is_role(role) || self.principals.roles().contains_key(role)
        });
        roles.sort();
        roles.dedup();
        if roles.is_empty() {
            return refuse("no_role");
        }
        let Ok(name) = crate::users::canonical_name(&external.name) else {
            return refuse("name_not_allowed");
        };
        if name.parse::<interlock_model::AgentId>().is_ok() {
            return refuse("name_not_allowed");
        }
        let now = self.ambient.clock.now();
        let account = Account {
            subject: external.subject.clone(),
            user: name.clone(),
            method: external.method.to_owned(),
        };
        let proof = self.system.acting("user.provisioned", Some(name.clone())).on_behalf(&name, origin);
        let provisioned = self
            .db
            .write(&proof, move |tx| Box::pin(async move { provision(tx, account, roles, now).await }))
            .await?;
        match provisioned {
            Ok(user) if user.disabled => refuse("disabled"),
            Ok(user) => {
                self.principals.put(user.clone());
                Ok(user)
            }
            Err(reason) => refuse(reason),
        }
    }

    pub(super) fn note_refusal(&self, method: &'static str, reason: &str, origin: &Origin) {
        security::authentication("login", "failed");
        let details = json!({ "reason": reason, "method": method });
        security::event(Event::AuthenticationFailed, None, Some(origin), details.clone());
        self.recorder.note(
            origin,
            None,
            "device.login",
            None,
            json!({ "result": "failed", "reason": reason, "method": method }),
        );
    }

    /// Begins a sign-in with the browser.
    ///
    /// # Errors
    /// [`SignInError::Elsewhere`] when there is no provider or it does not answer.
    pub async fn begin(&self) -> Result<WebSignIn, SignInError> {
        let web = self.directories.web.as_ref().ok_or(SignInError::NotOffered)?;
        let begun = web.begin().await.map_err(|error| {
            tracing::warn!(%error, "the provider could not be asked");
            SignInError::Elsewhere
        })?;
        let browser = random_hex(&*self.ambient.entropy, 32);
        let until = self.ambient.clock.now().plus(FLOW);
        let flow = Flow { id: digest(&browser), stored: begun.flow.expose().to_owned(), until, used: false };
        self.db.count(move |tx| Box::pin(async move { identity::insert(tx, &flow).await.map(drop) })).await?;
        Ok(WebSignIn { url: begun.url, browser: Secret::new(browser), seconds: FLOW.as_secs() })
    }

    /// Ends a sign-in with the browser and returns a text that gives the tokens once. `browser` is what the cookie holds.
    ///
    /// # Errors
    /// [`SignInError`].
    pub async fn finish(&self, browser: &str, query: &str, origin: &Origin) -> Result<Secret, SignInError> {
        let web = self.directories.web.as_ref().ok_or(SignInError::NotOffered)?;
        let (id, now) = (digest(browser), self.ambient.clock.now());
        let flow: Option<Flow> = self
            .db
            .count(move |tx| {
                Box::pin(async move {
                    let Some(mut found) = identity::get::<Flow>(tx, &id).await? else { return Ok(None) };
                    let flow = found.document.clone();
                    if flow.used || flow.until < now {
                        return Ok(None);
                    }
                    found.document.used = true;
                    found.document.stored = String::new();
                    identity::update(tx, &found).await?;
                    Ok(Some(flow))
                })
            })
            .await?;
        let Some(flow) = flow else {
            self.note_refusal("oidc", "no_such_sign_in", origin);
            return Err(SignInError::Refused);
        };
        let arrival = match web.finish(Secret::new(flow.stored), query).await {
            Ok(arrival) => arrival,
            Err(Elsewhere::Refused(reason)) => {
                self.note_refusal("oidc", &reason, origin);
                return Err(SignInError::Refused);
            }
            Err(Elsewhere::Unavailable(reason)) => {
                tracing::warn!(reason, "the provider could not be asked");
                return Err(SignInError::Elsewhere);
            }
        };
        let code = random_hex(&*self.ambient.entropy, 32);
        let issued = self.arrive(arrival, origin).await?;
        let handoff =
            Handoff { id: digest(&code), session: issued.session.id, until: now.plus(HANDOFF), used: false };
        self.db
            .count(move |tx| Box::pin(async move { identity::insert(tx, &handoff).await.map(drop) }))
            .await?;
        security::authentication("login", "success");
        Ok(Secret::new(code))
    }

    /// Exchanges the text of [`Arrivals::finish`] for the tokens, once.
    ///
    /// # Errors
    /// [`SignInError`].
    pub async fn exchange(&self, code: &str, origin: &Origin) -> Result<Issued, SignInError> {
        let (id, now) = (digest(code), self.ambient.clock.now());
        let session: Option<Session> = self
            .db
            .count(move |tx| {
                Box::pin(async move {
                    let Some(mut found) = identity::get::<Handoff>(tx, &id).await? else { return Ok(None) };
                    if found.used || found.until < now {
                        return Ok(None);
                    }
                    found.document.used = true;
                    identity::update(tx, &found).await?;
                    Ok(identity::get::<Session>(tx, &found.session).await?.map(|session| session.document))
                })
            })
            .await?;
        let Some(session) = session.filter(|session| session.ended_at.is_none()) else {
            self.note_refusal("oidc", "no_such_handoff", origin);
            return Err(SignInError::Refused);
        };
        Ok(self.sessions.issue(session)?)
    }
}

impl Arrivals {
    /// Ends every session of somebody whom the provider signs out (OpenID Connect Back-Channel Logout 1.0).
    ///
    /// # Errors
    /// [`SignInError::Refused`] for whatever is no such order, or was one before.
    pub async fn sign_out_elsewhere(&self, token: &str, origin: &Origin) -> Result<usize, SignInError> {
        let web = self.directories.web.as_ref().ok_or(SignInError::NotOffered)?;
        let order = match web.signed_out(token).await {
            Ok(order) => order,
            Err(Elsewhere::Refused(reason)) => {
                self.note_refusal("oidc", &reason, origin);
                return Err(SignInError::Refused);
            }
            Err(Elsewhere::Unavailable(reason)) => {
                tracing::warn!(reason, "the provider could not be asked");
                return Err(SignInError::Elsewhere);
            }
        };
        let used = Used { what: format!("logout {}", digest(&order.id)), until: order.until };
        if !self.sessions.use_once(used).await? {
            return Err(SignInError::Refused);
        }
        let ordered = self.ordered(&order).await?;
        for session in &ordered {
            let proof = self
                .system
                .acting("session.ended", Some(session.id.clone()))
                .on_behalf(&session.principal, origin);
            self.sessions.end(&proof, &session.id, "manual").await?;
        }
        Ok(ordered.len())
    }

    /// The sessions that an order ends: those of the provider's session, of the person if one is named. A session of which
    /// the provider has told no session of its own belongs to each of them.
    async fn ordered(&self, order: &SignedOut) -> Result<Vec<Session>, Error> {
        let store = self.db.read();
        let theirs = order.session.as_ref().map(|session| digest(session));
        let mut found = Vec::new();
        if let Some(subject) = &order.subject {
            let account = identity::read::<Account>(store, &digest(subject)).await?;
            let Some(account) = account else { return Ok(found) };
            for session in identity::list::<Session>(store, Some(&account.user)).await? {
                let login = identity::read::<ProviderLogin>(store, &session.id).await?;
                let told = login.and_then(|login| login.document.theirs);
                if theirs.is_none() || told.is_none() || told == theirs {
                    found.push(session.document);
                }
            }
        } else if theirs.is_some() {
            for login in identity::list::<ProviderLogin>(store, theirs.as_deref()).await? {
                let session = identity::read::<Session>(store, &login.session).await?;
                found.extend(session.map(|session| session.document));
            }
        }
        found.retain(|session| session.ended_at.is_none() && session.method == "oidc");
        Ok(found)
    }

    /// Where the browser of an ended session signs out of the provider too (OpenID Connect RP-Initiated Logout 1.0). `None`
    /// for sessions of other kinds, and while the provider does not answer.
    pub async fn sign_out_url(&self, session: &str) -> Option<String> {
        let web = self.directories.web.as_ref()?;
        let login = match identity::read::<ProviderLogin>(self.db.read(), session).await {
            Ok(login) => login?.document,
            Err(error) => {
                tracing::warn!(%error, "the provider's session of a session could not be read");
                return None;
            }
        };
        // Without the proof the provider asks the person.
        let proof = self.master.open(PROOF, session, &login.proof).ok();
        let proof = proof.and_then(|proof| Some(Secret::new(std::str::from_utf8(&proof).ok()?)));
        let proof = proof.filter(|proof| proof.expose().len() <= LONGEST_HINT);
        match web.sign_out(proof.as_ref()).await {
            Ok(url) => url,
            Err(error) => {
                tracing::warn!(%error, "the provider could not be asked where to sign out");
                None
            }
        }
    }
}

/// Makes the account or brings it up to date; the inner error says why it cannot be this person's.
async fn provision(
    tx: &mut dyn Tx,
    account: Account,
    roles: Vec<String>,
    now: Timestamp,
) -> Result<Recorded<Result<UserRow, &'static str>>, Error> {
    let known = identity::get::<Account>(tx, &account.id()).await?.map(|known| known.document);
    // The directory's own id decides; a changed name there does not change the account here.
    let name = known.as_ref().map_or(&account.user, |known| &known.user).clone();
    let done = |value, what: &str, roles: &[String]| {
        Ok(Recorded { value, details: json!({ "what": what, "method": account.method, "roles": roles }) })
    };
    let Some(mut user) = tx.user(&name).await? else {
        let user = UserRow {
            name: name.clone(),
            password_hash: NO_PASSWORD.to_owned(),
            roles: roles.clone(),
            disabled: false,
            tokens_valid_from: now,
            created_at: now,
            updated_at: now,
            version: 1,
        };
        if !tx.insert_user(&user).await? {
            return done(Err("name_taken"), "refused", &[]);
        }
        if known.is_none() && identity::insert(tx, &account).await? != Put::Done {
            return Err(Error::Corrupt("an account of a directory has no user".to_owned()));
        }
        return done(Ok(user), "made", &roles);
    };
    if known.is_none() || user.password_hash != NO_PASSWORD {
        return done(Err("name_taken"), "refused", &[]);
    }
    if user.roles == roles {
        return done(Ok(user), "unchanged", &roles);
    }
    user.roles.clone_from(&roles);
    user.updated_at = now;
    user.version += 1;
    if !tx.update_user(&user).await? {
        return Err(Error::Corrupt("a user changed under its own lock".to_owned()));
    }
    done(Ok(user), "roles changed", &roles)
}
