//! `interlock dev [FILE]`: a device server and an orchestrator on this machine for the first five minutes.
//!
//! Loopback only, state kept, signed in: the command line works in any other terminal at once.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use interlock_model::secret::Secret;

use super::net::NetArgs;
use super::serve::{self, Beside, DeviceArgs};
use crate::installation;
use crate::remote::contexts;

/// Who the first person is.
const ADMIN: &str = "admin";
/// The device that is served when no file is given.
const EXAMPLE: &str = include_str!("../../../../examples/hello.py");

/// Options of `dev`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DevArgs {
    /// Python file with `@task` functions [default: a small example]
    file: Option<PathBuf>,
    /// Port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 7443)]
    port: u16,
    /// Address and port in one, such as 127.0.0.1:0; loopback only
    #[arg(long, conflicts_with = "port")]
    listen: Option<SocketAddr>,
    /// Port for tasks, their runs and events; 0 takes a free one [default: the next one, 7444]
    #[arg(long)]
    tasks_port: Option<u16>,
    /// Folder for everything that is kept
    #[arg(long)]
    state: Option<PathBuf>,
    /// Written as JSON once the server answers
    #[arg(long)]
    ready_file: Option<PathBuf>,
    /// Python interpreter
    #[arg(long, env = "INTERLOCK_PYTHON")]
    python: Option<PathBuf>,
}

/// Serves and signs the command line in.
///
/// # Errors
/// As `device serve`.
pub(crate) async fn dev(args: DevArgs) -> anyhow::Result<()> {
    let address = args.listen.unwrap_or_else(|| ([127, 0, 0, 1], args.port).into());
    if !address.ip().is_loopback() {
        anyhow::bail!(
            "a development server listens on this machine only; use `interlock device serve` for the network"
        );
    }
    let state = args.state.unwrap_or_else(|| installation::default_state("dev"));
    installation::prepare(&state)?;
    let file = if let Some(file) = args.file {
        file
    } else {
        let path = state.join("hello.py");
        std::fs::write(&path, EXAMPLE).with_context(|| format!("write {}", path.display()))?;
        path
    };
    // The password of the development server stays in its folder, mode 0600, so that it can be used again tomorrow.
    let kept = installation::keep(&state.join("keys/dev-admin-password"), || {
        let ambient = crate::ambient::ambient();
        Ok(interlock_model::id::random_hex(&*ambient.entropy, 16).into_bytes())
    })?;
    let password = Secret::new(String::from_utf8_lossy(&kept).trim());
    let net = NetArgs {
        host: Some(address.ip().to_string()),
        port: Some(address.port()),
        state: Some(state),
        ready_file: args.ready_file,
        ..NetArgs::default()
    };
    let device = DeviceArgs {
        file,
        name: None,
        python: args.python,
        environment: Vec::new(),
        simulate: false,
        no_standby: false,
    };
    // A free port beside a free port: two development servers never meet.
    let tasks_port = if address.port() == 0 { 0 } else { address.port().saturating_add(1) };
    let beside = Beside {
        listen: SocketAddr::new(address.ip(), args.tasks_port.unwrap_or(tasks_port)),
        user: ADMIN,
        password: password.clone(),
    };
    let mut config = net.settings()?;
    config.for_development(&password);
    serve::serve(net, Some(device), Some(beside), config, move |told| {
        let (url, tasks_url) = (told.url.clone(), told.tasks_url.clone());
        crate::print_err(&format!(
            "\n  Interlock {} · development · this machine only\n  Panel     {url}/panel   (admin / {})\n  Tasks     {}/docs\n  Try       interlock action list\n            interlock run {}\n            interlock tool list\n",
            env!("CARGO_PKG_VERSION"),
            password.expose(),
            tasks_url.as_deref().unwrap_or_default(),
            told.first_action,
        ));
        let secret = password.clone();
        tokio::spawn(async move {
            let addresses = (url.as_str(), tasks_url.as_deref());
            if let Err(error) = contexts::sign_in_to_both_and_save("dev", addresses, ADMIN, &secret).await {
                crate::print_err(&format!("  The command line could not sign in: {error}\n"));
            }
        });
    })
    .await
}
