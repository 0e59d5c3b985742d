//! A server that speaks the streaming protocols of Anthropic, OpenAI and Gemini, by script and with faults.
//!
//! Which answer a request gets follows from the request alone: the number of the model's turns that are in it. So a
//! question that is asked again, after a fault or a crash, is answered as the first time. Faults are another matter: they
//! are given to the next requests in order, each once.

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

/// Whose protocol a request spoke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// `POST /v1/messages`.
    Anthropic,
    /// `POST /v1/chat/completions`.
    OpenAi,
    /// `POST /v1beta/models/NAME:streamGenerateContent`.
    Gemini,
}

/// One request that came.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Whose protocol.
    pub protocol: Protocol,
    /// The model's name, as the provider knows it.
    pub model: String,
    /// All headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Value,
    /// What it was answered with; 0 where it was not, or not whole.
    pub answered: u16,
}

impl Asked {
    /// How many turns of the model are in it.
    #[must_use]
    pub fn turns(&self) -> usize {
        wire::turns(self.protocol, &self.body)
    }

    /// The texts of all turns of the user, in order. Results of tools are not among them.
    #[must_use]
    pub fn user_texts(&self) -> Vec<String> {
        wire::texts(self.protocol, &self.body)
    }

    /// What tools gave, in order.
    #[must_use]
    pub fn tool_results(&self) -> Vec<String> {
        wire::tool_results(self.protocol, &self.body)
    }

    /// The instructions.
    #[must_use]
    pub fn system(&self) -> String {
        wire::system(self.protocol, &self.body)
    }

    /// The names of the tools that are offered.
    #[must_use]
    pub fn tools(&self) -> Vec<String> {
        wire::tools(self.protocol, &self.body)
    }
}

/// What an answer used up.
#[derive(Clone, Copy, Debug)]
pub struct Tokens {
    /// All that was sent, the cached share and what was newly put into the cache included.
    pub input: u64,
    /// Of these, from the cache.
    pub cached: u64,
    /// Of these, newly put into the cache (Anthropic alone).
    pub cache_write: u64,
    /// What came back.
    pub output: u64,
}

/// How a provider says what an answer used up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UsageForm {
    /// As its documentation has it.
    #[default]
    Documented,
    /// In a chunk that has choices (OpenAI); elsewhere as documented.
    WithChoices,
    /// In the first chunk, with empty ones after it (OpenAI); elsewhere as documented.
    Early,
    /// With fractions in place of whole numbers.
    Fractions,
    /// As texts.
    Texts,
    /// With details that are a list, or null.
    OddDetails,
    /// Not at all.
    Missing,
}

impl UsageForm {
    /// All of them.
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

/// A turn of the model.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// Its calls: name, and arguments as they go over the wire (they need not be JSON, but for Gemini).
    pub calls: Vec<(String, String)>,
    /// What it used up.
    pub tokens: Tokens,
    /// Cut off at its greatest length.
    pub cut: bool,
    /// How it says what it used up.
    pub usage: UsageForm,
    /// The provider's word with which it ends; none: the one that fits.
    pub ending: Option<String>,
    /// Without the index that OpenAI's pieces of calls have.
    pub no_index: bool,
    /// The text is a refusal, in the field that OpenAI has for it.
    pub refusal: bool,
}

impl Answer {
    /// A text, and nothing else.
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

    /// A call, and nothing else.
    #[must_use]
    pub fn call(name: &str, arguments: Value) -> Self {
        Self::text("").and_call(name, arguments)
    }

    /// Nothing at all.
    #[must_use]
    pub fn nothing() -> Self {
        Self::text("")
    }

    /// One more call.
    #[must_use]
    pub fn and_call(mut self, name: &str, arguments: Value) -> Self {
        self.calls.push((name.to_owned(), arguments.to_string()));
        self
    }

    /// One more call, whose arguments are this text.
    #[must_use]
    pub fn and_raw_call(mut self, name: &str, arguments: &str) -> Self {
        self.calls.push((name.to_owned(), arguments.to_owned()));
        self
    }

    /// With other tokens: sent in all, from the cache, into the cache, back.
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

    /// Cut off at its greatest length.
    #[must_use]
    pub fn cut(mut self) -> Self {
        self.cut = true;
        self
    }

    /// What it used up is said in this form.
    #[must_use]
    pub fn with_usage(mut self, form: UsageForm) -> Self {
        self.usage = form;
        self
    }

    /// Ends with this word of the provider.
    #[must_use]
    pub fn ending(mut self, word: &str) -> Self {
        self.ending = Some(word.to_owned());
        self
    }

    /// Its calls come in pieces without an index (OpenAI).
    #[must_use]
    pub fn without_index(mut self) -> Self {
        self.no_index = true;
        self
    }

    /// Its text comes in OpenAI's field for refusals.
    #[must_use]
    pub fn as_refusal(mut self) -> Self {
        self.refusal = true;
        self
    }
}

/// What goes wrong with one request.
#[derive(Clone)]
pub enum Fault {
    /// This status, with an error's body as the provider writes it.
    Status(u16),
    /// This status, with this body and this `retry-after` (in seconds, or whatever it says).
    Refusal(u16, Value, Option<String>),
    /// The stream breaks off after so many events.
    Cut(usize),
    /// The stream ends in order after so many events, but before its end.
    Short(usize),
    /// 200, and a page for people.
    Html,
    /// 200, and an event that is not JSON in the middle of the stream.
    BadJson,
    /// 200, and an event of an error of this type in the middle of the stream.
    ErrorEvent(&'static str),
    /// 200, and these events in place of the answer's.
    Events(Vec<String>),
    /// No answer at all. Whoever asks must give up.
    Hang,
    /// A right answer, each of whose events waits at the gate.
    Trickle(Gate),
}

/// Answers by the request.
type Rule = Arc<dyn Fn(&Asked) -> Answer + Send + Sync>;
/// Fails by the request.
type FaultRule = Arc<dyn Fn(&Asked) -> Option<Fault> + Send + Sync>;

#[derive(Default)]
struct Desk {
    scripts: HashMap<String, Vec<Answer>>,
    rule: Option<Rule>,
    fault_rule: Option<FaultRule>,
    faults: VecDeque<Fault>,
    /// For requests of one model only.
    faults_of: HashMap<String, VecDeque<Fault>>,
    asked: Vec<Asked>,
    gate: Option<Gate>,
}

type Shared = (Arc<Mutex<Desk>>, watch::Sender<usize>);

/// The server. Clones are the same server; it ends with the last of them.
#[derive(Clone)]
pub struct ProviderServer(Arc<Running>);

struct Running {
    url: String,
    desk: Arc<Mutex<Desk>>,
    count: watch::Sender<usize>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl ProviderServer {
    /// Listens on a free port.
    pub async fn start() -> Self {
        let desk = Arc::new(Mutex::new(Desk::default()));
        let count = watch::Sender::new(0);
        let app = Router::new()
            .fallback(answer)
            .with_state((Arc::clone(&desk), count.clone()));
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self(Arc::new(Running {
            url,
            desk,
            count,
            server,
        }))
    }

    /// Its address, for `ANTHROPIC_BASE_URL` and `GEMINI_BASE_URL`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.0.url
    }

    /// Its address for `OPENAI_BASE_URL`.
    #[must_use]
    pub fn openai_url(&self) -> String {
        format!("{}/v1", self.0.url)
    }

    /// Settings under which all three providers are here.
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

    /// Requests to the model of this name get these answers, turn by turn; after the last, the text `Done.`
    pub fn script(&self, model: &str, answers: Vec<Answer>) {
        let mut desk = self.0.desk.lock().unwrap();
        desk.scripts.insert(model.to_owned(), answers);
    }

    /// Requests to models without a script are answered by this rule.
    pub fn answer_by(&self, rule: impl Fn(&Asked) -> Answer + Send + Sync + 'static) {
        self.0.desk.lock().unwrap().rule = Some(Arc::new(rule));
    }

    /// Requests that meet no other fault meet what this rule says, after their answer was made.
    pub fn fail_by(&self, rule: impl Fn(&Asked) -> Option<Fault> + Send + Sync + 'static) {
        self.0.desk.lock().unwrap().fault_rule = Some(Arc::new(rule));
    }

    /// The next requests meet these, each one of them.
    pub fn fail_with(&self, faults: impl IntoIterator<Item = Fault>) {
        self.0.desk.lock().unwrap().faults.extend(faults);
    }

    /// The next requests to this model meet these, each one of them.
    pub fn fail_model_with(&self, model: &str, faults: impl IntoIterator<Item = Fault>) {
        let mut desk = self.0.desk.lock().unwrap();
        let queue = desk.faults_of.entry(model.to_owned()).or_default();
        queue.extend(faults);
    }

    /// Each request waits at the gate before it is answered.
    pub fn hold_at(&self, gate: &Gate) {
        self.0.desk.lock().unwrap().gate = Some(gate.clone());
    }

    /// All requests that came.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        self.0.desk.lock().unwrap().asked.clone()
    }

    /// The last request that came.
    #[must_use]
    pub fn last(&self) -> Asked {
        self.asked().pop().expect("a request that came")
    }

    /// Until that many requests have come.
    pub async fn until(&self, n: usize) {
        let mut count = self.0.count.subscribe();
        let enough = count.wait_for(|have| *have >= n);
        let waited = tokio::time::timeout(std::time::Duration::from_secs(60), enough).await;
        assert!(
            waited.is_ok(),
            "{n} requests were awaited, {} came",
            self.asked().len()
        );
    }
}

async fn answer(
    State((desk, count)): State<Shared>,
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
        let mut desk = desk.lock().unwrap();
        let answer = match (desk.scripts.get(&asked.model), &desk.rule) {
            (Some(script), _) => script
                .get(asked.turns())
                .cloned()
                .unwrap_or_else(|| Answer::text("Done.")),
            (None, Some(rule)) => rule(&asked),
            (None, None) => Answer::text("Done."),
        };
        let of_model = desk
            .faults_of
            .get_mut(&asked.model)
            .and_then(VecDeque::pop_front);
        let fault = of_model.or_else(|| desk.faults.pop_front());
        let by_rule = || desk.fault_rule.as_ref().and_then(|rule| rule(&asked));
        let fault = fault.or_else(by_rule);
        desk.asked.push(asked);
        (desk.asked.len() - 1, answer, fault, desk.gate.clone())
    };
    count.send_modify(|n| *n += 1);
    if let Some(gate) = gate {
        gate.pass().await;
    }
    let response = wire::respond(protocol, number, &answer, fault).await;
    desk.lock().unwrap().asked[number].answered = response.status().as_u16();
    response
}
