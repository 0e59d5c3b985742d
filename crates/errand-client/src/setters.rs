//! Setters of the optional fields of requests.

/// Gives a struct a chainable setter for each of the fields, which are options.
macro_rules! setters { ($name:ident { $($field:ident: $type:ty,)* }) => {
    impl $name {
        $(
            #[doc = concat!("Sets [`", stringify!($name), "::", stringify!($field), "`](field@Self::", stringify!($field), ").")]
            #[must_use]
            pub fn $field(mut self, $field: impl Into<$type>) -> Self {
                self.$field = Some($field.into());
                self
            }
        )*
    }
} }
pub(crate) use setters;
