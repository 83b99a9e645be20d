//! `interlock login`, `logout`, `whoami`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use interlock_client::{ClientError, Polled, server_address};
use interlock_model::secret::Secret;
use interlock_model::wire::LoginAnswer;
use serde_json::json;

use super::connect::{Session, Target, url_variable};
use super::contexts::{self, Identity};
use super::failure::{Failure, exit};
use super::global::{Global, process_variable};
use super::terminal::{Signals, ask, ask_password, interrupted, secret_from_stdin};
use super::text::{line, time};
use super::ui::{Facts, Ui};

/// How to sign in.
#[derive(Debug, Args)]
#[command(
    after_help = "Give the server with --url, and with --ca-file its certificate authority if it has its own.\n\
                        The context is named by --context, else after the server's host, and becomes the current one."
)]
pub(crate) struct LoginArgs {
    /// Your name
    #[arg(long, short)]
    user: Option<String>,
    /// Show a code that you approve elsewhere: no password is typed here
    #[arg(long, conflicts_with_all = ["user", "password_stdin", "otp"])]
    device: bool,
    /// Sign in by this client certificate, a PEM file; later commands show it too
    #[arg(long, value_name = "FILE", conflicts_with_all = ["user", "password_stdin", "device"])]
    cert: Option<PathBuf>,
    /// Its key, if that is not in the same file
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Read the password from standard input instead of asking
    #[arg(long)]
    password_stdin: bool,
    /// Code of your second factor, or a recovery code; without it you are asked where one is needed
    #[arg(long, value_name = "CODE")]
    otp: Option<String>,
    /// What the session may be used for, such as runs:read, instead of everything that you may do. Several are allowed.
    /// Such a session cannot look after your account
    #[arg(long, value_delimiter = ',')]
    scope: Vec<String>,
}

pub(crate) async fn login(ui: &Ui, global: &Global, args: LoginArgs) -> Result<(), Failure> {
    let all = contexts::load()?;
    let known = Target::find(global).ok();
    let named = global.context.clone().filter(|name| !all.contexts.contains_key(name));
    // A context that does not exist yet gets its address from --url; the current one must not lend its own.
    let known = if named.is_some() && global.url.is_none() { None } else { known };
    let url = match (&known, global.url.clone().or_else(|| url_variable(&process_variable))) {
        (Some(target), _) => target.url.clone(),
        (None, Some(url)) => url,
        (None, None) => {
            ask(ui, "Address of the server", "interlock login --url https://robot.example.org:8000").await?
        }
    };
    let address = server_address(&url)?;
    let name = match (global.context.clone(), known.as_ref().and_then(|target| target.context.clone())) {
        (Some(name), _) | (None, Some(name)) => name,
        (None, None) => fresh_name(address.host_str().unwrap_or("server"), &all),
    };
    let ca_file = known.as_ref().and_then(|target| target.ca_file.clone()).or_else(|| global.ca_file.clone());
    let scope = args.scope.join(" ");
    let scope = Some(scope.as_str()).filter(|scope| !scope.is_empty());
    if args.device {
        return by_code(ui, &name, &url, ca_file.as_deref(), scope).await;
    }
    let ca = ca_file.as_deref();
    let otp = args.otp.map(Secret::new);
    if let Some(certificate) = args.cert {
        let identity = Identity { certificate, key: args.key };
        let answer = with_second_factor(ui, otp, async |otp| {
            contexts::sign_in_by_certificate_and_save(&name, &url, ca, &identity, otp).await
        });
        let answer = answer.await.map_err(|failure| {
            let hint = "check that the certificate is yours and has not ended; an administrator sees the reason: interlock audit list --action device.login";
            refused(failure, hint)
        })?;
        return told(ui, &name, &url, &answer);
    }
    let user = match args.user.or_else(|| known.as_ref().and_then(|target| target.user.clone())) {
        Some(user) => user,
        None => ask(ui, &format!("Name at {}", line(&url)), "interlock login --user NAME").await?,
    };
    let password = if args.password_stdin {
        secret_from_stdin("password")?
    } else {
        ask_password(ui, &format!("Password of {}", line(&user)), "interlock login --password-stdin < FILE")
            .await?
    };
    let answer = with_second_factor(ui, otp, async |otp| {
        contexts::sign_in_and_save(&name, &url, ca, &user, &password, (otp, scope)).await
    });
    let answer = answer.await.map_err(|failure| {
        let hint =
            "check the name and the password; an administrator can set a new one: interlock user passwd NAME";
        refused(failure, hint)
    })?;
    told(ui, &name, &url, &answer)
}

/// Signs in, and once more with the code of the second factor where the server wants one.
async fn with_second_factor(
    ui: &Ui,
    given: Option<Secret>,
    sign_in: impl AsyncFn(Option<&Secret>) -> Result<LoginAnswer, Failure>,
) -> Result<LoginAnswer, Failure> {
    let signed_in = sign_in(given.as_ref()).await;
    if given.is_none() && signed_in.as_ref().is_err_and(wants_second_factor) {
        let question = "Code of your second factor, or a recovery code";
        let code = Secret::new(ask(ui, question, "interlock login --otp CODE").await?);
        return sign_in(Some(&code)).await;
    }
    signed_in
}

/// A failure to sign in, in other words where the server has said no.
fn refused(failure: Failure, hint: &str) -> Failure {
    if failure.code != exit::SIGN_IN || wants_second_factor(&failure) {
        return failure;
    }
    let mut refused = failure.hint(hint);
    "the server does not let you in".clone_into(&mut refused.error);
    refused
}

/// Tells how it stands after a sign-in.
fn told(ui: &Ui, name: &str, url: &str, answer: &LoginAnswer) -> Result<(), Failure> {
    for variable in ["INTERLOCK_TOKEN", "INTERLOCK_TOKEN_FILE"] {
        if process_variable(variable).is_some() {
            ui.warn(&format!("{variable} is set and comes before the new token"));
        }
    }
    if let Some(count) = answer.notices.filter(|count| *count > 0) {
        ui.warn(&format!("{count} new about your account: interlock account notices"));
    }
    let document = json!({ "context": name, "url": url, "user": answer.user, "roles": answer.roles, "expires_in": answer.expires_in });
    let facts = || {
        Facts::new()
            .with("signed in as", &answer.user)
            .with("roles", answer.roles.join(", "))
            .with("context", name)
    };
    ui.one(&document, facts, name)
}

/// Shows a code and waits until somebody has decided about it.
async fn by_code(
    ui: &Ui,
    name: &str,
    url: &str,
    ca_file: Option<&Path>,
    scope: Option<&str>,
) -> Result<(), Failure> {
    contexts::check_name(name)?;
    let client = contexts::client(url, ca_file, None)?;
    let code = client.begin_device_code(scope).await?;
    let shown = line(&code.user_code);
    ui.warn(&format!(
        "open {} and give the code {shown}, or where you are signed in: interlock account approve-device {shown}",
        line(&code.verification_uri)
    ));
    let mut pause = Duration::from_secs(code.interval.clamp(1, 60));
    let mut signals = Signals::listen()?;
    let token = loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = signals.next() => return Err(interrupted()),
        }
        match client.poll_device_code(&code, pause).await {
            Ok(Polled::In(token)) => break token,
            Ok(Polled::Wait(longer)) => pause = longer.min(Duration::from_mins(2)),
            Ok(Polled::Out(reason)) => {
                let error =
                    if reason == "access_denied" { "the sign-in was denied" } else { "the code has ended" };
                return Err(Failure::new(exit::SIGN_IN, error, "begin again: interlock login --device")
                    .because(reason));
            }
            // The connection may be back before the code ends, and then the server says so.
            Err(error) if error.is_passing() => {}
            Err(error) => return Err(error.into()),
        }
    };
    let me = contexts::client(url, ca_file, Some(&token.access_token))?.me().await?;
    contexts::keep(name, &client, ca_file, &me.user, token.access_token, token.expires_in)?;
    let document = json!({ "context": name, "url": url, "user": me.user, "roles": me.roles, "expires_in": token.expires_in });
    let facts = || {
        Facts::new().with("signed in as", &me.user).with("roles", me.roles.join(", ")).with("context", name)
    };
    ui.one(&document, facts, name)
}

fn wants_second_factor(failure: &Failure) -> bool {
    failure.problem.as_ref().is_some_and(|problem| problem.code == "second_factor_required")
}

/// The host's name, made different from those that are taken.
pub(super) fn fresh_name(host: &str, all: &contexts::Contexts) -> String {
    let host = host.trim_matches(['[', ']']);
    let plain: String = host
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-') { c } else { '-' })
        .collect();
    let plain: String = plain.trim_matches(['-', '.']).chars().take(56).collect();
    let base = if plain.is_empty() { "server".to_owned() } else { plain };
    let numbered = (2..1000).map(|number| format!("{base}-{number}"));
    std::iter::once(base.clone())
        .chain(numbered)
        .find(|name| !all.contexts.contains_key(name))
        .unwrap_or(base)
}

pub(crate) async fn logout(ui: &Ui, global: &Global) -> Result<(), Failure> {
    let Session { target, client } = Session::open(global)?;
    let answer = client.logout().await;
    let forget = || match &target.context {
        Some(name) => contexts::change(|all| {
            if let Some(context) = all.contexts.get_mut(name) {
                context.forget();
            }
        }),
        None => Ok(()),
    };
    match answer {
        Ok(done) => {
            forget()?;
            ui.one(&done, || Facts::new().with("signed out", &target.url), &target.url)
        }
        // The token was dead already, which is what was wanted.
        Err(ClientError::SignInNeeded(_)) => {
            forget()?;
            ui.note("you were not signed in");
            Ok(())
        }
        Err(error) => {
            let failure = Failure::from(error);
            let cause = failure
                .cause
                .map_or_else(|| failure.error.clone(), |cause| format!("{}: {cause}", failure.error));
            let mut told = Failure::new(
                failure.code,
                "the token is not revoked; it stays valid until it expires",
                failure.hint,
            )
            .because(cause);
            told.problem = failure.problem;
            Err(told)
        }
    }
}

pub(crate) async fn whoami(ui: &Ui, global: &Global) -> Result<(), Failure> {
    let Session { target, client } = Session::open(global)?;
    let me = client.me().await?;
    let facts = || {
        Facts::new()
            .with("user", &me.user)
            .with("roles", me.roles.join(", "))
            .with("server", &target.url)
            .maybe("context", target.context.as_ref())
            .with("token until", time(me.expires_at))
    };
    ui.one(&me, facts, &me.user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_named_after_its_server_and_takes_no_other_name() {
        let mut all = contexts::Contexts::default();

        assert_eq!(fresh_name("robot.example.org", &all), "robot.example.org");
        assert_eq!(fresh_name("[::1]", &all), "1");
        assert_eq!(fresh_name("", &all), "server");
        all.contexts.insert("robot".to_owned(), contexts::Context::default());
        assert_eq!(fresh_name("robot", &all), "robot-2");
    }
}
