//! A server that gives prepared answers in order and remembers what it was asked.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use interlock_client::Client;
use interlock_model::secret::Secret;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// What to do with one request.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    /// Status line and headers, then this body; the connection is closed.
    Full(&'static str, Vec<(&'static str, String)>, String),
    /// The beginning of an event stream, then the connection is closed.
    Stream(String),
    /// The beginning of an event stream, then silence.
    StreamAndSilence(String),
    /// The connection is closed without an answer.
    Hang,
}

impl Reply {
    pub(crate) fn json(status: &'static str, body: &serde_json::Value) -> Self {
        Self::Full(status, vec![("content-type", "application/json".to_owned())], body.to_string())
    }
}

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) line: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// The server.
#[derive(Debug, Clone)]
pub(crate) struct Mock {
    pub(crate) port: u16,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Mock {
    pub(crate) async fn answering(replies: impl IntoIterator<Item = Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mock = Self { port: listener.local_addr().expect("an address").port(), asked: Arc::default() };
        let mut replies: VecDeque<Reply> = replies.into_iter().collect();
        let asked = Arc::clone(&mock.asked);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let Some(request) = read(&mut stream).await else { continue };
                asked.lock().expect("the list").push(request);
                // Without a prepared answer the port is closed: the test has a wrong number of them.
                let Some(reply) = replies.pop_front() else { return };
                answer(stream, reply).await;
            }
        });
        mock
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("the list").clone()
    }

    pub(crate) fn client(&self) -> Client {
        Client::builder(format!("http://127.0.0.1:{}", self.port))
            .token(Secret::new("ilk_test"))
            .build()
            .expect("a client")
    }
}

async fn read(stream: &mut TcpStream) -> Option<Asked> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.lines();
    let line = lines.next()?.to_owned();
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers
        .iter()
        .find(|(name, _)| name == "content-length")
        .and_then(|(_, value)| value.parse().ok())
        .unwrap_or(0);
    while bytes.len() < end + 4 + length {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    Some(Asked { line, headers, body: String::from_utf8_lossy(&bytes[end + 4..]).into_owned() })
}

async fn answer(mut stream: TcpStream, reply: Reply) {
    match reply {
        Reply::Hang => {}
        Reply::Full(status, headers, body) => {
            let mut text =
                format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
            for (name, value) in headers {
                text.extend([name, ": ", value.as_str(), "\r\n"]);
            }
            let _ = stream.write_all(format!("{text}\r\n{body}").as_bytes()).await;
        }
        Reply::Stream(body) => stream_head(&mut stream, &body).await,
        Reply::StreamAndSilence(body) => {
            stream_head(&mut stream, &body).await;
            tokio::spawn(async move {
                let mut stream = stream;
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest).await;
            });
        }
    }
}

async fn stream_head(stream: &mut TcpStream, body: &str) {
    let text =
        format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: text/event-stream\r\n\r\n{body}");
    let _ = stream.write_all(text.as_bytes()).await;
    let _ = stream.flush().await;
}
