//! The installation from its own machine, without a network: for its owner, also when nobody can sign in any more.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use interlock_engine::UserRow;
use interlock_engine::auth::SystemPermit;
use interlock_engine::users::{UserChange, UserError, Users};
use interlock_model::audit::Hash;
use interlock_model::secret::Secret;

use crate::config::Config;
use crate::installation::{self, Parts};

/// An installation opened through its state folder.
pub(crate) struct Local {
    parts: Parts,
    users: Users,
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
        let url = Some(Secret::new(config.text("database.url"))).filter(|url| !url.expose().is_empty());
        if url.is_none() && !state.join("interlock.db").exists() {
            bail!(
                "{} holds no installation: start a server there first, or give another --state",
                state.display()
            );
        }
        let parts = installation::open(state, url.as_ref()).await?;
        let users = parts.users(Arc::new([]));
        let who = std::env::var("SUDO_USER")
            .or_else(|_| std::env::var("USER"))
            .unwrap_or_else(|_| "unknown".to_owned());
        let who: String = who.chars().filter(char::is_ascii_alphanumeric).take(32).collect();
        Ok(Self { parts, users, permit: SystemPermit::root(&format!("console:{who}")) })
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

    /// Makes or renews the account for emergencies.
    pub(crate) async fn break_glass(&self, password: Secret) -> Result<UserRow, UserError> {
        self.users.console(&self.permit).break_glass(password).await
    }

    /// Removes every second factor of somebody.
    pub(crate) async fn reset_factors(&self, name: &str) -> Result<(), UserError> {
        self.users.console(&self.permit).reset_factors(name).await
    }

    /// Checks the whole audit chain: its length and last hash.
    pub(crate) async fn verify_audit(&self, noted: Option<(u64, Hash)>) -> anyhow::Result<(u64, String)> {
        let verified = interlock_engine::audit::verify(&*self.parts.store, noted).await?;
        Ok((verified.seq, interlock_model::id::hexadecimal(&verified.hash)))
    }

    /// Ends cleanly.
    pub(crate) async fn close(self) {
        self.parts.store.close().await;
    }
}
