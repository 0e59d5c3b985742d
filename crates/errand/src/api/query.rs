//! Query parameters.
//!
//! # Guarantees
//!
//! - An unknown parameter is refused, with the name of the nearest known one.
//! - An invalid value is refused, with the permitted values.
//! - No value is silently clamped.

use std::ops::RangeInclusive;
use std::str::FromStr;

use axum::extract::FromRequestParts;
use errand_core::limits::{LIST_PAGE_MAX, PAGE_DEFAULT};
use errand_store::model::PageQuery;
use http::request::Parts;
use url::form_urlencoded;
use utoipa::IntoParams;

use super::hint;
use crate::http::error::ApiError;
use crate::state::AppState;

/// Extractor for the query parameters of type `T`.
pub(crate) struct Query<T>(pub(crate) T);

/// A type that can be parsed from query parameters.
pub(crate) trait QueryParams: Sized {
    fn read(given: &Given) -> Result<Self, ApiError>;
}

impl<T: QueryParams> FromRequestParts<AppState> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _app: &AppState) -> Result<Self, ApiError> {
        T::read(&Given::parse(parts.uri.query().unwrap_or_default())?).map(Query)
    }
}

/// The decoded query parameters, in order.
pub(crate) struct Given(Vec<(String, String)>);

impl Given {
    pub(crate) fn parse(query: &str) -> Result<Self, ApiError> {
        let pairs: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes())
            .into_owned()
            .collect();
        // The decoder replaces invalid UTF-8 by U+FFFD, so the intended value is unknown.
        let is_lossy = |text: &str| text.contains('\u{fffd}');
        match pairs
            .iter()
            .find(|(name, value)| is_lossy(name) || is_lossy(value))
        {
            Some((name, _)) => Err(ApiError::invalid(
                &name.replace('\u{fffd}', "?"),
                "must be UTF-8, percent-encoded",
            )),
            None => Ok(Self(pairs)),
        }
    }

    /// A parameter that must not be repeated.
    pub(crate) fn one(&self, name: &str) -> Result<Option<&str>, ApiError> {
        let mut values = self.many(name);
        match (values.next(), values.next()) {
            (Some(_), Some(_)) => Err(ApiError::invalid(name, "it is given twice; send it once")),
            (value, _) => Ok(value),
        }
    }

    /// The values of a parameter that can be repeated.
    pub(crate) fn many(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0
            .iter()
            .filter(move |(given, _)| given == name)
            .map(|(_, value)| value.as_str())
    }

    /// An integer in a range.
    pub(crate) fn whole<N>(
        &self,
        name: &str,
        range: RangeInclusive<N>,
    ) -> Result<Option<N>, ApiError>
    where
        N: FromStr + PartialOrd + std::fmt::Display,
    {
        let Some(text) = self.one(name)? else {
            return Ok(None);
        };
        let fits = Some(text)
            .filter(|text| text.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|text| text.parse().ok());
        fits.filter(|number| range.contains(number))
            .map(Some)
            .ok_or_else(|| {
                let text: String = text.chars().take(32).collect();
                ApiError::invalid(
                    name,
                    format!(
                        "must be an integer from {} to {}, not {text:?}",
                        range.start(),
                        range.end()
                    ),
                )
            })
    }

    /// A value with its own parser, whose error describes the permitted values.
    pub(crate) fn parsed<T>(&self, name: &str) -> Result<Option<T>, ApiError>
    where
        T: FromStr,
        T::Err: std::fmt::Display,
    {
        self.one(name)?
            .map(|text| text.parse().map_err(|error| ApiError::invalid(name, error)))
            .transpose()
    }

    pub(crate) fn boolean(&self, name: &str) -> Result<Option<bool>, ApiError> {
        let words = [("true", true), ("false", false)];
        self.one(name)?
            .map(|text| word(name, text, &words))
            .transpose()
    }

    /// `limit` and `offset`, with a limit from 1 to `limit_max`.
    pub(crate) fn page(&self, limit_max: u32) -> Result<PageQuery, ApiError> {
        let limit = self.whole("limit", 1..=limit_max)?.unwrap_or(PAGE_DEFAULT);
        // The largest count of rows in SQL.
        let offset = self
            .whole("offset", 0..=i64::MAX.unsigned_abs())?
            .unwrap_or(0);
        Ok(PageQuery { limit, offset })
    }
}

/// Parses one of several words.
pub(crate) fn word<T: Copy>(name: &str, text: &str, words: &[(&str, T)]) -> Result<T, ApiError> {
    let found = words.iter().find(|(word, _)| *word == text);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let text: String = text.chars().take(32).collect();
        let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        ApiError::invalid(
            name,
            format!("must be one of {}, not {text:?}", words.join(", ")),
        )
    })
}

/// Refuses parameters that the route does not have.
pub(crate) fn check_names(query: Option<&str>, known: &[&str]) -> Result<(), ApiError> {
    let Some(query) = query else { return Ok(()) };
    let unknown = form_urlencoded::parse(query.as_bytes())
        .map(|(name, _)| name)
        .find(|name| !known.contains(&name.as_ref()));
    match unknown {
        Some(name) => Err(ApiError::bad_request(hint::unknown(
            "query parameter",
            &name,
            known,
        ))),
        None => Ok(()),
    }
}

/// Query parameters of a list.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what Given::page reads")]
pub(crate) struct PageParams {
    /// The maximum number of entries.
    #[param(minimum = 1, maximum = 100, default = 20)]
    limit: Option<u32>,
    /// The number of entries to skip.
    #[param(minimum = 0, default = 0)]
    offset: Option<u64>,
}

/// A page of at most 100 entries.
pub(crate) struct ListPage(pub(crate) PageQuery);

impl QueryParams for ListPage {
    fn read(given: &Given) -> Result<Self, ApiError> {
        given.page(LIST_PAGE_MAX).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(error: ApiError) -> String {
        format!("{error:?}")
    }

    #[test]
    fn numbers_out_of_range_are_refused_with_the_range() {
        let page = |query: &str| Given::parse(query).and_then(|given| given.page(50));
        assert_eq!(
            page("").unwrap(),
            PageQuery {
                limit: 20,
                offset: 0
            }
        );
        assert_eq!(
            page("limit=50&offset=3").unwrap(),
            PageQuery {
                limit: 50,
                offset: 3
            }
        );
        for bad in [
            "limit=0",
            "limit=51",
            "limit=-1",
            "limit=+5",
            "limit=",
            "limit=x",
            "limit=1.5",
            "limit=99999999999999999999",
        ] {
            assert!(message(page(bad).unwrap_err()).contains("limit: "), "{bad}");
            assert!(
                message(page(bad).unwrap_err()).contains("from 1 to 50"),
                "{bad}"
            );
        }
        assert!(message(page("offset=-1").unwrap_err()).contains("offset: "));
        assert!(message(page("limit=1&limit=2").unwrap_err()).contains("given twice"));
    }

    #[test]
    fn a_name_that_is_not_known_is_named_with_the_nearest() {
        assert!(check_names(None, &[]).is_ok());
        assert!(check_names(Some("limit=1&limit=2"), &["limit"]).is_ok());
        let error = check_names(Some("limt=1"), &["limit", "offset"]).unwrap_err();
        assert!(message(error).contains("did you mean \\\"limit\\\"?"));
    }

    #[test]
    fn text_is_decoded_strictly() {
        let given = Given::parse("path=%2Fworkspace%2Fa+b%20c").unwrap();
        assert_eq!(given.one("path").unwrap(), Some("/workspace/a b c"));
        assert!(Given::parse("path=%FF").is_err());
        let words = [("asc", true), ("desc", false)];
        assert!(word("sort_order", "asc", &words).unwrap());
        assert!(message(word("sort_order", "up", &words).unwrap_err()).contains("asc, desc"));
    }
}
