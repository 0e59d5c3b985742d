//! Spans of store operations: `store.write` and `store.read`, with the operation's name as `store.op`.
//!
//! The name is the function that contains the operation's closure, so that no operation has to give it. Without a
//! subscriber for the level DEBUG, a span costs one comparison, and the name is not computed.

use std::any::type_name;

use tracing::{Span, debug_span};

/// The span of a write, from its submission to the answer after the commit.
pub(super) fn of_write<F>() -> Span {
    debug_span!("store.write", store.op = operation(type_name::<F>()))
}

/// The span of a read, with the wait for a connection.
pub(super) fn of_read<F>() -> Span {
    debug_span!("store.read", store.op = operation(type_name::<F>()))
}

/// The function that contains a closure, from the name of the closure's type: `path::function<types>::{{closure}}`.
fn operation(closure: &'static str) -> &'static str {
    let mut path = closure;
    while let Some(outer) = path.strip_suffix("::{{closure}}") {
        path = outer;
    }
    // The types of a generic function contain paths of their own.
    let mut depth = 0_usize;
    let start_of_types = path.rfind(|c| {
        match c {
            '>' => depth += 1,
            '<' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0
    });
    let function = match start_of_types.and_then(|at| path.split_at_checked(at)) {
        Some((function, types)) if types.starts_with('<') => function,
        _ => path,
    };
    function
        .rsplit_once("::")
        .map_or(function, |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_named_after_its_function() {
        fn of<F>(_: F) -> &'static str {
            operation(type_name::<F>())
        }
        assert_eq!(of(|| ()), "an_operation_is_named_after_its_function");
        for closure in [
            "errand_store::runs::claims::<impl errand_store::db::sqlite::Store>::claim::{{closure}}::{{closure}}",
            "errand_store::runs::claim::{{closure}}",
            "errand_store::a::claim<core::option::Option<errand_core::id::RunId>>::{{closure}}::{{closure}}",
            "claim",
        ] {
            assert_eq!(operation(closure), "claim", "{closure}");
        }
    }
}
