//! The commands that talk to a server, and their conventions: streams, exit codes, contexts, prompts.
//!
//! Answers for everything between the parsed command line and the printed answer. The HTTP is in `interlock_client`; what
//! works without a server is in `crate::commands`. A new command starts in its own file with an `Args` struct and a function
//! that takes [`ui::Ui`] and [`connect::Session`].

mod access;
mod account;
mod actions;
mod agents;
mod api;
mod attention;
mod audit;
mod audit_forms;
mod audit_tail;
mod backup;
mod bans;
mod connect;
mod context;
pub(crate) mod contexts;
mod failure;
mod global;
mod invitations;
mod keys;
mod live;
mod lockouts;
mod logs;
mod notation;
mod parameters;
mod roles;
mod run;
mod runs;
mod sign_in;
mod signing;
mod status;
mod stop;
mod task_runs;
mod tasks;
mod terminal;
mod text;
mod trust;
mod ui;
mod user_import;
mod users;
mod wait;
mod watch;

use clap::Subcommand;

pub(crate) use failure::Failure;
pub(crate) use global::Global;

use connect::Target;
use failure::exit;
use ui::Ui;

/// Commands that talk to a server.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run an action and wait for its result
    Run(run::RunArgs),
    /// Emergency stop: at once, without a question
    Stop(stop::StopArgs),
    /// Release the emergency stop, when the device is safe
    Release(stop::ReleaseArgs),
    /// Say that a person has looked at a device that waits for one
    #[command(subcommand)]
    Attention(attention::AttentionCommand),
    /// Look at runs
    #[command(subcommand)]
    Runs(runs::RunsCommand),
    /// Print the log of a run
    Logs(logs::LogsArgs),
    /// Wait until runs are over
    Wait(wait::WaitArgs),
    /// Ask a run to stop
    Cancel(runs::CancelArgs),
    /// Show how the server and its device are
    Status,
    /// Have something done at its time (orchestrator)
    #[command(subcommand, alias = "tasks")]
    Task(tasks::TaskCommand),
    /// Publish and look at events (orchestrator)
    #[command(subcommand, alias = "events")]
    Event(tasks::EventCommand),
    /// Approve or deny what waits for a person (orchestrator)
    #[command(subcommand, alias = "approvals")]
    Approval(tasks::ApprovalCommand),
    /// Look at what the steps of tasks can use (orchestrator)
    #[command(subcommand, alias = "tools")]
    Tool(tasks::ToolCommand),
    /// Look at what the device can do
    #[command(subcommand, alias = "actions")]
    Action(actions::ActionCommand),
    /// Sign in to a server
    Login(sign_in::LoginArgs),
    /// Sign out: the token is dead afterwards
    Logout,
    /// Show who you are to the server
    Whoami,
    /// Look after your own account
    #[command(subcommand)]
    Account(account::AccountCommand),
    /// Manage the people who may sign in
    #[command(subcommand, alias = "users")]
    User(users::UserCommand),
    /// Manage software that acts
    #[command(subcommand, alias = "agents")]
    Agent(agents::AgentCommand),
    /// Manage API keys for scripts
    #[command(subcommand)]
    Key(keys::KeyCommand),
    /// See who is signed in, and end it
    #[command(subcommand, alias = "sessions")]
    Session(keys::SessionCommand),
    /// Manage roles
    #[command(subcommand, alias = "roles")]
    Role(roles::RoleCommand),
    /// Ask why somebody may or may not
    #[command(subcommand)]
    Policy(roles::PolicyCommand),
    /// End tokens
    #[command(subcommand)]
    Token(roles::TokenCommand),
    /// Change the key that signs tokens, on the server's machine
    #[command(subcommand)]
    Keys(signing::KeysCommand),
    /// Save and restore what is revoked, on the server's machine
    #[command(subcommand)]
    Revocations(signing::RevocationsCommand),
    /// Take backups, prove them, put them back, on the server's machine
    #[command(subcommand)]
    Backup(backup::BackupCommand),
    /// Invite people, or accept an invitation
    #[command(subcommand, alias = "invitations")]
    Invitation(invitations::InvitationCommand),
    /// Read and check the audit trail
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Look at and change what protects the server from its network
    #[command(subcommand)]
    Security(bans::SecurityCommand),
    /// Look at an installation's own authority, and trust it
    #[command(subcommand)]
    Trust(trust::TrustCommand),
    /// Choose between servers
    #[command(subcommand, alias = "contexts")]
    Context(context::ContextCommand),
    /// Send any request and print the answer
    Api(api::ApiArgs),
}

/// Does what the command says.
///
/// # Errors
/// [`Failure`] with the exit code, for the caller to print.
pub(crate) async fn execute(command: Command, global: &Global) -> Result<(), Failure> {
    let ui = Ui::new(global);
    let done = match command {
        Command::Run(args) => Box::pin(run::run(&ui, global, args)).await,
        Command::Stop(args) => Box::pin(stop::stop(&ui, global, args)).await,
        Command::Release(args) => Box::pin(stop::release(&ui, global, args)).await,
        Command::Attention(command) => Box::pin(attention::attention(&ui, global, command)).await,
        Command::Runs(command) => Box::pin(runs::runs(&ui, global, command)).await,
        Command::Logs(args) => Box::pin(logs::logs(&ui, global, args)).await,
        Command::Wait(args) => Box::pin(wait::wait(&ui, global, args)).await,
        Command::Cancel(args) => Box::pin(runs::cancel(&ui, global, args)).await,
        Command::Status => Box::pin(status::status(&ui, global)).await,
        Command::Task(command) => Box::pin(tasks::task(&ui, global, command)).await,
        Command::Event(command) => Box::pin(tasks::event(&ui, global, command)).await,
        Command::Approval(command) => Box::pin(tasks::approval(&ui, global, command)).await,
        Command::Tool(command) => Box::pin(tasks::tool(&ui, global, command)).await,
        Command::Action(command) => Box::pin(actions::action(&ui, global, command)).await,
        Command::Login(args) => Box::pin(sign_in::login(&ui, global, args)).await,
        Command::Logout => Box::pin(sign_in::logout(&ui, global)).await,
        Command::Whoami => Box::pin(sign_in::whoami(&ui, global)).await,
        Command::Account(command) => Box::pin(account::account(&ui, global, command)).await,
        Command::User(command) => Box::pin(users::user(&ui, global, command)).await,
        Command::Agent(command) => Box::pin(agents::agent(&ui, global, command)).await,
        Command::Key(command) => Box::pin(keys::key(&ui, global, command)).await,
        Command::Session(command) => Box::pin(keys::session(&ui, global, command)).await,
        Command::Role(command) => Box::pin(roles::role(&ui, global, command)).await,
        Command::Policy(command) => Box::pin(roles::policy(&ui, global, command)).await,
        Command::Token(command) => Box::pin(roles::token(&ui, global, command)).await,
        Command::Keys(command) => Box::pin(signing::keys(&ui, command)).await,
        Command::Revocations(command) => Box::pin(signing::revocations(&ui, command)).await,
        Command::Backup(command) => Box::pin(backup::backup(&ui, command)).await,
        Command::Invitation(command) => Box::pin(invitations::invitation(&ui, global, command)).await,
        Command::Audit(command) => Box::pin(audit::audit(&ui, global, command)).await,
        Command::Security(command) => Box::pin(bans::security(&ui, global, command)).await,
        Command::Trust(command) => Box::pin(trust::trust(&ui, global, command)).await,
        Command::Context(command) => context::context(&ui, command),
        Command::Api(args) => Box::pin(api::api(&ui, global, args)).await,
    };
    done.or_else(|failure| match failure.code {
        // Whoever closed our standard output got what they wanted.
        0 => Ok(()),
        exit::SIGN_IN if failure.hint == failure::SIGN_IN_HINT => Err(explained(failure, global)),
        _ => Err(failure),
    })
}

/// The full command to sign in with, and why the token is not taken if that is known here.
fn explained(failure: Failure, global: &Global) -> Failure {
    let Ok(target) = Target::find(global) else { return failure };
    let failure = failure.hint(target.login_command());
    match target.expired() {
        Some(since) => failure.because(format!("the token expired at {}", text::time(since))),
        None => failure,
    }
}
