//! Every bound in one file: bytes, counts, page sizes, durations, each with its reason.
//!
//! "Fixed by the contract" means that clients rely on the number: changing it changes the API.

/// Maximum size of a JSON request body, in bytes. Fixed by the contract.
pub const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Maximum size of a direct upload, in bytes. Fixed by the contract.
pub const DIRECT_UPLOAD_BYTES_MAX: u64 = 10 * 1024 * 1024;
/// How many bytes of a rejected body the server reads and discards, so that the client gets to see the error response.
/// Fixed by the contract.
pub const REFUSED_BODY_DRAINED_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Maximum messages on one page. Fixed by the contract.
pub const MESSAGES_PAGE_MAX: u32 = 50;
/// Maximum stored text on one page of messages, in bytes. A single message larger than this gets a page of its own.
/// Fixed by the contract.
pub const MESSAGES_PAGE_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Maximum runs, agents, builds or keys on one page. Fixed by the contract.
pub const LIST_PAGE_MAX: u32 = 100;
/// Page size if the caller sets no limit. Fixed by the contract.
pub const PAGE_DEFAULT: u32 = 20;
/// Maximum length of an `Idempotency-Key`, in characters. Fixed by the contract.
pub const IDEMPOTENCY_KEY_CHARS_MAX: usize = 255;
/// How long an idempotency record is kept: 24 hours. Fixed by the contract.
pub const IDEMPOTENCY_TTL_MS: u64 = 24 * 3_600_000;
/// Maximum length of a name (agent, build, key, file argument), in characters.
pub const NAME_CHARS_MAX: usize = 200;
/// Maximum size of a build's `config`, in bytes: an eighth of a request body, far above any configuration that a person
/// can read.
pub const CONFIG_BYTES_MAX: usize = 512 * 1024;
/// Moves of a playbook since its start or the newest message. Beyond it, the run fails. Fixed by the playbook format.
pub const PLAYBOOK_MOVES_MAX: u32 = 10_000;
/// Fuel of one template evaluation. Fixed by the playbook format.
pub const TEMPLATE_FUEL: u64 = 100_000;
/// Active time of a run whose build sets no limit, in seconds: 24 hours. Fixed by the contract.
pub const RUN_SECONDS_DEFAULT: u64 = 24 * 3600;
/// Runs started below a run, at all depths together, if its build sets no limit. Fixed by the contract.
pub const RUN_CHILDREN_DEFAULT: u64 = 100;
/// The largest value that a build may set for it. They are counted again each time a child run starts.
pub const RUN_CHILDREN_MAX: u64 = 10_000;
/// Maximum bytes that one `read_file` call returns: a playbook holds the result in memory as a whole.
pub const READ_FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Maximum bytes that `write_file` accepts and `edit_file` works on. Larger than `read_file`'s limit, so that
/// everything that was read can be written back.
pub const WRITE_FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Tool results larger than this are truncated before a network model sees them; a playbook sees the whole result.
pub const TOOL_RESULT_BYTES_MAX: usize = 64 * 1024;
/// Maximum tool calls in one turn. The calls beyond it get an error result, which the model sees.
pub const CALLS_PER_TURN_MAX: usize = 128;
/// Maximum bytes of a network model's answer, text and arguments together: as much as `write_file` accepts. A larger
/// answer is an error.
pub const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Maximum calls in one answer that are recorded at all; more are left out. Those beyond [`CALLS_PER_TURN_MAX`] get an error
/// result.
pub const CALLS_PER_ANSWER_MAX: usize = 1024;
/// Maximum size of a document (PDF, DOCX, XLSX, HTML) whose text is extracted, in bytes: its parser holds several times
/// as much in memory.
pub const DOCUMENT_BYTES_MAX: u64 = 20 * 1024 * 1024;
/// Maximum pages of a PDF whose text is extracted: above any report that fits a model's context.
pub const DOCUMENT_PAGES_MAX: usize = 2_000;
/// Maximum size of an image that is sent to a model, in bytes. Providers accept 5 MB of base64, which is 3.75 MB of
/// data.
pub const IMAGE_BYTES_MAX: u64 = 3_750_000;
/// Consecutive answers with neither text nor a valid call after which a run fails.
pub const EMPTY_ANSWERS_MAX: u32 = 3;
/// Model calls since the newest message from a person, if the build sets no limit of steps. Fixed by the contract.
pub const MODEL_CALLS_DEFAULT_MAX: u32 = 250;
/// Consecutive answers truncated at the model's maximum length after which a person is asked: a text three times as
/// long as the model's longest answer is more likely rambling than work.
pub const CUT_ANSWERS_MAX: u32 = 3;
/// Consecutive turns that repeat calls and get the same outcomes as before, after which a person is asked. It leaves
/// room to poll for something now and then.
pub const REPEATED_TURNS_MAX: u32 = 10;
/// Consecutive turns in which every call fails, after which a person is asked. It leaves room to try every tool another
/// way.
pub const FAILED_TURNS_MAX: u32 = 10;
/// Repetitions of denied calls after which the person is asked whether the run should continue at all.
pub const DENIED_REPEATS_MAX: u32 = 3;
/// Consecutive summaries after which a person is asked: one should be enough, and each further one freed too little.
pub const SUMMARIES_IN_A_ROW_MAX: u32 = 3;
/// Outcomes of calls kept to detect repetition. Each takes eight bytes.
pub const OUTCOMES_KEPT_MAX: usize = 10_000;
/// Minimum bytes to which a text, result or argument of the newest turn is truncated if nothing else makes room. A
/// shorter excerpt would be meaningless.
pub const TRIMMED_BYTES_MIN: usize = 400;
/// Maximum bytes of a summary that are kept: four times what the model is asked for.
pub const SUMMARY_BYTES_MAX: usize = 64 * 1024;
/// Attempts to get a non-empty summary after which the run fails. Each attempt costs money.
pub const EMPTY_SUMMARIES_MAX: u32 = 3;
/// Consecutive answers that announce a tool call but contain none, after which the run fails. Each attempt costs money.
pub const LOST_CALLS_MAX: u32 = 3;
/// Consecutive answers with more bytes than [`ANSWER_BYTES_MAX`], after which the run fails. Each attempt costs money.
pub const LARGE_ANSWERS_MAX: u32 = 2;
/// Maximum bytes of a sandbox that are copied for a fork: a few seconds of disk work while the caller waits.
pub const FORK_COPY_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Maximum files and directories that are copied for a fork, for the same reason.
pub const FORK_COPY_NAMES_MAX: usize = 20_000;
/// Maximum open invitations of a team: far more than anybody sends at once.
pub const INVITATIONS_MAX: u64 = 100;
/// How long an invitation is valid by default: a week, so that a person on vacation can still use it.
pub const INVITATION_MS_DEFAULT: u64 = 7 * 24 * 3_600_000;
/// How long an invitation may be valid at most: 30 days.
pub const INVITATION_MS_MAX: u64 = 30 * 24 * 3_600_000;
/// Maximum webhooks of a team: each run that ends writes a delivery for each of them in the same transaction.
pub const WEBHOOKS_MAX: u64 = 20;
/// How long a rotated webhook secret keeps signing next to the new one: a day, to update all receivers.
pub const RETIRED_SECRET_MS: u64 = 24 * 3_600_000;
/// Maximum rotated secrets that sign at the same time: each adds a signature to the header.
pub const RETIRED_SECRETS_MAX: usize = 4;
/// How many bytes of a receiver's response are kept for people to read.
pub const ANSWER_KEPT_BYTES_MAX: usize = 1024;
const _: () = assert!(READ_FILE_BYTES_MAX < WRITE_FILE_BYTES_MAX);
const _: () = assert!(CONFIG_BYTES_MAX < BODY_BYTES_MAX);
