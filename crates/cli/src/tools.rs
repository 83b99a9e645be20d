//! Makes the tools of pipelines out of the settings: which hosts, devices and MCP servers tasks may reach.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use interlock_client::Client;
use interlock_engine::orchestrator::Courier;
use interlock_engine::tools::{Simulated, Toolbox, Tools};
use interlock_model::secret::Secret;
use interlock_tools::Shelf;
use interlock_tools::device::{Devices, Link};
use interlock_tools::http::HttpRequest;
use interlock_tools::limits::Limited;
use interlock_tools::mcp::{Server, Servers};
use interlock_tools::net::Reach;
use interlock_tools::webhook::Webhooks;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::ServerSettings;

/// The file `TOOLS_FILE`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    device: Vec<DeviceEntry>,
    #[serde(default)]
    mcp: Vec<McpEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceEntry {
    name: String,
    url: String,
    token_file: PathBuf,
    #[serde(default)]
    ca_file: Option<PathBuf>,
    #[serde(default)]
    certificate_file: Option<PathBuf>,
    #[serde(default)]
    key_file: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct McpEntry {
    name: String,
    #[serde(default)]
    command: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    url: Option<String>,
    #[serde(default)]
    token_file: Option<PathBuf>,
    #[serde(default)]
    read_only: Vec<String>,
    #[serde(default)]
    idempotent: Vec<String>,
}

/// The tools, and the work that keeps their lists current.
pub(crate) struct Made {
    pub(crate) toolbox: Arc<dyn Toolbox>,
    /// Tells agents outcomes.
    pub(crate) courier: Arc<dyn Courier>,
    devices: Devices,
    servers: Servers,
}

impl Made {
    /// Keeps the lists of devices and MCP servers current until `stop`.
    pub(crate) fn begin(&self, tasks: &TaskTracker, stop: &CancellationToken) {
        let (devices, servers) = (self.devices.clone(), self.servers.clone());
        let (one, other) = (stop.clone(), stop.clone());
        tasks.spawn(async move { devices.keep_current(one).await });
        tasks.spawn(async move { servers.keep_current(other).await });
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("read {}", path.display()))
}

fn token(path: &Path) -> anyhow::Result<Secret> {
    let text = String::from_utf8(read(path)?).with_context(|| format!("{} is not text", path.display()))?;
    if text.trim().is_empty() {
        bail!("{} is empty: it holds a token or an API key", path.display());
    }
    Ok(Secret::new(text.trim()))
}

fn device(entry: &DeviceEntry) -> anyhow::Result<(String, Arc<dyn Link>)> {
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'-');
    if !(1..=64).contains(&entry.name.len()) || !entry.name.bytes().all(plain) {
        bail!("a device's name has 1 to 64 letters, digits, _ and -, not {:?}", entry.name);
    }
    let mut builder = Client::builder(&entry.url).token(token(&entry.token_file)?);
    if let Some(path) = &entry.ca_file {
        builder = builder.ca_pem(read(path)?);
    }
    match (&entry.certificate_file, &entry.key_file) {
        (Some(certificate), Some(key)) => {
            builder = builder.identity_pem([read(certificate)?, b"\n".to_vec(), read(key)?].concat());
        }
        (None, None) => {}
        _ => bail!("the device {:?} needs both certificate_file and key_file, or neither", entry.name),
    }
    let client = builder.build().with_context(|| format!("use the device {:?}", entry.name))?;
    Ok((entry.name.clone(), Arc::new(client)))
}

fn server(entry: McpEntry) -> anyhow::Result<Server> {
    let token = entry.token_file.as_deref().map(token).transpose()?;
    let McpEntry { name, command, env, url, read_only, idempotent, .. } = entry;
    Ok(Server { name, command, env, url, token, read_only, idempotent })
}

/// Makes the tools. Connects to nothing. `own` is a device of this process, beside those of the file.
///
/// # Errors
/// The setting, or the entry of the file, that cannot be used.
pub(crate) fn make(settings: &ServerSettings, own: Option<(String, Arc<dyn Link>)>) -> anyhow::Result<Made> {
    let wanted = &settings.tools;
    let file = match &wanted.file {
        None => File::default(),
        Some(path) => {
            let text = String::from_utf8(read(path)?).context("TOOLS_FILE is not text")?;
            toml::from_str(&text).with_context(|| format!("read the tools in {}", path.display()))?
        }
    };
    let reach = Reach::new(&wanted.http_hosts, &wanted.http_networks)
        .context("HTTP_TOOL_HOSTS or HTTP_TOOL_NETWORKS")?;
    let ca = wanted.http_ca_file.as_deref().map(read).transpose()?;
    let anywhere = Reach::anywhere(&[], &wanted.http_networks).context("HTTP_TOOL_NETWORKS")?;
    let courier = Webhooks::new(Arc::new(anywhere), ca.as_deref()).context("set up webhooks")?;
    let http = HttpRequest::new(Arc::new(reach), ca.as_deref()).context("set up http.request")?;
    let mut devices: Vec<_> = file.device.iter().map(device).collect::<anyhow::Result<_>>()?;
    devices.extend(own);
    let devices = Devices::new(devices);
    let servers = Servers::new(file.mcp.into_iter().map(server).collect::<anyhow::Result<_>>()?)?;
    let tools = Tools::new(vec![
        Arc::new(Shelf::default().with("http.request", http)),
        Arc::new(devices.clone()),
        Arc::new(servers.clone()),
    ]);
    let toolbox: Arc<dyn Toolbox> = if settings.simulate_tools {
        tracing::warn!("TOOL_MODE is simulate: steps of pipelines do nothing, and their results say so");
        Arc::new(Simulated(tools))
    } else {
        Arc::new(Limited::new(tools, &wanted.rates).context("TOOL_RATES")?)
    };
    Ok(Made { toolbox, courier: Arc::new(courier), devices, servers })
}
