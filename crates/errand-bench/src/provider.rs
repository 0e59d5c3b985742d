//! A provider of models that answers at once: OpenAI's protocol, as far as one run needs it.
//!
//! Each of its answers calls a tool, until the last one, which ends the run. At the requests that are asked for it notes how
//! much processor time the server has used: then the server does nothing but wait for the answer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::server::cpu_seconds;

/// What the answers are, from the first request of a run on.
#[derive(Default)]
struct Desk {
    /// The server's process.
    pid: u32,
    /// Requests of the run so far.
    requests: u64,
    /// The request that is answered with the end.
    last: u64,
    /// The server's processor time at these requests, in seconds.
    noted: BTreeMap<u64, f64>,
    wanted: Vec<u64>,
}

/// The provider. It ends with this.
pub(crate) struct Provider {
    pub(crate) address: SocketAddr,
    desk: Arc<Mutex<Desk>>,
    serving: JoinHandle<()>,
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Provider {
    pub(crate) async fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let desk = Arc::new(Mutex::new(Desk::default()));
        let shared = Arc::clone(&desk);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A connection that breaks off is the server's to open again.
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Ok(Self {
            address,
            desk,
            serving,
        })
    }

    /// For the next run: it ends with the answer to the request of this number, from 1; at those that are wanted the
    /// processor time of this process is noted.
    pub(crate) fn expect(&self, pid: u32, last: u64, wanted: &[u64]) {
        *locked(&self.desk) = Desk {
            pid,
            last,
            wanted: wanted.to_vec(),
            ..Desk::default()
        };
    }

    /// The processor time that was noted at a request.
    pub(crate) fn noted(&self, request: u64) -> Result<f64> {
        let desk = locked(&self.desk);
        let noted = desk.noted.get(&request).copied();
        noted.with_context(|| format!("the run put {} questions", desk.requests))
    }
}

fn locked(desk: &Mutex<Desk>) -> MutexGuard<'_, Desk> {
    desk.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(mut stream: TcpStream, desk: Arc<Mutex<Desk>>) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = Vec::new();
    loop {
        let Some(end) = whole(&mut stream, &mut bytes).await? else {
            return Ok(());
        };
        bytes.drain(..end);
        let (number, ends) = {
            let mut desk = locked(&desk);
            desk.requests += 1;
            let number = desk.requests;
            if desk.wanted.contains(&number) {
                let used = cpu_seconds(&desk.pid.to_string())?;
                desk.noted.insert(number, used);
            }
            (number, number >= desk.last)
        };
        let body = answer(number, ends);
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).await?;
    }
}

/// Reads until a request is there; where it ends. None: the other side has left.
async fn whole(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Result<Option<usize>> {
    loop {
        if let Some(head) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(bytes.get(..head).unwrap_or_default());
            let length = text
                .lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
                .context("a request without content-length")?;
            let end = head + 4 + length.1.trim().parse::<usize>()?;
            while bytes.len() < end {
                anyhow::ensure!(stream.read_buf(bytes).await? > 0, "half a request");
            }
            return Ok(Some(end));
        }
        if stream.read_buf(bytes).await? == 0 {
            return Ok(None);
        }
    }
}

/// The first answer writes the file that the others read.
fn answer(number: u64, ends: bool) -> String {
    let chunk = |choices: &str, usage: &str| {
        format!(
            "data: {{\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"choices\":{choices},\"usage\":{usage}}}\n\n"
        )
    };
    let (delta, reason) = if ends {
        (json!({"role": "assistant", "content": "Done."}), "stop")
    } else {
        let (name, arguments) = if number == 1 {
            let arguments = json!({"path": "/workspace/note.txt", "content": "A short note."});
            ("write_file", arguments)
        } else {
            // Each call is another: a model that repeats itself is stopped.
            let limit = 1_000 + number;
            (
                "read_file",
                json!({"path": "/workspace/note.txt", "limit": limit}),
            )
        };
        let function = json!({"name": name, "arguments": arguments.to_string()});
        let call = json!({"index": 0, "id": format!("call_{number}"), "type": "function", "function": function});
        let delta = json!({"role": "assistant", "tool_calls": [call]});
        (delta, "tool_calls")
    };
    let mut text = chunk(
        &format!(r#"[{{"index":0,"delta":{delta},"finish_reason":null}}]"#),
        "null",
    );
    text += &chunk(
        &format!(r#"[{{"index":0,"delta":{{}},"finish_reason":"{reason}"}}]"#),
        "null",
    );
    text += &chunk(
        "[]",
        r#"{"prompt_tokens":1000,"completion_tokens":20,"total_tokens":1020,"prompt_tokens_details":{"cached_tokens":0}}"#,
    );
    text + "data: [DONE]\n\n"
}
