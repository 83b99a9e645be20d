//! `interlock probe URL`: whether a server says that it is ready. For health checks in containers, which have no other program.

use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Longest wait for the whole answer.
const PATIENCE: Duration = Duration::from_secs(4);
/// Longest answer that is read, in bytes.
const LONGEST: u64 = 64 << 10;

/// Options of `probe`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ProbeArgs {
    /// Address at the listener for probes (INTERNAL_LISTEN), such as http://127.0.0.1:9464/health/ready
    url: String,
}

/// Asks once. An error when the answer is not 200.
///
/// # Errors
/// What was answered, or why nothing was.
pub(crate) async fn probe(args: &ProbeArgs) -> anyhow::Result<()> {
    let rest = args.url.strip_prefix("http://").context("give an address that begins with http://")?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let strange = |c: char| c.is_ascii_control() || c.is_whitespace();
    if host.is_empty() || host.contains(strange) || path.contains(strange) {
        bail!("give an address such as http://127.0.0.1:9464/health/ready");
    }
    let asked = async {
        let mut connection = TcpStream::connect(host).await?;
        let request = format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        connection.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        connection.take(LONGEST).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(PATIENCE, asked)
        .await
        .with_context(|| format!("{host} did not answer within {} s", PATIENCE.as_secs()))?
        .with_context(|| format!("ask {host}"))?;
    let text = String::from_utf8_lossy(&answer);
    let status = text.split_whitespace().nth(1).unwrap_or_default();
    if status == "200" {
        return Ok(());
    }
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let body: String = body.chars().filter(|c| !c.is_control()).take(300).collect();
    bail!("{host} answers {status}: {body}");
}
