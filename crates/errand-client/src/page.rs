//! Lists, page by page or to their end.

use std::fmt;
use std::marker::PhantomData;

use futures::{Stream, TryStreamExt as _, stream};
use http::Method;
use serde::de::{self, DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::client::Client;
use crate::error::Error;
use crate::reply::Reply;

/// Which part of a list is requested. Default: the first entries, as many as the server likes to send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageRequest {
    limit: Option<u32>,
    offset: u64,
}

impl PageRequest {
    /// At most `limit` entries from the beginning. The API permits 1 to 100, and 1 to 50 messages.
    #[must_use]
    pub fn of(limit: u32) -> Self {
        Self {
            limit: Some(limit),
            offset: 0,
        }
    }

    /// Skips entries.
    #[must_use]
    pub fn offset(mut self, offset: u64) -> Self {
        self.offset = offset;
        self
    }
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Page<T> {
    /// The entries of this part.
    pub items: Vec<T>,
    /// The number of entries of the whole list.
    pub total: u64,
}

impl<T> IntoIterator for Page<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.into_iter()
    }
}

/// An entry of lists of the API.
pub(crate) trait Listed: DeserializeOwned + Send + 'static {
    /// The field of a page that has the entries.
    const FIELD: &'static str;
    /// The most entries that a page can have.
    const PAGE_MAX: u32 = 100;
}

impl<'de, T: Listed> Deserialize<'de> for Page<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PageVisitor(PhantomData))
    }
}

struct PageVisitor<T>(PhantomData<T>);

impl<'de, T: Listed> Visitor<'de> for PageVisitor<T> {
    type Value = Page<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with `{}` and `total`", T::FIELD)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Page<T>, A::Error> {
        let (mut items, mut total) = (None, None);
        while let Some(field) = map.next_key::<String>()? {
            if field == T::FIELD {
                items = Some(map.next_value()?);
            } else if field == "total" {
                total = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(Page {
            items: items.ok_or_else(|| de::Error::missing_field(T::FIELD))?,
            total: total.ok_or_else(|| de::Error::missing_field("total"))?,
        })
    }
}

/// A list: its path, and the parameters that select its entries.
#[derive(Clone, Debug)]
pub(crate) struct List {
    path: Vec<String>,
    query: Vec<(&'static str, String)>,
}

impl List {
    pub(crate) fn at<const N: usize>(path: [&str; N]) -> Self {
        Self {
            path: path.map(str::to_owned).into(),
            query: Vec::new(),
        }
    }

    pub(crate) fn filtered(mut self, query: Vec<(&'static str, String)>) -> Self {
        self.query = query;
        self
    }
}

impl Client {
    pub(crate) async fn page<T: Listed>(
        &self,
        list: &List,
        page: PageRequest,
    ) -> Result<Reply<Page<T>>, Error> {
        let path = list.path.iter().map(String::as_str);
        let mut request = self.call(Method::GET, path);
        for (name, value) in &list.query {
            request = request.query(name, value);
        }
        if let Some(limit) = page.limit {
            request = request.query("limit", limit);
        }
        if page.limit.is_some() || page.offset > 0 {
            request = request.query("offset", page.offset);
        }
        request.send().await
    }

    /// All entries of a list, page by page, by position.
    pub(crate) fn all<T: Listed>(
        &self,
        list: List,
    ) -> impl Stream<Item = Result<T, Error>> + Send + use<T> {
        let begin = (self.clone(), list, Some(0));
        let pages = stream::try_unfold(begin, |(client, list, offset)| async move {
            let Some(offset) = offset else {
                return Ok(None);
            };
            let request = PageRequest::of(T::PAGE_MAX).offset(offset);
            let page = client.page::<T>(&list, request).await?.into_value();
            let end = offset + page.items.len() as u64;
            let next = (!page.items.is_empty() && end < page.total).then_some(end);
            let items = stream::iter(page.items.into_iter().map(Ok));
            Ok(Some((items, (client, list, next))))
        });
        pages.try_flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Thing(u8);

    impl Listed for Thing {
        const FIELD: &'static str = "things";
    }

    #[test]
    fn a_page_is_read_from_the_field_of_its_entries() {
        let text = r#"{"data": [7], "things": [1, 2], "total": 5, "limit": 2, "offset": 0}"#;
        let page: Page<Thing> = serde_json::from_str(text).unwrap();
        assert_eq!((page.items, page.total), (vec![Thing(1), Thing(2)], 5));
        for text in [r#"{"total": 1}"#, r#"{"things": []}"#, "[]"] {
            assert!(serde_json::from_str::<Page<Thing>>(text).is_err(), "{text}");
        }
    }
}
