//! `interlock status`: one look at the server and its device.

use interlock_client::ClientError;
use interlock_model::device::DeviceStatus;
use interlock_model::wire::WhoAmIAnswer;
use serde_json::{Value, json};

use super::connect::Session;
use super::failure::Failure;
use super::global::Global;
use super::text::{line, time};
use super::ui::{Facts, Ui};

pub(crate) async fn status(ui: &Ui, global: &Global) -> Result<(), Failure> {
    let Session { target, client } = Session::open(global)?;
    let (health, me, device) = tokio::join!(client.health(), client.me(), client.device());
    // Without the first there is no server to say anything about.
    let health = health?;
    let me = seen(me)?;
    let tasks = is_orchestrator(&health);
    // An orchestrator has no device, and says so with 404.
    let device = if tasks { None } else { seen(device)? };
    let document = json!({
        "url": target.url,
        "context": target.context,
        "health": health["status"],
        "user": me.as_ref().map(|me| &me.user),
        "roles": me.as_ref().map(|me| &me.roles),
        "device": device,
        "checks": health["checks"],
    });
    let facts = || facts(&target.url, target.context.as_deref(), &health, me.as_ref(), device.as_ref());
    let name = device.as_ref().map_or(target.url.as_str(), |device| device.name.as_str());
    ui.one(&document, facts, name)?;
    match (&me, &device) {
        (None, _) => ui.note(&format!("you are not signed in; to see more: {}", target.login_command())),
        (Some(_), None) if tasks => {}
        (Some(_), None) => ui.note("your roles do not let you see the device"),
        (Some(_), Some(device)) if device.emergency_stop.engaged => {
            ui.note("when the device is safe, an administrator runs: interlock release --reason \"checked, safe\"");
        }
        (Some(_), Some(device)) if device.attention.is_some() => {
            ui.note("look at the device, then: interlock attention clear --reason \"checked, safe\"");
        }
        _ => {}
    }
    Ok(())
}

/// Whether a server's health is that of an orchestrator.
fn is_orchestrator(health: &Value) -> bool {
    health["checks"].is_array()
}

/// What may be seen; being nobody, or not allowed, is part of the picture.
fn seen<T>(answer: Result<T, ClientError>) -> Result<Option<T>, Failure> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(ClientError::SignInNeeded(_)) => Ok(None),
        Err(ClientError::Problem(refusal)) if refusal.status == 403 => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn facts(
    url: &str,
    context: Option<&str>,
    health: &Value,
    me: Option<&WhoAmIAnswer>,
    device: Option<&DeviceStatus>,
) -> Facts {
    let mut facts = Facts::new()
        .with("server", url)
        .maybe("context", context)
        .with("health", health["status"].as_str().unwrap_or("unknown"))
        .maybe("you", me.map(|me| format!("{} ({})", me.user, me.roles.join(", "))));
    for check in health["checks"].as_array().into_iter().flatten() {
        let (status, message) = (check["status"].as_str(), check["message"].as_str());
        let told = format!("{}: {}", line(status.unwrap_or("unknown")), line(message.unwrap_or("")));
        facts = match check["name"].as_str() {
            Some("database") => facts.with("database", told),
            Some("workers") => facts.with("workers", told),
            Some("scheduler") => facts.with("scheduler", told),
            _ => facts,
        };
    }
    let Some(device) = device else { return facts };
    facts = facts
        .with("device", format!("{} ({})", device.name, device.title))
        .with("state", &device.state)
        .maybe("running", device.running.map(|run| run.to_string()))
        .with("waiting", device.queued.to_string())
        .with("actions", device.actions.to_string());
    let stop = &device.emergency_stop;
    let told = if stop.engaged {
        let by = stop.by.as_deref().unwrap_or("unknown");
        format!(
            "ENGAGED since {} by {by}: {}",
            stop.since.map(time).unwrap_or_default(),
            stop.reason.as_deref().unwrap_or("no reason given")
        )
    } else {
        "not engaged".to_owned()
    };
    facts = facts.with("emergency stop", told);
    facts = facts.maybe(
        "attention",
        device
            .attention
            .as_ref()
            .map(|attention| format!("{} (since {})", attention.reason, time(attention.since))),
    );
    let worker = &device.worker;
    facts.maybe(
        "worker",
        worker.pid.map(|pid| {
            let language = worker.language.as_deref().unwrap_or("unknown language");
            let standby = if worker.standby { "standby ready" } else { "no standby" };
            format!("{language}, process {pid}, {} restarts, {standby}", worker.restarts)
        }),
    )
}
