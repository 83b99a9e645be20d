//! The file of contexts: which servers this person knows, and the token for each.
//!
//! `contexts.json`, mode 0600 in a folder of mode 0700, replaced as a whole. The Python SDK reads the same file. Tokens are in
//! it, so nothing here prints one.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use interlock_client::{Builder, Client, TokenPair, TokenStore};
use interlock_model::secret::Secret;
use interlock_model::wire::LoginAnswer;
use interlock_model::{Clock as _, Timestamp};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use super::failure::{Failure, exit};
use super::global::{Lookup, process_variable};
use crate::ambient::SystemClock;

/// Largest file that is read.
const MAX_BYTES: u64 = 4 * 1024 * 1024;

/// A server and the token for it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Context {
    /// Address of the server.
    pub(crate) url: String,
    /// Address of the orchestrator of the same installation, where that is another one: the token is good for both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tasks_url: Option<String>,
    /// PEM file of its certificate authority.
    #[serde(default)]
    pub(crate) ca_file: Option<PathBuf>,
    /// PEM file of the certificate that its tokens are bound to, and of the key where that is a file of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) client_cert: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) client_key: Option<PathBuf>,
    /// Who signed in.
    #[serde(default)]
    pub(crate) user: Option<String>,
    /// Their token.
    #[serde(default, serialize_with = "exposed")]
    pub(crate) token: Option<Secret>,
    /// Exchanged for a new token when that has ended.
    #[serde(default, serialize_with = "exposed", skip_serializing_if = "Option::is_none")]
    pub(crate) refresh_token: Option<Secret>,
    /// End of the token by the clock here.
    #[serde(default)]
    pub(crate) expires_at: Option<Timestamp>,
    /// Members of later versions, kept as they are.
    #[serde(flatten)]
    pub(crate) more: Map<String, Value>,
}

impl Context {
    /// Keeps the tokens of an answer.
    fn take(&mut self, answer: &LoginAnswer) {
        let lifetime = std::time::Duration::from_secs(u64::try_from(answer.expires_in).unwrap_or(0));
        self.token = Some(Secret::new(answer.access_token.clone()));
        self.refresh_token = answer.refresh_token.clone().map(Secret::new);
        self.expires_at = Some(SystemClock.now().plus(lifetime));
    }

    /// Forgets the tokens.
    pub(crate) fn forget(&mut self) {
        self.token = None;
        self.refresh_token = None;
        self.expires_at = None;
    }
}

/// The tokens of one context, for a client that renews them.
#[derive(Debug)]
pub(crate) struct Kept {
    /// Name of the context.
    pub(crate) name: String,
}

impl TokenStore for Kept {
    fn load(&self) -> Option<TokenPair> {
        let mut all = load().ok()?;
        let Context { token, refresh_token, .. } = all.contexts.remove(&self.name)?;
        Some(TokenPair { access: token?, refresh: refresh_token? })
    }

    fn save(&self, answer: &LoginAnswer) {
        // A pair that cannot be kept serves this command; the next one asks to sign in.
        let _ = change(|all| {
            if let Some(context) = all.contexts.get_mut(&self.name) {
                context.take(answer);
            }
        });
    }
}

/// The file is the one place where a token is written out.
#[expect(clippy::ref_option, reason = "the form that serde calls")]
fn exposed<S: Serializer>(token: &Option<Secret>, serializer: S) -> Result<S::Ok, S::Error> {
    token.as_ref().map(Secret::expose).serialize(serializer)
}

/// The whole file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Contexts {
    /// Name of the one in use.
    #[serde(default)]
    pub(crate) current: Option<String>,
    /// All of them.
    #[serde(default)]
    pub(crate) contexts: BTreeMap<String, Context>,
}

/// Where the file is: `INTERLOCK_CONFIG_DIR`, or the user's configuration folder.
fn folder(lookup: Lookup<'_>) -> Result<PathBuf, Failure> {
    if let Some(folder) = lookup("INTERLOCK_CONFIG_DIR") {
        return Ok(PathBuf::from(folder));
    }
    // The base folder must be absolute, by the XDG base directory specification.
    let base = lookup("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let base = base.or_else(|| lookup("HOME").map(|home| PathBuf::from(home).join(".config")));
    let hint = "set HOME, or INTERLOCK_CONFIG_DIR to a folder of your own";
    base.map(|base| base.join("interlock"))
        .ok_or_else(|| Failure::new(exit::ERROR, "there is no folder for contexts", hint))
}

/// The path of the file.
pub(crate) fn path() -> Result<PathBuf, Failure> {
    Ok(folder(&process_variable)?.join("contexts.json"))
}

/// Reads the file; nothing is there before the first sign-in.
pub(crate) fn load() -> Result<Contexts, Failure> {
    load_from(&path()?)
}

/// Changes the file. Two processes change it one after the other.
pub(crate) fn change(edit: impl FnOnce(&mut Contexts)) -> Result<(), Failure> {
    change_at(&path()?, edit)
}

/// Adds or replaces a context.
pub(crate) fn save(name: &str, mut context: Context, make_current: bool) -> Result<(), Failure> {
    check_name(name)?;
    change(|contexts| {
        // Signing in again to the same server does not make it forget the orchestrator beside it.
        if let Some(before) = contexts.contexts.get(name).filter(|before| before.url == context.url) {
            context.tasks_url = context.tasks_url.or_else(|| before.tasks_url.clone());
        }
        contexts.contexts.insert(name.to_owned(), context);
        if make_current {
            contexts.current = Some(name.to_owned());
        }
    })
}

/// Signs in and keeps the token as the current context.
pub(crate) async fn sign_in_and_save(
    name: &str,
    url: &str,
    ca_file: Option<&Path>,
    user: &str,
    password: &Secret,
    (otp, scope): (Option<&Secret>, Option<&str>),
) -> Result<LoginAnswer, Failure> {
    check_name(name)?;
    let client = client(url, ca_file, None)?;
    let answer = client.login(user, password, otp, scope).await?;
    let mut context = of(&client, ca_file, &answer.user);
    context.take(&answer);
    save(name, context, true)?;
    Ok(answer)
}

/// Signs in to a device server with an orchestrator beside it, and keeps the token and both addresses as the current context.
pub(crate) async fn sign_in_to_both_and_save(
    name: &str,
    (url, tasks_url): (&str, Option<&str>),
    user: &str,
    password: &Secret,
) -> Result<(), Failure> {
    let client = client(url, None, None)?;
    let answer = client.login(user, password, None, None).await?;
    let mut context = of(&client, None, &answer.user);
    context.tasks_url = tasks_url.map(str::to_owned);
    context.take(&answer);
    save(name, context, true)
}

/// As [`sign_in_and_save`], by the certificate in a file; the key may be in the same one.
pub(crate) async fn sign_in_by_certificate_and_save(
    name: &str,
    url: &str,
    ca_file: Option<&Path>,
    identity: &Identity,
    otp: Option<&Secret>,
) -> Result<LoginAnswer, Failure> {
    check_name(name)?;
    let mut builder = Client::builder(url);
    if let Some(path) = ca_file {
        builder = builder.ca_pem(read_ca(path)?);
    }
    let client = identity.shown_by(builder)?.build()?;
    let answer = client.login_by_certificate(otp).await?;
    let mut context = of(&client, ca_file, &answer.user);
    let whole = |path: &PathBuf| fs::canonicalize(path).unwrap_or_else(|_| path.clone());
    context.client_cert = Some(whole(&identity.certificate));
    context.client_key = identity.key.as_ref().map(whole);
    context.take(&answer);
    save(name, context, true)?;
    Ok(answer)
}

/// A client for an address that is no context yet.
pub(crate) fn client(url: &str, ca_file: Option<&Path>, token: Option<&Secret>) -> Result<Client, Failure> {
    let mut builder = Client::builder(url);
    if let Some(path) = ca_file {
        builder = builder.ca_pem(read_ca(path)?);
    }
    builder = identified(builder, None)?;
    if let Some(token) = token {
        builder = builder.token(token.clone());
    }
    Ok(builder.build()?)
}

/// Keeps a token as the current context.
pub(crate) fn keep(
    name: &str,
    client: &Client,
    ca_file: Option<&Path>,
    user: &str,
    token: Secret,
    expires_in: i64,
) -> Result<(), Failure> {
    let lifetime = std::time::Duration::from_secs(u64::try_from(expires_in).unwrap_or(0));
    let mut context = of(client, ca_file, user);
    context.token = Some(token);
    context.expires_at = Some(SystemClock.now().plus(lifetime));
    save(name, context, true)
}

/// A context without tokens.
fn of(client: &Client, ca_file: Option<&Path>, user: &str) -> Context {
    Context {
        url: client.url().to_owned(),
        // The command may be used in another folder next time.
        ca_file: ca_file.map(|path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())),
        user: Some(user.to_owned()),
        ..Context::default()
    }
}

/// Keeps the new token of a session that goes on.
pub(crate) fn renew(name: &str, answer: &LoginAnswer) -> Result<(), Failure> {
    change(|all| {
        if let Some(context) = all.contexts.get_mut(name) {
            context.take(answer);
        }
    })
}

/// A client certificate in PEM files.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    /// The certificate; many tools keep the key in the same file.
    pub(crate) certificate: PathBuf,
    /// The key.
    pub(crate) key: Option<PathBuf>,
}

impl Identity {
    /// What `INTERLOCK_CLIENT_CERT` and `INTERLOCK_CLIENT_KEY` name.
    fn of_process() -> Option<Self> {
        let file = |name| process_variable(name).map(PathBuf::from);
        Some(Self { certificate: file("INTERLOCK_CLIENT_CERT")?, key: file("INTERLOCK_CLIENT_KEY") })
    }

    /// Shows it to servers that ask for one.
    fn shown_by(&self, builder: Builder) -> Result<Builder, Failure> {
        let read = |path: &Path| {
            let hint = "check the file of the client certificate: --cert and --key, or INTERLOCK_CLIENT_CERT and INTERLOCK_CLIENT_KEY";
            fs::read(path).map_err(|error| Failure::file("cannot read", path, &error, hint))
        };
        let mut text = read(&self.certificate)?;
        if let Some(key) = &self.key {
            text.push(b'\n');
            text.extend(read(key)?);
        }
        Ok(builder.identity_pem(text))
    }
}

/// Shows the client certificate of this process, or else the one that the tokens of a context are bound to.
pub(crate) fn identified(builder: Builder, kept: Option<&Identity>) -> Result<Builder, Failure> {
    match Identity::of_process().as_ref().or(kept) {
        Some(identity) => identity.shown_by(builder),
        None => Ok(builder),
    }
}

/// Keeps the certificate of an authority that was confirmed, beside the contexts.
pub(crate) fn keep_authority(name: &str, pem: &str) -> Result<PathBuf, Failure> {
    let folder = folder(&process_variable)?.join("authorities");
    let path = folder.join(format!("{name}.pem"));
    let kept = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).and_then(|()| {
        let fresh = path.with_extension("new");
        fs::write(&fresh, pem)?;
        fs::rename(&fresh, &path)
    });
    kept.map_err(|error| {
        Failure::file("cannot write", &path, &error, "check the disk and who owns the folder")
    })?;
    Ok(fs::canonicalize(&path).unwrap_or(path))
}

/// The text of a CA file.
pub(crate) fn read_ca(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut text));
    read.map_err(|error| {
        Failure::file("cannot read the CA file", path, &error, "give the right file with --ca-file")
    })?;
    Ok(text)
}

/// Names are words, so that they can stand in a command without quotes.
pub(crate) fn check_name(name: &str) -> Result<(), Failure> {
    let good = (1..=64).contains(&name.len())
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_'))
        && name.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric());
    if good {
        return Ok(());
    }
    Err(Failure::usage(
        "a context's name is 1 to 64 letters, digits, dots, hyphens or underscores",
        "give another name with --context",
    ))
}

fn load_from(path: &Path) -> Result<Contexts, Failure> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Contexts::default()),
        Err(error) => return Err(Failure::file("cannot read", path, &error, "check who owns the file")),
    };
    let mut text = String::new();
    let mode = file.metadata().map_or(0, |metadata| metadata.permissions().mode());
    let read = (&file).take(MAX_BYTES).read_to_string(&mut text);
    read.map_err(|error| Failure::file("cannot read", path, &error, "check the file"))?;
    if mode & 0o077 != 0 {
        // Tokens are in it. Others may have read it until now, but will not from now on.
        let _ = file.set_permissions(fs::Permissions::from_mode(0o600));
    }
    serde_json::from_str(&text).map_err(|error| {
        let hint = format!("mend it, or remove it and sign in again: rm {}", path.display());
        Failure::new(exit::ERROR, format!("{} is not a file of contexts", path.display()), hint)
            .because(error.to_string())
    })
}

fn change_at(path: &Path, edit: impl FnOnce(&mut Contexts)) -> Result<(), Failure> {
    let failed = |error: &io::Error| {
        Failure::file("cannot write", path, error, "check the disk and who owns the folder")
    };
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| failed(&error))?;
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(folder.join("contexts.lock"));
    let lock = lock.map_err(|error| failed(&error))?;
    lock.lock().map_err(|error| failed(&error))?;
    let mut contexts = load_from(path)?;
    edit(&mut contexts);
    write(path, &contexts).map_err(|error| failed(&error))
}

/// Writes beside the file and renames: a reader sees the old file or the new one.
fn write(path: &Path, contexts: &Contexts) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(contexts)?;
    text.push(b'\n');
    let fresh = path.with_extension("json.new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&fresh)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(url: &str) -> Context {
        Context { url: url.to_owned(), token: Some(Secret::new("ilk_token")), ..Context::default() }
    }

    #[test]
    fn a_context_survives_its_file_and_nobody_else_can_read_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("deep/interlock/contexts.json");

        change_at(&path, |contexts| {
            contexts.contexts.insert("dev".to_owned(), context("http://127.0.0.1:8000"));
            contexts.current = Some("dev".to_owned());
        })
        .expect("written");

        let read = load_from(&path).expect("read");
        assert_eq!(read.current.as_deref(), Some("dev"));
        assert!(read.contexts["dev"].token.as_ref().expect("a token").matches("ilk_token"));
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().expect("a folder")), 0o700);
    }

    #[test]
    fn a_file_that_others_can_read_is_closed_to_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("contexts.json");
        fs::write(&path, "{}").expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("set");

        load_from(&path).expect("read");

        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn members_of_a_later_version_are_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("contexts.json");
        fs::write(&path, r#"{"current": null, "contexts": {"a": {"url": "https://a", "colour": "red"}}}"#)
            .expect("written");

        change_at(&path, |contexts| contexts.current = Some("a".to_owned())).expect("changed");

        assert!(fs::read_to_string(&path).expect("read").contains("\"colour\": \"red\""));
    }

    #[test]
    fn debug_output_holds_no_token() {
        assert!(!format!("{:?}", context("https://a")).contains("ilk_token"));
    }

    #[test]
    fn the_folder_follows_the_environment() {
        let lookup = |pairs: &'static [(&str, &str)]| {
            move |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };

        let told = folder(&lookup(&[("INTERLOCK_CONFIG_DIR", "/x"), ("HOME", "/home/ana")]));
        let xdg = folder(&lookup(&[("XDG_CONFIG_HOME", "/c"), ("HOME", "/home/ana")]));
        let relative = folder(&lookup(&[("XDG_CONFIG_HOME", "c"), ("HOME", "/home/ana")]));

        assert_eq!(told.expect("a folder"), Path::new("/x"));
        assert_eq!(xdg.expect("a folder"), Path::new("/c/interlock"));
        assert_eq!(relative.expect("a folder"), Path::new("/home/ana/.config/interlock"));
        assert!(folder(&|_| None).is_err());
    }
}
