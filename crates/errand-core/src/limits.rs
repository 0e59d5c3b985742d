//! Every bound in one file: bytes, counts, page sizes. Each with its reason.

/// Most bytes of a JSON request body. The contract's number.
pub const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most bytes of a direct upload. The contract's number.
pub const DIRECT_UPLOAD_BYTES_MAX: u64 = 10 * 1024 * 1024;
/// Most bytes of an upload by URL, unless the operator says otherwise. The contract's number.
pub const URL_UPLOAD_BYTES_MAX: u64 = 5 * 1024 * 1024 * 1024;
/// How much of a refused body is read and dropped, so that the client sees the refusal. The contract's number.
pub const REFUSED_BODY_DRAINED_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Most messages on one page. The contract's number.
pub const MESSAGES_PAGE_MAX: u32 = 50;
/// Most bytes of stored text in one page of messages; one message larger than that comes alone. The contract's number.
pub const MESSAGES_PAGE_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Most runs, agents, builds or keys on one page. The contract's number.
pub const LIST_PAGE_MAX: u32 = 100;
/// Entries on a page where the caller names no limit. The contract's number.
pub const PAGE_DEFAULT: u32 = 20;
/// Most characters of an `Idempotency-Key`. The contract's number.
pub const IDEMPOTENCY_KEY_CHARS_MAX: usize = 255;
/// How long an idempotency record holds: 24 hours. The contract's number.
pub const IDEMPOTENCY_TTL_MS: u64 = 24 * 3_600_000;
/// Most characters of a name (agent, build, key, file argument).
pub const NAME_CHARS_MAX: usize = 200;
/// Most bytes of a build's `config`: a tenth of a body, far above any setup that a person can read.
pub const CONFIG_BYTES_MAX: usize = 512 * 1024;
/// Moves of one start of a playbook; beyond, the run fails. PLAYBOOK's number.
pub const PLAYBOOK_MOVES_MAX: u32 = 10_000;
/// Fuel of one template. PLAYBOOK's number.
pub const TEMPLATE_FUEL: u64 = 100_000;
/// Working time of a run where its build names none: 24 hours. The contract's number.
pub const RUN_SECONDS_DEFAULT: u64 = 24 * 3600;
/// Runs that are started below a run, at all depths together, where its build names no number. The contract's number.
pub const RUN_CHILDREN_DEFAULT: u64 = 100;
/// The same at most: each is counted where one more is started.
pub const RUN_CHILDREN_MAX: u64 = 10_000;
/// Most bytes that `read_file` gives in one call: what a playbook holds whole in memory.
pub const READ_FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Most bytes that `write_file` takes and `edit_file` works on: above `read_file`, so that what was read can be written.
pub const WRITE_FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// A tool result above this is cut before a model sees it; a playbook sees it whole.
pub const TOOL_RESULT_BYTES_MAX: usize = 64 * 1024;
/// Tool calls of one turn. Beyond, a model is told so by an error result.
pub const CALLS_PER_TURN_MAX: usize = 128;
/// Most bytes of one answer of a network model, text and arguments together: as much as `write_file` takes. What is larger
/// is no answer of a model.
pub const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Most calls in one answer that are looked at at all; beyond [`CALLS_PER_TURN_MAX`] they get an error result.
pub const CALLS_PER_ANSWER_MAX: usize = 1024;
/// Most bytes of a document (PDF, DOCX, XLSX, HTML) whose text is read: what its parser holds in memory several times.
pub const DOCUMENT_BYTES_MAX: u64 = 20 * 1024 * 1024;
/// Most pages of a PDF whose text is read: above any report that is read in one go.
pub const DOCUMENT_PAGES_MAX: usize = 2_000;
/// Most bytes of an image that a model is shown: providers take no more than 5 MB.
pub const IMAGE_BYTES_MAX: u64 = 3_750_000;
/// Answers in a row with neither text nor a valid call, after which a run fails.
pub const EMPTY_ANSWERS_MAX: u32 = 3;
/// Model calls since the newest message from a person, where a build has no limit of steps. The contract's number.
pub const MODEL_CALLS_DEFAULT_MAX: u32 = 250;
/// Answers in a row that are cut off at their greatest length, after which a person is asked: a text three times as long
/// as the model's longest is rather a model that rambles.
pub const CUT_ANSWERS_MAX: u32 = 3;
/// Turns in a row that repeat calls with the outcomes that they had before, after which a person is asked: enough to
/// wait for something by looking now and then.
pub const REPEATED_TURNS_MAX: u32 = 10;
/// Turns in a row all of whose calls fail, after which a person is asked: enough to try every tool another way.
pub const FAILED_TURNS_MAX: u32 = 10;
/// Calls that repeat what a person has denied, after which the person is asked whether the run goes on at all.
pub const DENIED_REPEATS_MAX: u32 = 3;
/// Summaries in a row, after which a person is asked: one is what it takes, and each more has freed too little.
pub const SUMMARIES_IN_A_ROW_MAX: u32 = 3;
/// Outcomes of calls that are remembered, to see that one is repeated. Each takes eight bytes.
pub const OUTCOMES_KEPT_MAX: usize = 10_000;
/// Most bytes of a text, a result or an argument of the newest turn that are still sent where nothing else makes room:
/// below, it would say nothing.
pub const TRIMMED_BYTES_MIN: usize = 400;
/// Most bytes of a summary that are kept: four times what a summary is asked to have.
pub const SUMMARY_BYTES_MAX: usize = 64 * 1024;
/// Attempts to get a summary that is not empty, after which the run fails: each is paid for.
pub const EMPTY_SUMMARIES_MAX: u32 = 3;
/// Answers in a row that say they call a tool and hold no call, after which the run fails: each is paid for.
pub const LOST_CALLS_MAX: u32 = 3;
/// Most bytes of a sandbox that are copied for a fork: some seconds of a disk's work while the caller waits.
pub const FORK_COPY_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Most files and directories that are copied for a fork, for the same reason.
pub const FORK_COPY_NAMES_MAX: usize = 20_000;
/// Most invitations of a team that are open at once: far above what is sent in one go.
pub const INVITATIONS_MAX: u64 = 100;
/// How long an invitation works, unless it says otherwise: a week, so that somebody on holiday can still use it.
pub const INVITATION_MS_DEFAULT: u64 = 7 * 24 * 3_600_000;
/// How long an invitation works at most: 30 days.
pub const INVITATION_MS_MAX: u64 = 30 * 24 * 3_600_000;
/// Most webhooks of a team: each end of a run writes a delivery for each of them, in the same transaction.
pub const WEBHOOKS_MAX: u64 = 20;
/// How long a webhook secret that was replaced still signs beside the new one: a day, to put the new one into all
/// receivers.
pub const RETIRED_SECRET_MS: u64 = 24 * 3_600_000;
/// Most replaced secrets that sign at once: each is a signature more in the header.
pub const RETIRED_SECRETS_MAX: usize = 4;
/// How much of a receiver's answer is kept for people to read. Unit: bytes.
pub const ANSWER_KEPT_BYTES_MAX: usize = 1024;
const _: () = assert!(READ_FILE_BYTES_MAX < WRITE_FILE_BYTES_MAX);
const _: () = assert!(CONFIG_BYTES_MAX < BODY_BYTES_MAX);
