//! Enums whose variants are single words on the wire and in the database.

/// Declares an enum. Each variant has one word, which is the same on the wire and in the database; the words are part
/// of the contract and must not change.
macro_rules! wire_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant),+
        }

        impl $name {
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word on the wire and in the database.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),+
                }
            }

            /// The inverse of `as_str`.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                match text {
                    $($word => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}
pub(crate) use wire_enum;

#[cfg(test)]
mod tests {
    use crate::event::EventKind;
    use crate::run::{RunSource, WaitReason};
    use crate::webhook::DeliveryState;

    /// Every word of every enum. A change here is a change of the wire and of stored rows.
    #[test]
    fn every_variant_has_its_word() {
        macro_rules! words {
            ($name:ident) => {
                $name::ALL
                    .iter()
                    .map(|it| {
                        assert_eq!($name::parse(it.as_str()), Some(*it));
                        assert_eq!(it.to_string(), it.as_str());
                        it.as_str()
                    })
                    .collect::<Vec<_>>()
            };
        }
        assert_eq!(
            words!(WaitReason),
            [
                "human",
                "timer",
                "retry",
                "place",
                "sandbox",
                "child_run",
                "start",
                "model",
                "tool"
            ]
        );
        assert_eq!(words!(RunSource), ["api", "web", "schedule", "mcp", "cli"]);
        assert_eq!(
            words!(DeliveryState),
            ["pending", "delivered", "gone", "exhausted", "dropped"]
        );
        assert_eq!(
            words!(EventKind),
            [
                "run.updated",
                "message.created",
                "human_request.created",
                "human_request.closed"
            ]
        );
        assert_eq!(WaitReason::parse("Place"), None);
        assert_eq!(RunSource::parse(""), None);
    }
}
