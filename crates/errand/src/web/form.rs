//! Forms: reads them completely and checks their token against the session.
//!
//! A form's fields are text by name, in order. A name can occur several times (checkboxes).

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use futures::StreamExt as _;
use http::StatusCode;
use subtle::ConstantTimeEq as _;

use super::failure::{Failure, PageError};
use super::guard::Person;
use super::ui;
use crate::http::body_memory::Charge;
use crate::http::error::ApiError;
use crate::http::path::PathIds;

/// The field that contains the form's token.
pub(super) const TOKEN_FIELD: &str = "form_token";

/// Maximum size in bytes of a form without files. The largest is the one with an assignment's build.
pub(super) const BYTES_MAX: usize = 2 * 1024 * 1024;

/// The fields of a form or a query string.
#[derive(Clone, Debug, Default)]
pub(super) struct Fields(Vec<(String, String)>);

impl Fields {
    /// Parses the URL-encoded fields.
    pub(super) fn parse(text: &[u8]) -> Self {
        let pairs = url::form_urlencoded::parse(text);
        Self(pairs.into_owned().collect())
    }

    /// The first field with this name; empty if there is none.
    pub(super) fn get(&self, name: &str) -> &str {
        let found = self.0.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str()).unwrap_or_default()
    }

    /// The trimmed value of a field. `None` if it is empty.
    pub(super) fn given(&self, name: &str) -> Option<&str> {
        Some(self.get(name).trim()).filter(|text| !text.is_empty())
    }

    /// The values of all fields with this name.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// Whether a checkbox is selected.
    pub(super) fn is_on(&self, name: &str) -> bool {
        !self.get(name).is_empty()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// Sets a field and removes its other values.
    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.0.retain(|(key, _)| key != name);
        self.0.push((name.to_owned(), value.to_owned()));
    }

    /// Adds a field, even if the name already exists.
    pub(super) fn add(&mut self, name: &str, value: &str) {
        self.0.push((name.to_owned(), value.to_owned()));
    }

    #[cfg(test)]
    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        self.0.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// The state of a form: the submitted fields, and the message if they were refused. By default, a new form.
#[derive(Default)]
pub(super) struct FormState {
    /// Why the form was refused.
    pub(super) message: Option<String>,
    pub(super) sent: Fields,
}

impl FormState {
    /// The form after an error that the person can do something about.
    ///
    /// # Errors
    /// Internal errors are passed on.
    pub(super) fn refused(error: PageError, sent: Fields) -> Result<Self, PageError> {
        Ok(Self {
            message: Some(error.into_message()?),
            sent,
        })
    }

    pub(super) fn status(&self) -> StatusCode {
        ui::status_of(self.message.is_some())
    }

    /// The submitted fields if they were refused, otherwise the stored ones.
    pub(super) fn fields_or(&self, stored: impl FnOnce() -> Fields) -> Fields {
        if self.message.is_some() {
            self.sent.clone()
        } else {
            stored()
        }
    }
}

/// A form that one of our pages sent for the logged-in person.
pub(super) struct Form(pub(super) Fields);

impl<S: Send + Sync> FromRequest<S> for Form {
    type Rejection = PageError;

    async fn from_request(request: Request<Body>, state: &S) -> Result<Self, PageError> {
        let person = request.extensions().get::<Person>().cloned();
        let OpenForm(fields) = OpenForm::from_request(request, state).await?;
        check_token(person.as_ref(), fields.get(TOKEN_FIELD))?;
        Ok(Self(fields))
    }
}

/// Checks a form's token against the session, in constant time.
pub(super) fn check_token(person: Option<&Person>, token: &str) -> Result<(), PageError> {
    let fits = person
        .is_some_and(|person| bool::from(person.form_token.as_bytes().ct_eq(token.as_bytes())));
    if fits {
        return Ok(());
    }
    Err(PageError::Failure(Failure::new(
        StatusCode::FORBIDDEN,
        "This form is out of date",
        "You logged in again after opening the page. Reload the page and send the form again.",
    )))
}

/// A form of someone who is not logged in, without a token.
pub(super) struct OpenForm(pub(super) Fields);

impl<S: Send + Sync> FromRequest<S> for OpenForm {
    type Rejection = PageError;

    async fn from_request(request: Request<Body>, state: &S) -> Result<Self, PageError> {
        let mut charge = Charge::of(request.extensions());
        let body = Body::from_request(request, state).await;
        let Ok(body) = body;
        let mut pieces = body.into_data_stream();
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.next().await {
            let piece =
                piece.map_err(|_| PageError::bad("The form arrived incomplete. Send it again."))?;
            if bytes.len() + piece.len() > BYTES_MAX {
                return Err(ApiError::too_large("a form", BYTES_MAX as u64).into());
            }
            charge.add(piece.len())?;
            bytes.extend_from_slice(&piece);
        }
        Ok(Self(Fields::parse(&bytes)))
    }
}

/// The query parameters of an address.
pub(super) struct Params(pub(super) Fields);

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = PageError;

    async fn from_request_parts(
        parts: &mut http::request::Parts,
        _: &S,
    ) -> Result<Self, PageError> {
        let query = parts.uri.query().unwrap_or_default();
        Ok(Self(Fields::parse(query.as_bytes())))
    }
}

/// The IDs in a path, by the names in the table of pages.
pub(super) struct Path<T>(pub(super) T);

impl<T: PathIds, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = PageError;

    async fn from_request_parts(
        parts: &mut http::request::Parts,
        state: &S,
    ) -> Result<Self, PageError> {
        let params = RawPathParams::from_request_parts(parts, state)
            .await
            .map_err(|_| PageError::not_found())?;
        let part = |name: &str| {
            params
                .iter()
                .find(|(given, _)| *given == name)
                .map(|(_, value)| value.to_owned())
        };
        T::read(&part).map(Path).map_err(|_| PageError::not_found())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_fields_are_found_by_name() {
        let fields = Fields::parse(b"a=1&b=&a=2&c=x+y%26");
        assert_eq!(fields.get("a"), "1");
        assert_eq!(fields.all("a").collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(fields.get("c"), "x y&");
        assert_eq!(fields.given("b"), None);
        assert!(!fields.is_on("b") && !fields.is_on("d") && fields.is_on("a"));
    }

    #[test]
    fn without_a_session_no_token_is_accepted() {
        assert!(check_token(None, "").is_err());
    }
}
