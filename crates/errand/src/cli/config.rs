//! `errand config`: all settings and the sources of their values.

use anyhow::Result;

use super::CommandContext;
use crate::config::{Flags, table, warnings};

pub(super) fn run(flags: &Flags, with: &CommandContext) -> Result<()> {
    let config = with.settings(flags)?;
    let lines = table(&config);
    if with.out.json() {
        with.out.json_value(&lines)?;
    } else {
        let or_none = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        let rows = lines.iter().map(|line| {
            [
                line.name.to_owned(),
                or_none(&line.value),
                line.origin.to_string(),
                or_none(&line.default),
                line.unit.to_owned(),
            ]
        });
        with.out
            .table(&["setting", "value", "origin", "default", "unit"], rows)?;
    }
    for warning in warnings(&config) {
        with.out.note(&format!("warning: {warning}"))?;
    }
    Ok(())
}
