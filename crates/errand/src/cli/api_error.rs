//! Errors of the API's client, in the words of the command line.
//!
//! The client is a library, which knows no environment variables and no commands. The advice that names them is added
//! here.

use std::error::Error;

use errand_core::error_chain::error_chain_with;

/// Formats an error and its causes, with advice.
pub(super) fn chain_with_advice(error: &(dyn Error + 'static)) -> String {
    error_chain_with(error, |cause| cause.downcast_ref().and_then(advice))
}

fn advice(error: &errand_client::Error) -> Option<&'static str> {
    use errand_client::Error as E;
    match error {
        E::Address { .. } => Some("set ERRAND_URL to one such as http://127.0.0.1:8700"),
        E::ApiKey => Some("`errand keys create --name NAME` creates one"),
        E::Unreachable { .. } => {
            Some("is `errand serve` running there, and is ERRAND_URL correct?")
        }
        E::UnexpectedResponse { .. } => Some("is ERRAND_URL correct?"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;
    use errand_client::Client;

    use super::*;

    const KEY: &str = "dv_00000000000000000000000000000000";

    fn shown(error: &anyhow::Error) -> String {
        chain_with_advice(error.as_ref())
    }

    #[test]
    fn errors_of_the_client_say_what_to_do_here() {
        let error = Client::new("localhost:8700", KEY).unwrap_err().into();
        assert_eq!(
            shown(&error),
            "\"localhost:8700\" is not the address of a server; set ERRAND_URL to one such as http://127.0.0.1:8700"
        );
        let error = Client::new("http://localhost", "no").unwrap_err().into();
        assert_eq!(
            shown(&error),
            "the API key must be `dv_` and 32 letters or digits; `errand keys create --name NAME` creates one"
        );
    }

    #[derive(Debug, thiserror::Error)]
    #[error("the file cannot be read")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn other_errors_are_shown_with_all_causes() {
        let error = Outer(std::io::Error::other("the disk is on fire"));
        let text = "the file cannot be read: the disk is on fire";
        assert_eq!(chain_with_advice(&error), text);
        assert_eq!(errand_core::error_chain::error_chain(&error), text);
    }

    #[tokio::test]
    async fn advice_comes_before_the_causes() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let client = super::super::api_client(&base, KEY).unwrap();
        let failed = client.create_sandbox().await.context("there is no sandbox");
        let text = shown(&failed.unwrap_err());
        let beginning = format!(
            "there is no sandbox: {base} does not respond; is `errand serve` running there, and is ERRAND_URL correct?: "
        );
        assert!(text.starts_with(&beginning), "{text}");
    }
}
