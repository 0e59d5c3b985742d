//! Messages about unknown names, with a guess at the intended one.

/// Minimum similarity (Jaro-Winkler, 0 to 1) of a known name to be suggested.
const ALIKE: f64 = 0.75;

/// A message about an unknown name: the most similar known name, otherwise all known names.
pub(crate) fn unknown(what: &str, name: &str, known: &[&str]) -> String {
    let name: String = name.chars().take(64).collect();
    let nearest = known
        .iter()
        .map(|candidate| {
            (
                strsim::jaro_winkler(&name.to_lowercase(), candidate),
                *candidate,
            )
        })
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match (nearest, known) {
        (Some((_, nearest)), _) => {
            format!("{name:?} is not a {what} here; did you mean {nearest:?}?")
        }
        (None, []) => format!("{name:?} is not a {what} here; there are none"),
        (None, known) => format!(
            "{name:?} is not a {what} here; possible ones are {}",
            known.join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_similar_name_is_suggested() {
        let known = [
            "agent_id",
            "sandbox_id",
            "webhook_url",
            "human_request_webhook_url",
            "message",
        ];
        for (typo, meant) in [
            ("webhok_url", "webhook_url"),
            ("agentId", "agent_id"),
            ("Message", "message"),
            ("webhookUrl", "webhook_url"),
        ] {
            assert_eq!(
                unknown("field", typo, &known),
                format!("{typo:?} is not a field here; did you mean {meant:?}?")
            );
        }
        assert_eq!(
            unknown("query parameter", "x", &["limit", "offset"]),
            "\"x\" is not a query parameter here; possible ones are limit, offset"
        );
        assert_eq!(
            unknown("query parameter", "x", &[]),
            "\"x\" is not a query parameter here; there are none"
        );
    }
}
