//! A server that speaks the streaming protocols of Anthropic, OpenAI and Gemini, with scripted answers and faults.
//!
//! The answer to a request depends only on the request: on the number of the model's turns in it. So a question that is
//! asked again after a fault or a crash gets the same answer. Faults, in contrast, apply to the next requests in order,
//! once each.

mod wire;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::script::Gate;

/// The protocol of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// `POST /v1/messages`.
    Anthropic,
    /// `POST /v1/chat/completions`.
    OpenAi,
    /// `POST /v1beta/models/NAME:streamGenerateContent`.
    Gemini,
}

/// One request that was received.
#[derive(Clone, Debug)]
pub struct Asked {
    pub protocol: Protocol,
    /// The model's name at the provider.
    pub model: String,
    pub headers: HeaderMap,
    pub body: Value,
    /// The status of the response; 0 if there was none, or not a complete one.
    pub answered: u16,
}

impl Asked {
    /// The number of the model's turns in the conversation.
    #[must_use]
    pub fn turns(&self) -> usize {
        wire::turns(self.protocol, &self.body)
    }

    /// The texts of all user turns, in order, without tool results.
    #[must_use]
    pub fn user_texts(&self) -> Vec<String> {
        wire::texts(self.protocol, &self.body)
    }

    /// The results of tools, in order.
    #[must_use]
    pub fn tool_results(&self) -> Vec<String> {
        wire::tool_results(self.protocol, &self.body)
    }

    /// The system prompt.
    #[must_use]
    pub fn system(&self) -> String {
        wire::system(self.protocol, &self.body)
    }

    /// The names of the offered tools.
    #[must_use]
    pub fn tools(&self) -> Vec<String> {
        wire::tools(self.protocol, &self.body)
    }
}

/// The tokens of an answer.
#[derive(Clone, Copy, Debug)]
pub struct Tokens {
    /// All input tokens, including those read from and written to the cache.
    pub input: u64,
    /// Input tokens read from the cache.
    pub cached: u64,
    /// Input tokens written to the cache (Anthropic only).
    pub cache_write: u64,
    /// Output tokens.
    pub output: u64,
}

/// How a provider reports the tokens of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UsageForm {
    /// As documented.
    #[default]
    Documented,
    /// In a chunk that has choices (OpenAI); otherwise as documented.
    WithChoices,
    /// In the first chunk, followed by empty ones (OpenAI); otherwise as documented.
    Early,
    /// As fractional numbers.
    Fractions,
    /// As strings.
    Texts,
    /// With details that are a list or null.
    OddDetails,
    /// Not reported.
    Missing,
}

impl UsageForm {
    pub const ALL: [Self; 7] = [
        Self::Documented,
        Self::WithChoices,
        Self::Early,
        Self::Fractions,
        Self::Texts,
        Self::OddDetails,
        Self::Missing,
    ];
}

/// One turn of the model.
#[derive(Clone, Debug)]
pub struct Answer {
    pub text: String,
    /// Calls as (name, arguments as they go over the wire). Except for Gemini, arguments need not be valid JSON.
    pub calls: Vec<(String, String)>,
    pub tokens: Tokens,
    /// Truncated at the maximum length.
    pub cut: bool,
    /// How the tokens are reported.
    pub usage: UsageForm,
    /// The provider's finish reason. `None`: the one that fits.
    pub ending: Option<String>,
    /// Omit the index of call fragments (OpenAI).
    pub no_index: bool,
    /// The text is a refusal, in OpenAI's own field for it.
    pub refusal: bool,
}

impl Answer {
    /// An answer with text only.
    #[must_use]
    pub fn text(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            calls: Vec::new(),
            tokens: Tokens {
                input: 100,
                cached: 0,
                cache_write: 0,
                output: 20,
            },
            cut: false,
            usage: UsageForm::Documented,
            ending: None,
            no_index: false,
            refusal: false,
        }
    }

    /// An answer with one call only.
    #[must_use]
    pub fn call(name: &str, arguments: Value) -> Self {
        Self::text("").and_call(name, arguments)
    }

    /// An empty answer.
    #[must_use]
    pub fn nothing() -> Self {
        Self::text("")
    }

    /// Adds a call.
    #[must_use]
    pub fn and_call(mut self, name: &str, arguments: Value) -> Self {
        self.calls.push((name.to_owned(), arguments.to_string()));
        self
    }

    /// Adds a call with these raw arguments.
    #[must_use]
    pub fn and_raw_call(mut self, name: &str, arguments: &str) -> Self {
        self.calls.push((name.to_owned(), arguments.to_owned()));
        self
    }

    /// Sets the tokens: total input, cache reads, cache writes, output.
    #[must_use]
    pub fn with_tokens(mut self, input: u64, cached: u64, cache_write: u64, output: u64) -> Self {
        self.tokens = Tokens {
            input,
            cached,
            cache_write,
            output,
        };
        self
    }

    /// Truncated at the maximum length.
    #[must_use]
    pub fn cut(mut self) -> Self {
        self.cut = true;
        self
    }

    /// Sets how the tokens are reported.
    #[must_use]
    pub fn with_usage(mut self, form: UsageForm) -> Self {
        self.usage = form;
        self
    }

    /// Sets the provider's finish reason.
    #[must_use]
    pub fn ending(mut self, word: &str) -> Self {
        self.ending = Some(word.to_owned());
        self
    }

    /// Omits the index of call fragments (OpenAI).
    #[must_use]
    pub fn without_index(mut self) -> Self {
        self.no_index = true;
        self
    }

    /// Sends the text in OpenAI's field for refusals.
    #[must_use]
    pub fn as_refusal(mut self) -> Self {
        self.refusal = true;
        self
    }
}

/// A fault of one response.
#[derive(Clone)]
pub enum Fault {
    /// This status, with the provider's usual error body.
    Status(u16),
    /// This status, with this body and this `retry-after` header (seconds or any text).
    Refusal(u16, Value, Option<String>),
    /// The connection breaks after this many events.
    Cut(usize),
    /// The stream ends normally after this many events, before the answer is complete.
    Short(usize),
    /// Status 200 with an HTML page, like a captive portal.
    Html,
    /// Status 200, with an event in the middle of the stream that is not JSON.
    BadJson,
    /// Status 200, with an error event of this type in the middle of the stream.
    ErrorEvent(&'static str),
    /// Status 200, with these events instead of the answer's.
    Events(Vec<String>),
    /// No response at all; the client has to time out.
    Hang,
    /// A correct answer, but each event waits at the gate.
    Trickle(Gate),
}

type Rule = Arc<dyn Fn(&Asked) -> Answer + Send + Sync>;
type FaultRule = Arc<dyn Fn(&Asked) -> Option<Fault> + Send + Sync>;

#[derive(Default)]
struct ServerState {
    scripts: HashMap<String, Vec<Answer>>,
    rule: Option<Rule>,
    fault_rule: Option<FaultRule>,
    faults: VecDeque<Fault>,
    /// Faults for requests to one model.
    faults_of: HashMap<String, VecDeque<Fault>>,
    asked: Vec<Asked>,
    gate: Option<Gate>,
}

type Shared = (Arc<Mutex<ServerState>>, watch::Sender<usize>);

/// The server. Clones share it; it stops when the last one is dropped.
#[derive(Clone)]
pub struct ProviderServer(Arc<Running>);

struct Running {
    url: String,
    state: Arc<Mutex<ServerState>>,
    count: watch::Sender<usize>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl ProviderServer {
    /// Listens on a free port of 127.0.0.1.
    pub async fn start() -> Self {
        let state = Arc::new(Mutex::new(ServerState::default()));
        let count = watch::Sender::new(0);
        let app = Router::new()
            .fallback(answer)
            .with_state((Arc::clone(&state), count.clone()));
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self(Arc::new(Running {
            url,
            state,
            count,
            server,
        }))
    }

    /// The value for `ANTHROPIC_BASE_URL` and `GEMINI_BASE_URL`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.0.url
    }

    /// The value for `OPENAI_BASE_URL`.
    #[must_use]
    pub fn openai_url(&self) -> String {
        format!("{}/v1", self.0.url)
    }

    /// Settings that direct all three providers to this server.
    #[must_use]
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("ANTHROPIC_API_KEY", "test-key-anthropic".to_owned()),
            ("ANTHROPIC_BASE_URL", self.url().to_owned()),
            ("OPENAI_API_KEY", "test-key-openai".to_owned()),
            ("OPENAI_BASE_URL", self.openai_url()),
            ("GEMINI_API_KEY", "test-key-gemini".to_owned()),
            ("GEMINI_BASE_URL", self.url().to_owned()),
        ]
    }

    /// Sets the answers of a model, turn by turn; after the last, it answers `Done.`
    pub fn script(&self, model: &str, answers: Vec<Answer>) {
        let mut state = self.0.state.lock().unwrap();
        state.scripts.insert(model.to_owned(), answers);
    }

    /// Sets a rule for requests to models without a script.
    pub fn answer_by(&self, rule: impl Fn(&Asked) -> Answer + Send + Sync + 'static) {
        self.0.state.lock().unwrap().rule = Some(Arc::new(rule));
    }

    /// Sets a rule for faults of requests without another fault. It runs after the answer was chosen.
    pub fn fail_by(&self, rule: impl Fn(&Asked) -> Option<Fault> + Send + Sync + 'static) {
        self.0.state.lock().unwrap().fault_rule = Some(Arc::new(rule));
    }

    /// Sets faults for the next requests, one each.
    pub fn fail_with(&self, faults: impl IntoIterator<Item = Fault>) {
        self.0.state.lock().unwrap().faults.extend(faults);
    }

    /// Sets faults for the next requests to this model, one each.
    pub fn fail_model_with(&self, model: &str, faults: impl IntoIterator<Item = Fault>) {
        let mut state = self.0.state.lock().unwrap();
        let queue = state.faults_of.entry(model.to_owned()).or_default();
        queue.extend(faults);
    }

    /// Makes each request wait at the gate before it is answered.
    pub fn hold_at(&self, gate: &Gate) {
        self.0.state.lock().unwrap().gate = Some(gate.clone());
    }

    /// All requests so far.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        self.0.state.lock().unwrap().asked.clone()
    }

    /// The last request.
    #[must_use]
    pub fn last(&self) -> Asked {
        self.asked().pop().expect("a request that came")
    }

    /// Waits until this many requests have arrived. Panics after a minute.
    pub async fn until(&self, n: usize) {
        let mut count = self.0.count.subscribe();
        let enough = count.wait_for(|have| *have >= n);
        let waited = tokio::time::timeout(std::time::Duration::from_secs(60), enough).await;
        assert!(
            waited.is_ok(),
            "expected {n} requests, received {}",
            self.asked().len()
        );
    }
}

async fn answer(
    State((state, count)): State<Shared>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let path = uri.path();
    let (protocol, model) = if let Some(rest) = path.strip_prefix("/v1beta/models/") {
        let name = rest.split(':').next().unwrap_or_default();
        (Protocol::Gemini, name.to_owned())
    } else {
        let name = body["model"].as_str().unwrap_or_default().to_owned();
        match path {
            "/v1/messages" => (Protocol::Anthropic, name),
            "/v1/chat/completions" => (Protocol::OpenAi, name),
            _ => {
                let error = json!({"error": {"message": format!("there is nothing at {path}")}});
                return wire::refusal(404, &error, None);
            }
        }
    };
    let asked = Asked {
        protocol,
        model,
        headers,
        body,
        answered: 0,
    };
    let (number, answer, fault, gate) = {
        let mut state = state.lock().unwrap();
        let answer = match (state.scripts.get(&asked.model), &state.rule) {
            (Some(script), _) => script
                .get(asked.turns())
                .cloned()
                .unwrap_or_else(|| Answer::text("Done.")),
            (None, Some(rule)) => rule(&asked),
            (None, None) => Answer::text("Done."),
        };
        let of_model = state
            .faults_of
            .get_mut(&asked.model)
            .and_then(VecDeque::pop_front);
        let fault = of_model.or_else(|| state.faults.pop_front());
        let by_rule = || state.fault_rule.as_ref().and_then(|rule| rule(&asked));
        let fault = fault.or_else(by_rule);
        state.asked.push(asked);
        (state.asked.len() - 1, answer, fault, state.gate.clone())
    };
    count.send_modify(|n| *n += 1);
    if let Some(gate) = gate {
        gate.pass().await;
    }
    let response = wire::respond(protocol, number, &answer, fault).await;
    state.lock().unwrap().asked[number].answered = response.status().as_u16();
    response
}
