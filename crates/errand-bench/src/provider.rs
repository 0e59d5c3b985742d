//! A model provider that answers at once, with as much of OpenAI's protocol as one run needs.
//!
//! Each answer calls a tool, except the last one, which ends the run. At selected requests it records how much
//! processor time the server has used; at those moments the server does nothing but wait for the answer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::server::cpu_seconds;

/// State of the current run.
#[derive(Default)]
struct RunState {
    /// Process id of the server.
    pid: u32,
    /// Requests received in this run.
    requests: u64,
    /// Number of the request that is answered with the end of the run.
    last: u64,
    /// Processor time of the server at the selected requests, in seconds.
    cpu_at: BTreeMap<u64, f64>,
    watched: Vec<u64>,
}

/// A running provider. Dropping it stops it.
pub(crate) struct Provider {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<RunState>>,
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
        let state = Arc::new(Mutex::new(RunState::default()));
        let shared = Arc::clone(&state);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // If a connection breaks, the server opens a new one.
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Ok(Self {
            address,
            state,
            serving,
        })
    }

    /// Prepares for the next run, which ends with the answer to request number `last` (the first is 1). Records the
    /// processor time of process `pid` at the requests in `wanted`.
    pub(crate) fn expect(&self, pid: u32, last: u64, watched: &[u64]) {
        *lock(&self.state) = RunState {
            pid,
            last,
            watched: watched.to_vec(),
            ..RunState::default()
        };
    }

    /// The processor time that was recorded at a request.
    pub(crate) fn cpu_at(&self, request: u64) -> Result<f64> {
        let state = lock(&self.state);
        let seconds = state.cpu_at.get(&request).copied();
        seconds.with_context(|| format!("the run sent only {} requests", state.requests))
    }
}

fn lock(state: &Mutex<RunState>) -> MutexGuard<'_, RunState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(mut stream: TcpStream, state: Arc<Mutex<RunState>>) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = Vec::new();
    loop {
        let Some(end) = read_request(&mut stream, &mut bytes).await? else {
            return Ok(());
        };
        bytes.drain(..end);
        let (number, ends) = {
            let mut state = lock(&state);
            state.requests += 1;
            let number = state.requests;
            if state.watched.contains(&number) {
                let used = cpu_seconds(&state.pid.to_string())?;
                state.cpu_at.insert(number, used);
            }
            (number, number >= state.last)
        };
        let body = answer_body(number, ends);
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).await?;
    }
}

/// Reads until a whole request has arrived and returns its end. `None` if the other side has closed the connection.
async fn read_request(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Result<Option<usize>> {
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
fn answer_body(number: u64, ends: bool) -> String {
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
            // Each call must be different: the server stops a model that repeats itself.
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
