//! The installation from its own machine, without a network: for its owner, also when nobody can sign in any more.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use interlock_engine::auth::documents::PublicKey;
use interlock_engine::auth::{
    Keys, Lockout, Recorded, Resealed, SystemPermit, Throttle, examine_sealed, reseal,
};
use interlock_engine::backup::{self, Backups, CameBack, Credentials, Past, Settled};
use interlock_engine::bans::{BanError, Bans};
use interlock_engine::identity;
use interlock_engine::notary::{self, Finding, NotaryError, Report, Trust};
use interlock_engine::revocations::{self, Ended, Revocations};
use interlock_engine::users::{UserChange, UserError, Users};
use interlock_engine::{AuditFilter, BanRow, Page, StoreError, UserRow};
use interlock_evidence::checkpoint::{Signer, VerifyingKey};
use interlock_evidence::proof::Proof;
use interlock_model::Timestamp;
use interlock_model::audit::{AuditEntry, Hash};
use interlock_model::secret::Secret;

use crate::config::Config;
use crate::installation::{self, Parts};

/// Longer than servers need to learn of a published key.
const KNOWN_EVERYWHERE: std::time::Duration = std::time::Duration::from_secs(1);

/// A signing key was changed.
pub(crate) struct Rotated {
    /// Id of the key that signs now.
    pub(crate) kid: String,
    /// Id of the one before.
    pub(crate) before: String,
    /// End of that one.
    pub(crate) until: Timestamp,
}

/// What was noted of the audit log somewhere else.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// Checkpoints.
    pub(crate) notes: Vec<String>,
    /// Number and hash of an entry.
    pub(crate) entry: Option<(u64, Hash)>,
}

/// An installation opened through its state folder.
pub(crate) struct Local {
    parts: Parts,
    state: PathBuf,
    users: Users,
    bans: Bans,
    permit: SystemPermit,
}

impl Local {
    /// Opens it. The server may be running: it notices changes within a second.
    ///
    /// # Errors
    /// When there is no installation there, or it cannot be opened.
    pub(crate) async fn open(state: &Path) -> anyhow::Result<Self> {
        let environment = std::env::vars().collect();
        let config = Config::load(None, &environment, &[])?;
        let url = config.database();
        if url.is_none() && !state.join("interlock.db").exists() {
            bail!(
                "{} holds no installation: start a server there first, or give another --state",
                state.display()
            );
        }
        Self::of(state, url.as_ref()).await
    }

    /// Opens the installation whose files are in a folder and whose database is there, or at `url`.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(crate) async fn of(state: &Path, url: Option<&Secret>) -> anyhow::Result<Self> {
        let environment = std::env::vars().collect();
        let config = Config::load(None, &environment, &[])?;
        let parts = installation::open(state, url).await?;
        let users = parts.users(Arc::new([]));
        let (db, ambient) = (parts.db.clone(), parts.ambient.clone());
        let bans = Bans::load(db, ambient, config.never_banned()?, SystemPermit::root("system"))
            .await
            .context("read the bans")?;
        let who = std::env::var("SUDO_USER")
            .or_else(|_| std::env::var("USER"))
            .unwrap_or_else(|_| "unknown".to_owned());
        let who: String = who.chars().filter(char::is_ascii_alphanumeric).take(32).collect();
        let permit = SystemPermit::root(&format!("console:{who}"));
        Ok(Self { parts, state: state.to_owned(), users, bans, permit })
    }

    /// Everyone.
    pub(crate) async fn list(&self) -> anyhow::Result<Vec<UserRow>> {
        self.users.console(&self.permit).list().await.context("read the users")
    }

    /// Makes a user.
    pub(crate) async fn create(
        &self,
        name: &str,
        password: Secret,
        roles: &[String],
    ) -> Result<UserRow, UserError> {
        self.users.console(&self.permit).create(name, password, roles).await
    }

    /// Makes a user with the bcrypt hash of an earlier system.
    pub(crate) async fn import(
        &self,
        name: &str,
        password_hash: String,
        roles: &[String],
    ) -> Result<UserRow, UserError> {
        self.users.console(&self.permit).import(name, password_hash, roles).await
    }

    /// Changes a user.
    pub(crate) async fn update(&self, name: &str, change: UserChange) -> Result<UserRow, UserError> {
        self.users.console(&self.permit).update(name, change).await
    }

    /// Sets a password.
    pub(crate) async fn set_password(&self, name: &str, password: Secret) -> Result<UserRow, UserError> {
        self.users.console(&self.permit).set_password(name, password).await
    }

    /// Bans in force.
    pub(crate) async fn bans(&self) -> anyhow::Result<Vec<BanRow>> {
        self.bans.console(&self.permit).list().await.context("read the bans")
    }

    /// Bans a network.
    pub(crate) async fn add_ban(
        &self,
        network: &str,
        reason: &str,
        length: Option<Duration>,
    ) -> Result<BanRow, BanError> {
        self.bans.console(&self.permit).add(network, reason, length).await
    }

    /// Lifts a ban.
    pub(crate) async fn remove_ban(&self, network: &str) -> Result<(), BanError> {
        self.bans.console(&self.permit).remove(network).await
    }

    /// Makes or renews the account for emergencies.
    pub(crate) async fn break_glass(&self, password: Secret) -> Result<UserRow, UserError> {
        self.users.console(&self.permit).break_glass(password).await
    }

    /// Removes every second factor of somebody.
    pub(crate) async fn reset_factors(&self, name: &str) -> Result<(), UserError> {
        self.users.console(&self.permit).reset_factors(name).await
    }

    /// What signs the audit log of this installation.
    async fn signer(&self) -> anyhow::Result<Signer> {
        installation::audit_signer(&self.state, &self.parts).await
    }

    /// Checks the whole audit log with the keys that may sign for it and what was noted elsewhere.
    pub(crate) async fn verify_audit(
        &self,
        keys: Vec<VerifyingKey>,
        kept: Kept,
    ) -> Result<Report, NotaryError> {
        let mut trust = Trust::in_keys(keys);
        for note in kept.notes {
            let problem = |problem| Finding::Checkpoint { after: 0, problem };
            trust.note(&note).map_err(problem)?;
        }
        if let Some((number, hash)) = kept.entry {
            trust.note_entry(number, hash);
        }
        notary::verify(&*self.parts.store, trust).await
    }

    /// What others need to verify the audit log of this installation.
    pub(crate) async fn audit_key(&self) -> anyhow::Result<VerifyingKey> {
        Ok(self.signer().await?.key().clone())
    }

    /// The newest signed checkpoint of the audit log.
    pub(crate) async fn audit_checkpoint(&self) -> anyhow::Result<Option<String>> {
        Ok(notary::newest(&*self.parts.store).await.context("read the checkpoints")?.map(|seal| seal.note))
    }

    /// Writes the whole audit log; gives back the key with which it can be checked too.
    pub(crate) async fn export_audit<W: std::io::Write>(&self, out: W) -> anyhow::Result<(W, VerifyingKey)> {
        let signer = self.signer().await?;
        let exported = notary::export(&*self.parts.store, &signer, out).await?;
        self.record_export().await?;
        Ok((exported, signer.key().clone()))
    }

    /// Somebody has taken the audit log away.
    pub(crate) async fn record_export(&self) -> anyhow::Result<()> {
        let proof = self.permit.acting("audit.exported", None);
        let nothing = Recorded { value: (), details: serde_json::json!({}) };
        let recorded =
            self.parts.db.write(&proof, move |_| Box::pin(async move { Ok::<_, StoreError>(nothing) }));
        recorded.await.context("record the export")
    }

    /// Entries behind this one, oldest first, some at a time.
    pub(crate) async fn audit_after(&self, number: u64) -> anyhow::Result<Vec<AuditEntry>> {
        self.parts.store.audit_from(number, 1_000).await.context("read the audit log")
    }

    /// The proof that an entry is in the audit log.
    pub(crate) async fn prove_audit(&self, number: u64) -> Result<Proof, NotaryError> {
        notary::prove(&*self.parts.store, number).await
    }

    /// Accounts at which somebody guesses and must wait.
    pub(crate) async fn lockouts(&self) -> anyhow::Result<Vec<Lockout>> {
        self.throttle().list_here(&self.permit).await.context("read the lockouts")
    }

    /// Forgets the guesses at an account; `false` if there are none.
    pub(crate) async fn unlock(&self, account: &str) -> anyhow::Result<bool> {
        self.throttle().unlock_here(&self.permit, account).await.context("forget the guesses")
    }

    fn throttle(&self) -> Throttle {
        Throttle::new(self.parts.db.clone(), self.parts.ambient.clone())
    }

    /// Signs with a new key from here on, on every server of this state folder; the one before is good until its tokens end.
    pub(crate) async fn rotate_key(&self, state: &Path) -> anyhow::Result<Rotated> {
        let environment = std::env::vars().collect();
        let settings = Config::load(None, &environment, &[])?.server()?;
        if settings.jwt_secret.is_some() {
            bail!(
                "JWT_SECRET_KEY is set, so tokens are signed with that; to change it, put the old value into JWT_SECRET_KEY_PREVIOUS"
            );
        }
        let path = installation::key_path(state);
        let old = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let (before, before_public) =
            Keys::public_of(&old).with_context(|| format!("use {}", path.display()))?;
        let new = Keys::generate()?;
        let (kid, public) = Keys::public_of(&new)?;
        let Parts { ambient, db, .. } = &self.parts;
        let now = ambient.clock.now();
        // Known everywhere before it signs anything.
        for (kid, public) in [(&before, before_public), (&kid, public)] {
            let key = PublicKey { kid: kid.clone(), public, created_at: now, retired_at: None };
            identity::publish(db, &self.permit, key).await.context("publish the new key")?;
        }
        tokio::time::sleep(KNOWN_EVERYWHERE).await;
        installation::replace(&path, &new)?;
        // Servers notice the file within seconds; until then they sign with the old key.
        let longest = settings.refresh_days * 86_400;
        let life = std::time::Duration::from_secs(longest.unsigned_abs() + 120);
        let until = identity::retire(db, &self.permit, before.clone(), now, life)
            .await
            .context("retire the old key")?;
        Ok(Rotated { kid, before, until: until.context("the old key was not published")? })
    }

    /// Seals everything with another master key: a new one of the state folder, or `MASTER_KEY` where that is set.
    pub(crate) async fn rotate_master(&self, state: &Path) -> anyhow::Result<Resealed> {
        let environment = std::env::vars().collect();
        let settings = Config::load(None, &environment, &[])?.server()?;
        let configured = settings.master_key.is_some();
        if configured && settings.master_key_previous.is_none() {
            bail!(
                "MASTER_KEY is set, so the new key comes from you: put the old one into MASTER_KEY_PREVIOUS and a new one into MASTER_KEY, on every server and here"
            );
        }
        if !configured && !installation::master_path(state).exists() {
            bail!(
                "{} has no master key of its own. Is MASTER_KEY set for the server? Then it is wanted here too",
                state.display()
            );
        }
        let Parts { db, .. } = &self.parts;
        let key = || installation::master_key(state, &settings, &self.parts);
        let before = examine_sealed(db, &key()?).await.context("look at the stored secrets")?;
        if before.lost > 0 {
            bail!(
                "{} stored secrets do not open with the keys that are known here, so nothing was changed. Is MASTER_KEY set for the server, and not here?",
                before.lost
            );
        }
        if !configured {
            installation::begin_master_exchange(state, &self.parts)?;
            // Servers open with both keys from here on.
            tokio::time::sleep(installation::LOOKING * 2).await;
        }
        let done = reseal(db, &self.permit, &Arc::new(key()?)).await.context("seal the secrets anew")?;
        if !configured {
            installation::end_master_exchange(state)?;
        }
        Ok(done)
    }

    /// What is dead before its time.
    pub(crate) async fn export_revocations(&self) -> anyhow::Result<Revocations> {
        revocations::export(&*self.parts.store, &self.parts.ambient).await.context("read what is revoked")
    }

    /// Ends what is dead by a document.
    pub(crate) async fn import_revocations(&self, dead: Revocations) -> anyhow::Result<Ended> {
        let Parts { ambient, db, .. } = &self.parts;
        revocations::import(db, &self.permit, ambient, dead).await.context("store what is revoked")
    }

    /// The parts, for backups.
    pub(crate) fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Where it is.
    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    /// As whom the command line acts.
    pub(crate) fn permit(&self) -> &SystemPermit {
        &self.permit
    }

    /// A backup of then was proven whole.
    pub(crate) async fn record_drill(&self, taken_at: Timestamp) -> anyhow::Result<()> {
        let now = self.parts.ambient.clock.now();
        backup::tried(&self.parts.db, &self.permit, taken_at, now).await.context("record the drill")
    }

    /// When backups were taken and tried, and when the newest audit entry was written.
    pub(crate) async fn past(&self) -> anyhow::Result<(Backups, Option<Timestamp>)> {
        let store = &*self.parts.store;
        let newest = store.audit(&AuditFilter::default(), Page { limit: 1, offset: 0 }).await?;
        Ok((backup::last(store).await?, newest.items.first().map(|entry| entry.draft.at)))
    }

    /// Accounts with their hashes.
    pub(crate) async fn credentials(&self) -> anyhow::Result<Credentials> {
        backup::credentials(&*self.parts.store).await.context("read the accounts")
    }

    /// Brings accounts back that are not here.
    pub(crate) async fn bring_back(&self, from: Credentials) -> anyhow::Result<CameBack> {
        let Parts { ambient, db, .. } = &self.parts;
        backup::bring_back(db, &self.permit, ambient, from).await.context("store the accounts")
    }

    /// Makes what was put back from a backup safe to start. A device refuses calls until somebody has looked.
    pub(crate) async fn settle(&self, past: Past, device: bool) -> anyhow::Result<Settled> {
        let Parts { ambient, db, .. } = &self.parts;
        if device {
            let reason = "restored from a backup: what the device did since then is not known here";
            interlock_device::hold(&self.state.join("device"), reason, ambient.clock.now())
                .context("hold the device")?;
        }
        backup::settle(db, &self.permit, ambient, past).await.context("make the copy safe to start")
    }

    /// Ends cleanly.
    pub(crate) async fn close(self) {
        self.parts.store.close().await;
    }
}
