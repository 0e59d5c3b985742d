//! Enums for the fixed words of the API, such as the statuses of a run.
//!
//! # Guarantees
//!
//! A word that this version of the crate does not know is kept as `Other` and sent back unchanged, so that a newer
//! server does not break a program.

/// Declares an enum with one variant for each word, and one for unknown words.
macro_rules! names { ($(
    $(#[$doc:meta])*
    $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }
)*) => { $(
    $(#[$doc])*
    #[derive(Clone, Debug, PartialEq, Eq, Hash)]
    #[non_exhaustive]
    pub enum $name {
        $($(#[$variant_doc])* #[doc = concat!("\n\n`", $word, "` in the API.")] $variant,)*
        /// A word that this version of the crate does not know.
        Other(String),
    }

    impl $name {
        /// The word in the API.
        #[must_use]
        pub fn as_str(&self) -> &str {
            match self {
                $(Self::$variant => $word,)*
                Self::Other(word) => word,
            }
        }
    }

    impl From<&str> for $name {
        fn from(word: &str) -> Self {
            match word {
                $($word => Self::$variant,)*
                _ => Self::Other(word.to_owned()),
            }
        }
    }

    impl From<String> for $name {
        fn from(word: String) -> Self {
            Self::from(word.as_str())
        }
    }

    impl std::fmt::Display for $name {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.as_str())
        }
    }

    impl serde::Serialize for $name {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_str(self.as_str())
        }
    }

    impl<'de> serde::Deserialize<'de> for $name {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            String::deserialize(deserializer).map(Self::from)
        }
    }
)* } }
pub(crate) use names;

#[cfg(test)]
mod tests {
    use crate::human_requests::RequestKind;

    #[test]
    fn unknown_words_are_kept() {
        for (word, kind) in [
            ("approval", RequestKind::Approval),
            ("question", RequestKind::Question),
            ("Approval", RequestKind::Other("Approval".to_owned())),
        ] {
            let json = serde_json::Value::from(word);
            let parsed: RequestKind = serde_json::from_value(json.clone()).unwrap();
            assert_eq!(parsed, kind);
            assert_eq!(serde_json::to_value(&kind).unwrap(), json);
            assert_eq!(kind.to_string(), word);
        }
    }
}
