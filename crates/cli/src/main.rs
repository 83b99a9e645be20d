//! The one binary. Wires everything; decides nothing.

mod adapter;
mod ambient;
mod anchors;
mod backup;
mod commands;
mod config;
mod directories;
mod installation;
mod local;
mod logging;
mod own_device;
#[cfg(feature = "passkeys")]
mod passkeys;
mod python;
mod remote;
mod shared;
mod supervision;
mod tools;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand};

use commands::{config as config_command, dev, directory, doctor, net, probe, serve};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs laboratory robots over a network, safely.
#[derive(Debug, Parser)]
#[command(name = "interlock", version, about, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: remote::Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a device server on this machine to try things out
    Dev(dev::DevArgs),
    /// Serve the orchestrator: agents, tokens, people, roles
    Server(Box<net::NetArgs>),
    /// Serve devices
    #[command(subcommand)]
    Device(DeviceCommand),
    /// Try the directories of people: LDAP, OpenID Connect
    #[command(subcommand)]
    Directory(directory::DirectoryCommand),
    /// Look at settings
    #[command(subcommand)]
    Config(config_command::ConfigCommand),
    /// Check this machine and an installation
    Doctor(doctor::DoctorArgs),
    /// Ask once whether a server is ready: exit code 0 if it is
    Probe(probe::ProbeArgs),
    /// Write a manual page for each command into a folder
    #[command(hide = true)]
    Man {
        /// The folder
        folder: std::path::PathBuf,
    },
    /// Print a completion script
    Completion {
        /// bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
    },
    #[command(flatten)]
    Remote(remote::Command),
}

#[derive(Debug, Subcommand)]
enum DeviceCommand {
    /// Serve the actions of a Python file over HTTP
    Serve(Box<serve::ServeArgs>),
}

/// Data for whoever asked. A reader that went away is no error.
pub(crate) fn print_out(text: &str) {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

/// Words for people.
pub(crate) fn print_err(text: &str) {
    logging::flush();
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

fn main() -> ExitCode {
    // One crypto library, chosen before anything can choose another.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let usage = error.use_stderr();
            let _ = error.print();
            return ExitCode::from(if usage { 2 } else { 0 });
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            print_err(&format!("error: start: {error}\n"));
            return ExitCode::from(1);
        }
    };
    let code = runtime.block_on(dispatch(cli));
    // Threads that still wait for a disk or a terminal do not hold the exit.
    runtime.shutdown_background();
    logging::flush();
    ExitCode::from(code)
}

async fn dispatch(cli: Cli) -> u8 {
    match cli.command {
        Command::Dev(args) => {
            logging::start(tracing::Level::WARN, true);
            told(dev::dev(args).await)
        }
        Command::Device(DeviceCommand::Serve(args)) => told(serve_device(*args).await),
        Command::Server(args) => told(serve_orchestrator(*args).await),
        Command::Config(command) => told(config_command::config(&command)),
        Command::Directory(command) => match directory::directory(command, cli.global.wants_json()).await {
            Ok(true) => 0,
            Ok(false) => 1,
            Err(error) => told(Err(error)),
        },
        Command::Doctor(args) => match doctor::doctor(&args).await {
            Ok(true) => 0,
            Ok(false) => 1,
            Err(error) => told(Err(error)),
        },
        Command::Probe(args) => told(probe::probe(&args).await),
        Command::Man { folder } => told(manual(&folder)),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "interlock", &mut std::io::stdout());
            0
        }
        Command::Remote(command) => match remote::execute(command, &cli.global).await {
            Ok(()) => 0,
            Err(failure) => {
                failure.print(&cli.global);
                failure.code()
            }
        },
    }
}

fn manual(folder: &std::path::Path) -> anyhow::Result<()> {
    clap_mangen::generate_to(Cli::command(), folder)
        .with_context(|| format!("write the manual into {}", folder.display()))
}

async fn serve_device(args: serve::ServeArgs) -> anyhow::Result<()> {
    let config = args.net.settings()?;
    start(args.net, Some(args.device), config).await
}

async fn serve_orchestrator(args: net::NetArgs) -> anyhow::Result<()> {
    let mut config = args.settings()?;
    config.default_port(8080);
    start(args, None, config).await
}

async fn start(
    net: net::NetArgs,
    device: Option<serve::DeviceArgs>,
    config: config::Config,
) -> anyhow::Result<()> {
    let (level, text) = config.logging()?;
    logging::start(level, text);
    // On standard output: standard error is the log, which collectors keep, and the first password is shown once.
    serve::serve(net, device, None, config, |ready| print_out(&serve::banner(ready))).await
}

/// Prints a failure as what, why and what to do.
fn told(result: anyhow::Result<()>) -> u8 {
    let Err(error) = result else { return 0 };
    let chain: Vec<String> = error.chain().map(ToString::to_string).collect();
    print_err(&format!("error: {}\n", chain[0]));
    for cause in &chain[1..] {
        print_err(&format!("  {cause}\n"));
    }
    1
}
