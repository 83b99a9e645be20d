//! One installation: its state folder, keys, database and people.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use interlock_engine::Ambient;
use interlock_engine::auth::{
    Db, Hasher, KEY_BYTES, Keys, Lifetimes, MasterKey, Passwords, Principals, SystemPermit, Tokens,
};
use interlock_engine::identity::Identity;
use interlock_engine::users::Users;
use interlock_evidence::checkpoint::Signer;
use interlock_model::secret::Secret;
use interlock_store::{Store, postgres};

use crate::ambient::{self, ambient};
use crate::config::ServerSettings;

/// How often key files are looked at.
pub(crate) const LOOKING: std::time::Duration = std::time::Duration::from_secs(1);

/// Creates the state folder for its owner only, or checks that it is usable.
///
/// # Errors
/// When it cannot be created or written, or others can read it.
pub(crate) fn prepare(state: &Path) -> anyhow::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(state).with_context(|| {
        format!("create the state folder {}; choose another with --state", state.display())
    })?;
    let mode = fs::metadata(state)?.permissions().mode();
    if mode & 0o077 != 0 {
        fs::set_permissions(state, fs::Permissions::from_mode(0o700)).with_context(|| {
            format!("others can read the state folder {} and this user cannot change that", state.display())
        })?;
    }
    let probe = state.join(".write-test");
    fs::write(&probe, b"x")
        .and_then(|()| fs::remove_file(&probe))
        .with_context(|| format!("write to the state folder {}; check its owner and the free space, or choose another with --state", state.display()))
}

/// Reads a file, or writes what `make` gives with mode 0600 and returns that.
pub(crate) fn keep(path: &Path, make: impl FnOnce() -> anyhow::Result<Vec<u8>>) -> anyhow::Result<Vec<u8>> {
    match fs::read(path) {
        Ok(bytes) => return Ok(bytes),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    }
    let bytes = make()?;
    replace(path, &bytes)?;
    Ok(bytes)
}

/// Writes a file with mode 0600 in place of what was there: a reader sees the old content or the new.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let temporary = path.with_extension("new");
    // Left behind by a start that was killed in between.
    let _ = fs::remove_file(&temporary);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .with_context(|| format!("write {}", temporary.display()))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    Ok(())
}

/// What servers of one database tell each other.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    /// Somebody's rights, bans or keys have changed.
    pub(crate) news: postgres::News,
    /// There are runs to carry out, or due times have changed.
    pub(crate) work: postgres::News,
}

/// Opens the database that the settings name, and what tells other servers of it that something changed.
///
/// # Errors
/// When it cannot be opened; the text says what to do.
pub(crate) async fn open_store(
    state: &Path,
    url: Option<&Secret>,
) -> anyhow::Result<(Arc<dyn Store>, Option<Told>)> {
    match url {
        None => {
            let path = state.join("interlock.db");
            let store = interlock_store::sqlite::Sqlite::open(&path)
                .with_context(|| format!("open the database {}", path.display()))?;
            Ok((Arc::new(store), None))
        }
        Some(url) if url.expose().starts_with("postgres://") || url.expose().starts_with("postgresql://") => {
            let store = postgres::Postgres::connect(url.expose())
                .await
                .context("connect to the database of DATABASE_URL")?;
            let told = Told { news: store.news(), work: store.work() };
            Ok((Arc::new(store), Some(told)))
        }
        Some(_) => bail!(
            "DATABASE_URL must begin with postgres:// ; leave it unset for a SQLite file in the state folder"
        ),
    }
}

/// Where the private signing key lies.
pub(crate) fn key_path(state: &Path) -> PathBuf {
    state.join("keys/token-signing.pk8")
}

fn signing_keys(state: &Path, settings: &ServerSettings) -> anyhow::Result<Keys> {
    if let Some(secret) = &settings.jwt_secret {
        return Ok(Keys::hs256(secret, settings.jwt_secret_previous.as_ref())?);
    }
    let path = key_path(state);
    let key = keep(&path, || Ok(Keys::generate()?))?;
    Keys::ed25519(&key).with_context(|| format!("use {}", path.display()))
}

/// What seals stored secrets: the configured key, or one that is made once and kept.
///
/// # Errors
/// When the key is of another form or cannot be kept.
pub(crate) fn master_key(
    state: &Path,
    settings: &ServerSettings,
    parts: &Parts,
) -> anyhow::Result<MasterKey> {
    let read = |text: &Secret| MasterKey::read(text);
    let Some(text) = &settings.master_key else {
        keep(&master_path(state), || Ok(random_key(parts)))?;
        return stored_master_key(state);
    };
    let key = MasterKey::new(&read(text).context("use MASTER_KEY")?).context("use MASTER_KEY")?;
    match &settings.master_key_previous {
        Some(text) => {
            let previous = read(text).context("use MASTER_KEY_PREVIOUS")?;
            key.with_previous(&previous).context("use MASTER_KEY_PREVIOUS")
        }
        None => Ok(key),
    }
}

fn random_key(parts: &Parts) -> Vec<u8> {
    let mut bytes = vec![0; KEY_BYTES];
    parts.ambient.entropy.fill(&mut bytes);
    bytes
}

/// Where the key that seals lies.
pub(crate) fn master_path(state: &Path) -> PathBuf {
    state.join("keys/master.key")
}

/// Where the key before lies while it is exchanged.
fn previous_master_path(state: &Path) -> PathBuf {
    state.join("keys/master.key.previous")
}

/// The key of the state folder, and the one before while it is exchanged.
fn stored_master_key(state: &Path) -> anyhow::Result<MasterKey> {
    let path = master_path(state);
    let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let key = MasterKey::new(&bytes).with_context(|| format!("use {}", path.display()))?;
    let path = previous_master_path(state);
    match fs::read(&path) {
        Ok(bytes) => key.with_previous(&bytes).with_context(|| format!("use {}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(key),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// Puts a new key in place of the one that seals, which stays beside it; `false` if that was done before and not ended. At every
/// moment the files hold each key that has sealed anything.
///
/// # Errors
/// When a file cannot be read or written.
pub(crate) fn begin_master_exchange(state: &Path, parts: &Parts) -> anyhow::Result<bool> {
    let (path, beside) = (master_path(state), previous_master_path(state));
    let current = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    // The same twice: it was interrupted before the new key was in place.
    if fs::read(&beside).is_ok_and(|previous| previous != current) {
        return Ok(false);
    }
    replace(&beside, &current)?;
    replace(&path, &random_key(parts))?;
    Ok(true)
}

/// Forgets the key before.
///
/// # Errors
/// When the file cannot be removed.
pub(crate) fn end_master_exchange(state: &Path) -> anyhow::Result<()> {
    let path = previous_master_path(state);
    fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
}

/// Goes on with another master key as soon as its files are exchanged (`interlock keys rotate-master`). Runs until dropped.
pub(crate) async fn follow_master_key(state: PathBuf, identity: Identity) {
    let look = || (fs::read(master_path(&state)).ok(), fs::read(previous_master_path(&state)).ok());
    let mut known = look();
    loop {
        tokio::time::sleep(LOOKING).await;
        let found = look();
        if found == known {
            continue;
        }
        match stored_master_key(&state) {
            Ok(key) => {
                identity.exchange_master(&key);
                tracing::info!("the files of the master key have changed and are in use");
            }
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "the new master key cannot be used");
            }
        }
        known = found;
    }
}

/// What issues and reads tokens, with the key that the settings or the state folder give.
///
/// # Errors
/// When the key is weak, published or damaged, or the installation's name cannot be stored.
pub(crate) async fn tokens(
    state: &Path,
    settings: &ServerSettings,
    issuer: String,
    parts: &Parts,
) -> anyhow::Result<Tokens> {
    let keys = signing_keys(state, settings)?;
    let lifetimes = Lifetimes {
        user_seconds: settings.token_hours * 3600,
        agent_seconds: settings.access_minutes * 60,
        refresh_seconds: settings.refresh_days * 86_400,
    };
    Ok(Tokens::new(keys, audience(state, parts).await?, lifetimes).issued_by(issuer))
}

/// A name that no other installation has: tokens are bound to it. It is in the database, so that servers that share one are
/// one installation.
async fn audience(state: &Path, parts: &Parts) -> anyhow::Result<String> {
    let bytes = keep(&state.join("keys/installation-id"), || {
        Ok(interlock_model::id::random_hex(&*parts.ambient.entropy, 16).into_bytes())
    })?;
    let own = String::from_utf8_lossy(&bytes).trim().to_owned();
    let name = interlock_engine::identity::installation_name(&parts.db, &SystemPermit::root("system"), own)
        .await
        .context("name the installation")?;
    Ok(format!("interlock:{name}"))
}

/// Signs the audit log with a key that is not in the database.
///
/// # Errors
/// When the key is damaged or cannot be kept, or the installation's name cannot be read.
pub(crate) async fn audit_signer(state: &Path, parts: &Parts) -> anyhow::Result<Signer> {
    let path = state.join("keys/audit-signing.pk8");
    let key = keep(&path, || Ok(Signer::generate()?))?;
    let origin = audience(state, parts).await?.replace(':', "/");
    Signer::from_pkcs8(&origin, &key).with_context(|| format!("use {}", path.display()))
}

/// Signs with another key as soon as its file is exchanged (`interlock keys rotate`). Runs until dropped.
pub(crate) async fn follow_key(state: PathBuf, identity: Identity) {
    let path = key_path(&state);
    let mut known = fs::read(&path).ok();
    loop {
        tokio::time::sleep(LOOKING).await;
        let Ok(found) = fs::read(&path) else { continue };
        if known.as_ref() == Some(&found) {
            continue;
        }
        match identity.sessions.tokens().keys().exchange(&found) {
            Ok(()) => {
                let permit = SystemPermit::root("system");
                if let Err(error) = identity.publish_key(&permit).await {
                    tracing::error!(%error, "the new signing key could not be published");
                }
                tracing::info!("tokens are signed with a new key");
            }
            Err(error) => tracing::error!(%error, "the new signing key cannot be used; the old one stays"),
        }
        known = Some(found);
    }
}

/// The parts that both the server and the local command line need.
pub(crate) struct Parts {
    pub(crate) ambient: Ambient,
    pub(crate) store: Arc<dyn Store>,
    /// Of a database that servers can share.
    pub(crate) told: Option<Told>,
    pub(crate) db: Db,
    pub(crate) principals: Arc<Principals>,
    pub(crate) passwords: Passwords,
}

/// Opens them.
///
/// # Errors
/// When the database cannot be opened or read.
pub(crate) async fn open(state: &Path, url: Option<&Secret>) -> anyhow::Result<Parts> {
    prepare(state)?;
    let ambient = ambient();
    ambient::resume(state);
    let (store, told) = open_store(state, url).await?;
    let db = Db::new(Arc::clone(&store), ambient.clone());
    let principals = Principals::load(Arc::clone(&store), ambient.clone()).await.context("read the users")?;
    let passwords = Passwords::start(Hasher::Production);
    Ok(Parts { ambient, store, told, db, principals, passwords })
}

impl Parts {
    /// People, with the roles that the device's actions ask for.
    pub(crate) fn users(&self, device_roles: Arc<[String]>) -> Users {
        Users::new(
            self.db.clone(),
            self.ambient.clone(),
            Arc::clone(&self.principals),
            self.passwords.clone(),
            device_roles,
        )
    }
}

/// Makes the first administrator if there is nobody yet. Returns the password if one was made up: show it once.
///
/// # Errors
/// When the configured password is not accepted or the user cannot be stored.
pub(crate) async fn first_admin(
    parts: &Parts,
    users: &Users,
    configured: Option<&Secret>,
) -> anyhow::Result<Option<Secret>> {
    let root = SystemPermit::root("system");
    let console = users.console(&root);
    if !console.list().await.context("read the users")?.is_empty() {
        return Ok(None);
    }
    let roles = ["admin", "operator", "viewer"].map(str::to_owned);
    if let Some(secret) = configured {
        console
            .create("admin", secret.clone(), &roles)
            .await
            .context("make the first administrator from BOOTSTRAP_ADMIN_SECRET")?;
        return Ok(None);
    }
    let secret = Secret::new(readable_password(parts));
    console.create("admin", secret.clone(), &roles).await.context("make the first administrator")?;
    Ok(Some(secret))
}

/// 25 characters of an alphabet without look-alikes: 125 bits.
pub(crate) fn readable_password(parts: &Parts) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let mut bytes = [0_u8; 25];
    parts.ambient.entropy.fill(&mut bytes);
    let letters: Vec<char> = bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect();
    letters.chunks(5).map(|chunk| chunk.iter().collect::<String>()).collect::<Vec<_>>().join("-")
}

/// Where state is kept when nothing is said.
pub(crate) fn default_state(name: &str) -> PathBuf {
    let base = std::env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/state")))
        .unwrap_or_else(|| PathBuf::from("/var/lib"));
    base.join("interlock").join(name)
}
