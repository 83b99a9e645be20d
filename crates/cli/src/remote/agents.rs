//! `interlock agent`: software that acts.

use clap::{Args, Subcommand};
use interlock_client::{AgentEdit, Client, NewAgent, NewAgentSecret};
use interlock_model::grant::{self, GrantType, KeyMethod};
use interlock_model::wire::{AgentView, DeliveryView};
use interlock_model::{AgentId, Clock as _, Timestamp};
use serde_json::json;

use super::connect::Session;
use super::failure::{Failure, exit};
use super::global::{Global, Output};
use super::text::{duration, line, time};
use super::ui::{Facts, Table, Ui, json_text};
use crate::ambient::SystemClock;

/// Software that acts: what each may do, and what it proves itself with.
#[derive(Debug, Subcommand)]
pub(crate) enum AgentCommand {
    /// List agents, newest first
    List {
        /// Only those whose name holds this
        #[arg(long)]
        name: Option<String>,
        /// Only those that were given this scope
        #[arg(long)]
        scope: Option<String>,
    },
    /// Show an agent
    Show {
        /// Id or name
        agent: String,
    },
    /// Make an agent. It has no secret yet: interlock agent rotate-secret
    Create {
        /// Name for people
        name: String,
        /// What it may do, such as runs:read. Several are allowed
        #[arg(long, value_delimiter = ',')]
        scope: Vec<String>,
        /// https address where outcomes are told
        #[arg(long)]
        webhook: Option<String>,
        /// Ways to a token: client_credentials, refresh_token, jwt-bearer, token-exchange. Without it all of them. Several are allowed
        #[arg(long, value_delimiter = ',', value_parser = grant)]
        grant: Option<Vec<GrantType>>,
        /// The only proof that counts: private_key_jwt or tls_client_auth. It gets no secret and no API key then
        #[arg(long)]
        auth_method: Option<KeyMethod>,
    },
    /// Change name, scopes, address, or how it signs in
    Update(UpdateArgs),
    /// Disable an agent for good: its tokens and secrets are dead, its record stays
    Delete {
        /// Id or name
        agent: String,
    },
    /// Make a new secret and print it, once
    RotateSecret {
        /// Id or name
        agent: String,
        /// How long the secret before, and its tokens, go on working, such as 1h. Without it they are dead at once
        #[arg(long, value_parser = duration)]
        overlap: Option<std::time::Duration>,
        /// When the new secret ends, such as 90d
        #[arg(long, value_parser = duration)]
        expires_in: Option<std::time::Duration>,
    },
    /// Make a new secret for its webhook and print it, once. Messages carry a signature with the one before, too, for 24 h
    RotateWebhookSecret {
        /// Id or name
        agent: String,
    },
    /// Show how telling it outcomes of its runs went
    Deliveries {
        /// Id or name
        agent: String,
        /// Only pending, delivered or failed ones
        #[arg(long)]
        state: Option<String>,
    },
    /// Tell it an outcome once more
    Redeliver {
        /// Id or name
        agent: String,
        /// The run
        run: String,
    },
    /// Register whom its client certificates name, in place of what was registered; it signs in with them then
    Certificates {
        /// Id or name
        agent: String,
        /// Alternative names, such as dns:mixer.lab.example or uri:spiffe://lab.example/mixer; none takes the right away
        names: Vec<String>,
    },
}

/// What to change.
#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    /// Id or name
    agent: String,
    /// The new name
    #[arg(long, required_unless_present_any = ["scope", "webhook", "no_webhook", "grant", "auth_method"])]
    name: Option<String>,
    /// The new scopes, in place of all it had
    #[arg(long, value_delimiter = ',')]
    scope: Option<Vec<String>>,
    /// The new address
    #[arg(long, conflicts_with = "no_webhook")]
    webhook: Option<String>,
    /// Tell outcomes nowhere
    #[arg(long)]
    no_webhook: bool,
    /// The ways to a token, in place of all it had: client_credentials, refresh_token, jwt-bearer, token-exchange
    #[arg(long, value_delimiter = ',', value_parser = grant)]
    grant: Option<Vec<GrantType>>,
    /// The only proof that counts: private_key_jwt or tls_client_auth; any for each that it has. Its secrets, tokens and API keys are dead at once
    #[arg(long, value_parser = auth_method)]
    auth_method: Option<Asked>,
}

/// What was said about the proof.
#[derive(Debug, Clone, Copy)]
struct Asked(Option<KeyMethod>);

fn auth_method(text: &str) -> Result<Asked, String> {
    if text == "any" {
        return Ok(Asked(None));
    }
    let method = text.parse().map(|method| Asked(Some(method)));
    method.map_err(|error: grant::Unknown| format!("{error}, any"))
}

/// As the protocol writes it, or its last word.
fn grant(text: &str) -> Result<GrantType, String> {
    let short = |grant: &&GrantType| grant.name().rsplit(':').next() == Some(text);
    let found = GrantType::ALL.iter().find(short).copied();
    found.map_or_else(|| text.parse().map_err(|error: grant::Unknown| error.to_string()), Ok)
}

pub(crate) async fn agent(ui: &Ui, global: &Global, command: AgentCommand) -> Result<(), Failure> {
    let Session { client, .. } = Session::open(global)?;
    match command {
        AgentCommand::List { name, scope } => {
            let mut found = client.agents().await?;
            let name = name.map(|name| name.to_lowercase());
            found.retain(|agent| {
                name.as_ref().is_none_or(|name| agent.name.to_lowercase().contains(name))
                    && scope
                        .as_ref()
                        .is_none_or(|scope| agent.scopes.iter().any(|held| held.as_str() == scope))
            });
            ui.list(&found, table, |agent| agent.id.to_string())
        }
        AgentCommand::Show { agent } => {
            let id = find(&client, &agent).await?;
            tell(ui, &client.agent(id).await?)
        }
        AgentCommand::Create { name, scope, webhook, grant, auth_method } => {
            let new = NewAgent {
                name: &name,
                scopes: &scope,
                webhook_url: webhook.as_deref(),
                grant_types: grant.as_deref(),
                token_endpoint_auth_method: auth_method,
            };
            warn_of_admin(ui, &scope);
            let made = client.create_agent(&new).await?;
            if made.webhook_url.is_some() {
                ui.note("nothing is told to the webhook before it has a secret: interlock agent rotate-webhook-secret");
            }
            tell(ui, &made)
        }
        AgentCommand::Update(args) => update(ui, &client, args).await,
        AgentCommand::Delete { agent } => {
            let id = find(&client, &agent).await?;
            let done = client.delete_agent(id).await?;
            ui.one(&done, || Facts::new().with("deleted", line(&agent)), &id.to_string())
        }
        AgentCommand::RotateWebhookSecret { agent } => {
            let id = find(&client, &agent).await?;
            let made = client.rotate_webhook_secret(id).await?;
            match ui.output {
                Output::Json | Output::Jsonl => ui.out(&json_text(&made, ui.output == Output::Json)),
                Output::Table | Output::Name => {
                    ui.note(&format!("the secret of the webhook of {id} is shown only now; its receiver checks signatures with it:"));
                    ui.out(&made.webhook_secret)
                }
            }
        }
        AgentCommand::Deliveries { agent, state } => {
            let id = find(&client, &agent).await?;
            let found = client.deliveries(id, state.as_deref()).await?;
            ui.list(&found.items, deliveries, |delivery| delivery.run_id.to_string())
        }
        AgentCommand::Redeliver { agent, run } => {
            let id = find(&client, &agent).await?;
            let done = client.retry_delivery(id, &run).await?;
            ui.one(&done, || Facts::new().with("told again", line(&run)), &run)
        }
        AgentCommand::Certificates { agent, names } => {
            let id = find(&client, &agent).await?;
            tell(ui, &client.set_agent_certificates(id, &names).await?)
        }
        AgentCommand::RotateSecret { agent, overlap, expires_in } => {
            let id = find(&client, &agent).await?;
            let new = NewAgentSecret {
                overlap_seconds: overlap.map_or(0, |overlap| overlap.as_secs()),
                expires_at: expires_in.map(|life| SystemClock.now().plus(life)),
            };
            let made = client.set_agent_secret(id, &new).await?;
            let secret = made.agent_secret.unwrap_or_default();
            match ui.output {
                Output::Json | Output::Jsonl => {
                    let document = json!({ "agent_id": id, "agent_secret": secret });
                    ui.out(&json_text(&document, ui.output == Output::Json))
                }
                Output::Table | Output::Name => {
                    let before = if overlap.is_some() {
                        "lives on for the overlap"
                    } else {
                        "is dead, and its tokens"
                    };
                    ui.note(&format!("the secret of {id} is shown only now; the one before {before}:"));
                    ui.out(&secret)
                }
            }
        }
    }
}

async fn update(ui: &Ui, client: &Client, args: UpdateArgs) -> Result<(), Failure> {
    let id = find(client, &args.agent).await?;
    let webhook_url = if args.no_webhook { Some(None) } else { args.webhook.map(Some) };
    warn_of_admin(ui, args.scope.as_deref().unwrap_or_default());
    let edit = AgentEdit {
        name: args.name,
        scopes: args.scope,
        webhook_url,
        grant_types: args.grant,
        token_endpoint_auth_method: args.auth_method.map(|Asked(method)| method),
    };
    tell(ui, &client.update_agent(id, &edit).await?)
}

fn warn_of_admin(ui: &Ui, scopes: &[String]) {
    if scopes.iter().any(|scope| scope == "admin") {
        ui.warn("admin lets this agent administer everything; give it the scopes that it needs instead, if you can");
    }
}

/// The agent of this id or name.
pub(super) async fn find(client: &Client, text: &str) -> Result<AgentId, Failure> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let wanted = text.to_lowercase();
    let found = client.agents().await?.into_iter().find(|agent| agent.name.to_lowercase() == wanted);
    let missing = || {
        let hint = "`interlock agent list` shows them";
        Failure::new(exit::NOT_FOUND, format!("there is no agent '{}'", line(text)), hint)
    };
    found.map(|agent| agent.id).ok_or_else(missing)
}

fn scopes(agent: &AgentView) -> String {
    agent.scopes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn waiting(agent: &AgentView) -> Option<String> {
    let by = agent.waiting_by.as_ref()?;
    let scopes = agent.waiting_scopes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Some(format!("{scopes}, which {} has asked for", line(by)))
}

fn grants(agent: &AgentView) -> String {
    let short = |grant: &GrantType| grant.name().rsplit(':').next().unwrap_or_default();
    agent.grant_types.iter().map(short).collect::<Vec<_>>().join(", ")
}

fn table(agents: &[AgentView]) -> Table {
    let mut table = Table::new(&["ID", "NAME", "SCOPES", "SECRETS", "SEEN"]);
    for agent in agents {
        let seen = agent.last_seen_at.map_or_else(|| "never".to_owned(), time);
        let proofs = (agent.secrets.len() + agent.keys + agent.certificate_names.len()).to_string();
        table.row([agent.id.to_string(), agent.name.clone(), scopes(agent), proofs, seen]);
    }
    table
}

fn deliveries(found: &[DeliveryView]) -> Table {
    let mut table = Table::new(&["RUN", "STATE", "ATTEMPTS", "LAST", "NEXT", "ERROR"]);
    let at = |time_of: Option<Timestamp>| time_of.map_or_else(|| "-".to_owned(), time);
    for one in found {
        table.row([
            one.run_id.to_string(),
            one.state.clone(),
            one.attempts.to_string(),
            at(one.last_attempt_at),
            at(one.next_attempt_at),
            one.error.clone().unwrap_or_default(),
        ]);
    }
    table
}

fn tell(ui: &Ui, agent: &AgentView) -> Result<(), Failure> {
    let facts = || {
        let mut facts = Facts::new()
            .with("agent", &agent.name)
            .with("id", agent.id.to_string())
            .with("scopes", scopes(agent))
            .maybe("waits for a second person", waiting(agent))
            .maybe("webhook", agent.webhook_url.as_ref())
            .with("grants", grants(agent))
            .maybe("only by", agent.token_endpoint_auth_method.map(KeyMethod::name))
            .with("made", time(agent.created_at))
            .maybe("seen", agent.last_seen_at.map(time));
        for secret in &agent.secrets {
            let until = secret.expires_at.map_or_else(String::new, |end| format!(", until {}", time(end)));
            let used = secret
                .last_used_at
                .map_or_else(|| ", never used".to_owned(), |at| format!(", used {}", time(at)));
            facts =
                facts.with("secret", format!("{} of {}{until}{used}", secret.id, time(secret.created_at)));
        }
        for name in &agent.certificate_names {
            facts = facts.with("certificate", name);
        }
        if agent.keys > 0 {
            facts = facts.with("public keys", agent.keys.to_string());
        }
        facts
    };
    ui.one(agent, facts, &agent.id.to_string())
}
