//! `interlock api`: any request, for what has no command.

use clap::Args;
use serde_json::{Map, Value};

use super::connect::Session;
use super::failure::Failure;
use super::global::{Global, Output};
use super::parameters;
use super::text::block;
use super::ui::{Ui, json_text};

/// A request.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  interlock api GET /device\n  interlock api GET '/runs?state=failed&limit=5'\n  interlock api POST /check/mix_color -f r=120"
)]
pub(crate) struct ApiArgs {
    /// GET, POST or PATCH
    method: String,
    /// Path at the server, with its query
    path: String,
    /// A member of the JSON body: NAME=VALUE, or @FILE for many
    #[arg(short, long = "field", value_name = "NAME=VALUE|@FILE")]
    field: Vec<String>,
}

pub(crate) async fn api(ui: &Ui, global: &Global, args: ApiArgs) -> Result<(), Failure> {
    let client = Session::open(global)?.client;
    let method = args.method.to_ascii_uppercase();
    let body: Map<String, Value> = parameters::read(&args.field, None)?;
    let body = if method == "GET" && body.is_empty() { None } else { Some(Value::Object(body)) };
    let answer = client.raw(&method, &args.path, body.as_ref()).await?;
    match serde_json::from_slice::<Value>(&answer.bytes) {
        Ok(value) => ui.out(&json_text(&value, ui.output != Output::Jsonl)),
        Err(_) => ui.out(block(&String::from_utf8_lossy(&answer.bytes)).trim_end()),
    }
}
